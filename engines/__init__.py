"""Build TensorRT engines of a bundle: plans, profiles, sidecars, and the deformable-attention
plugin.
"""
