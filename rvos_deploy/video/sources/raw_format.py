"""Describe frames without a header: size and rate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rvos_deploy.errors import InputError

_FORM = re.compile(r"(\d+)x(\d+)@(\d+(?:\.\d+)?|\d+/\d+)")


@dataclass(frozen=True)
class RawFormat:
    """Hold the size in pixels and the frames per second of RGB frames, 8 bits a channel."""

    width: int
    height: int
    fps: Fraction

    @staticmethod
    def parse(text: str) -> RawFormat:
        """Parse "640x480@25" (width x height @ rate). Raises InputError: it has another form."""
        from rvos_deploy.images import oversize

        found = _FORM.fullmatch(text.strip())
        try:
            if found is None:
                raise ValueError
            made = RawFormat(
                int(found[1]), int(found[2]), Fraction(found[3]).limit_denominator(1001)
            )
        except (ValueError, ZeroDivisionError):
            raise InputError(
                f"--raw '{text}' is not WIDTHxHEIGHT@RATE, for example 640x480@25 or "
                "640x480@30000/1001"
            ) from None
        if not made.width or not made.height or not made.fps:
            raise InputError(f"--raw {text} has a size or a rate of 0; an example is 640x480@25")
        if problem := oversize(made.width, made.height):
            raise InputError(f"--raw {text}: {problem}")
        return made

    @property
    def frame_bytes(self) -> int:
        """Return the bytes of one frame."""
        return 3 * self.width * self.height
