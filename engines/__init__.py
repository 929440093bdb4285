"""TensorRT engines of a bundle's graphs. Nothing is built here yet: bundles run on ONNX Runtime."""
