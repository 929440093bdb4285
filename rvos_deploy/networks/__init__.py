"""Networks by family. Imports no torch; a family's ``modules`` and ``graphs`` do."""
