"""One runner per inference library, all behind the same interface."""
