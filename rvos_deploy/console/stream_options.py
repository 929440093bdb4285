"""Turn the stream options of the command line into settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from rvos_deploy.console.options import parse_size

if TYPE_CHECKING:
    from rvos_deploy.stream_settings import Fallback, Mode, StreamSettings


@dataclass(frozen=True)
class StreamOptions:
    """Hold the options of ``run`` and ``evaluate``; None: not given.

    ``size`` is ``HxW`` and ``mask_budget`` is in MiB; other options are as in ``StreamSettings``.
    """

    mode: Mode | None = None
    lookahead: int | None = None
    memory: int | None = None
    anchors: int | None = None
    threshold: float | None = None
    fallback: Fallback | None = None
    size: str | None = None
    short_side: int | None = None
    mask_budget: int | None = None

    def given(self) -> list[str]:
        """Return the names of the given options: ``["--mode", "--memory"]``."""
        named = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return [f"--{name.replace('_', '-')}" for name in named]

    def settings(self, mode: Mode, fallback: Fallback = "none") -> StreamSettings:
        """Return the settings; ``mode`` and ``fallback`` are defaults for missing options.

        Raises:
            InputError: ``StreamSettings`` refuses a value.
        """
        from rvos_deploy.spill_store import default_mask_budget
        from rvos_deploy.stream_settings import StreamSettings

        mebibytes = self.mask_budget
        return StreamSettings(
            mode=self.mode or mode,
            lookahead=self.lookahead or 0,
            memory=self.memory,
            anchors=self.anchors or 0,
            threshold=self.threshold,
            fallback=self.fallback or fallback,
            size=parse_size(self.size),
            short_side=self.short_side,
            mask_budget=default_mask_budget() if mebibytes is None else mebibytes * 2**20,
        )
