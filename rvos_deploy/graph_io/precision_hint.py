"""Name the lower precisions that a user may ask for. Imports nothing heavy, as ``--help`` does."""

from __future__ import annotations

from typing import Literal, get_args

PrecisionHint = Literal["bf16"]
"""A lower precision for some operators of a float32 bundle."""
PRECISION_HINTS: tuple[str, ...] = get_args(PrecisionHint)
