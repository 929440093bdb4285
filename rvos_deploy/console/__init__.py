"""Share errors in one line, options, tables and progress between all commands."""
