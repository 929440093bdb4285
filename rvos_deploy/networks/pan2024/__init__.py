"""Define the network family of Pan, Fang and Lu (CVPR 2024 PVUW)."""
