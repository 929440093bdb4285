"""Turn the PyTorch reference into a bundle of ONNX graphs, and prove that nothing was lost."""
