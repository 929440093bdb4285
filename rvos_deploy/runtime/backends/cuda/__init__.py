"""CUDA, for back ends that run on a GPU."""
