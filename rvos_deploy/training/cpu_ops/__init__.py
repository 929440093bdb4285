"""Optional C++ operators for training on a CPU; export and runtime do not need them."""
