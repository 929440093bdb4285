"""Define operators and numerics that several families share."""
