"""Write results: one module for each kind of output, and their registry."""
