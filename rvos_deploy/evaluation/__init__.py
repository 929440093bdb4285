"""Score masks by J and F of the DAVIS and MeViS protocols, without torch."""
