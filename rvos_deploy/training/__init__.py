"""Train a network. Recipes and their files work without torch."""
