"""Define networks by family. Only a family's ``modules`` and ``graphs`` import torch."""
