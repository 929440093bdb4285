"""Latency, throughput and memory, measured."""

from rvos_deploy.stopping import install_for_module

# Before the modules here import anything heavy.
install_for_module()
