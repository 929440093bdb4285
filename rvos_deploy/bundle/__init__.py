"""The bundle: a folder of graphs with a manifest that holds every hash. Imports no torch."""
