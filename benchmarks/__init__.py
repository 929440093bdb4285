"""Latency, throughput and memory, measured."""
