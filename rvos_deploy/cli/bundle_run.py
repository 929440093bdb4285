"""A bundle under evaluation: what the command line says of it, as the runtime takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvos_deploy.console.options import BackendName, Device, parse_size

if TYPE_CHECKING:
    from rvos_deploy.evaluation.overlaps import Overlaps
    from rvos_deploy.evaluation.protocols import Protocol
    from rvos_deploy.runtime.segmenter import Segmenter
    from rvos_deploy.stream_settings import Mode, StreamSettings


class ProtocolName(str, Enum):
    """Benchmarks by name."""

    mevis = "mevis"
    ref_youtube_vos = "ref-youtube-vos"
    ref_davis = "ref-davis"


class OverlapsName(str, Enum):
    """What is done with pixels that several objects claim."""

    argmax = "argmax"
    keep = "keep"


@dataclass(frozen=True)
class BundleRun:
    """A bundle, and all that was said of how to evaluate it; ``options`` by their names."""

    bundle: Path
    data: Path
    protocol: ProtocolName
    options: Mapping[str, Any]
    backend: BackendName
    device: Device
    threads: int | None
    jobs: int

    @property
    def rules(self) -> Protocol:
        """Those of the benchmark."""
        from rvos_deploy.evaluation.protocols import protocol_named

        return protocol_named(self.protocol.value)

    @property
    def overlaps(self) -> Overlaps | None:
        """As asked for."""
        asked = self.options["overlaps"]
        return asked.value if asked else None

    def settings(self, mode: Mode) -> StreamSettings:
        """Of the stream; defaults are the protocol's. InputError as ``StreamSettings``."""
        from rvos_deploy.stream_settings import StreamSettings

        fallback = self.options["fallback"]
        return StreamSettings(
            mode=mode,
            lookahead=self.options["lookahead"] or 0,
            memory=self.options["memory"],
            anchors=self.options["anchors"] or 0,
            fallback=fallback.value if fallback else self.rules.fallback,
            threshold=self.options["threshold"],
            size=parse_size(self.options["size"]),
        )

    def load(self) -> Segmenter:
        """Load the bundle where it is to run."""
        from rvos_deploy.runtime.segmenter import load

        return load(
            self.bundle,
            backend=self.backend.value,
            device=self.device.value,
            threads=self.threads,
        )
