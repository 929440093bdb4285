"""Check that an artefact computes the numbers and masks of its reference, without torch."""
