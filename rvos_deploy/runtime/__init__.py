"""Run a bundle without PyTorch."""
