"""The PyTorch network, one file a module. Names and shapes of weights are the published ones."""
