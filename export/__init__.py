"""Export the PyTorch network as a bundle of ONNX graphs, and check parity."""
