"""Define the PyTorch network, one file per module, with the published weights' names and shapes."""
