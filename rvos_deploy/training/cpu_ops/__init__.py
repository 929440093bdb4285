"""Optional C++ operators that make training on a CPU bearable; never needed to export or run."""
