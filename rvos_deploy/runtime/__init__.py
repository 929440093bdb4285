"""Run a bundle without PyTorch: graphs in, masks out."""
