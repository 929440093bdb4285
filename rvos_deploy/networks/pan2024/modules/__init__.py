"""The PyTorch reference network, one file a module."""
