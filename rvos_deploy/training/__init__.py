"""Training: data, losses, matching and the trainer. Only ``training.data`` works without torch."""
