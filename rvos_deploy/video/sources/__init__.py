"""Read videos: one module for each kind of source, and their registry."""
