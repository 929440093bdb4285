"""Run multi-scale deformable attention as a TensorRT plugin, ``rvos::MSDeformAttn``."""
