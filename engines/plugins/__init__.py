"""Hold TensorRT plugins of this package."""
