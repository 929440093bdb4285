"""Compute deformable attention on a CPU by a compiled kernel."""
