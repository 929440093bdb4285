"""Describe what graphs read and write: contracts, tensors, frames, text. Imports no torch."""
