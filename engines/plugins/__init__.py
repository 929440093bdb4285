"""TensorRT plugins: one folder each, with its kernel, its compiler and its proofs."""
