"""Referring video object segmentation, from PyTorch to production."""
