"""What an evaluation may be asked for by name. Imports no NumPy: the command line reads it."""

from __future__ import annotations

from typing import Literal

ProtocolName = Literal["mevis", "ref-youtube-vos", "ref-davis"]
"""A benchmark (see ``protocols.py``)."""

Overlaps = Literal["argmax", "keep"]
"""What happens to pixels that several objects claim (see ``overlaps.py``)."""
