"""What goes into graphs and comes out: contracts, tensors, frames, text. Imports no torch."""
