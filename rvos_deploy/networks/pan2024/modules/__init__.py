"""Define the PyTorch reference network, one file per module."""
