"""Multi-scale deformable attention as a TensorRT plugin: ``rvos::MSDeformAttn``. See README.md."""
