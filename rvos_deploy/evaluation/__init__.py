"""J and F as the DAVIS and MeViS protocols define them, and their benchmarks. Torch-free."""
