"""Define the named choices of an evaluation, without NumPy, for the command line."""

from __future__ import annotations

from typing import Literal

ProtocolName = Literal["mevis", "ref-youtube-vos", "ref-davis"]
"""A benchmark (see ``protocols.py``)."""

Overlaps = Literal["argmax", "keep"]
"""Treatment of pixels that several objects claim (see ``overlaps.py``)."""
