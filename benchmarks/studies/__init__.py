"""Studies behind decisions of this project. The wheel leaves them out."""
