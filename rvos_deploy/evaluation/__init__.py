"""J and F as the DAVIS and MeViS protocols define them. NumPy only."""
