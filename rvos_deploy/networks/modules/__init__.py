"""Operators and numerics that several families' modules share."""
