"""Read and write bundles: a folder of graphs, and a manifest with every hash. Imports no torch."""
