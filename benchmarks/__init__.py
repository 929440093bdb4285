"""Measure latency, throughput and memory."""

from rvos_deploy.stopping import install_for_module

# This runs before the modules here import anything heavy.
install_for_module()
