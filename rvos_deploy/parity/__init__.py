"""Checks that an artefact gives the numbers and masks of its reference. Imports no torch."""
