"""TensorRT engines of a bundle: builds, profiles, sidecars, and the deformable-attention plugin."""
