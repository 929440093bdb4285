"""What ``evaluate`` was asked for, and what the runtime makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rvos_deploy.console.stream_options import StreamOptions

if TYPE_CHECKING:
    from rvos_deploy.evaluation.choices import Overlaps, ProtocolName
    from rvos_deploy.evaluation.protocols import Protocol
    from rvos_deploy.runtime.backends.registry import BackendName, Device
    from rvos_deploy.runtime.segmenter import Segmenter
    from rvos_deploy.stream_settings import Mode, StreamSettings


@dataclass(frozen=True)
class EvaluationRequest:
    """Predictions, the split that they are scored on, and how they are made and scored.

    ``predictions`` is a bundle, or a folder of masks, for which ``stream``, ``overlaps`` and the
    back end have no meaning.
    """

    predictions: Path
    data: Path
    protocol: ProtocolName
    stream: StreamOptions
    overlaps: Overlaps | None
    backend: BackendName
    device: Device
    threads: int | None
    jobs: int

    @property
    def rules(self) -> Protocol:
        """Look up the benchmark's rules."""
        from rvos_deploy.evaluation.protocols import protocol_named

        return protocol_named(self.protocol)

    def settings(self, mode: Mode) -> StreamSettings:
        """Make the stream's settings; the fallback is the protocol's where none was given.

        Raises:
            InputError: a value that ``StreamSettings`` refuses.
        """
        return self.stream.settings(mode, self.rules.fallback)

    def load(self) -> Segmenter:
        """Load the bundle on the back end that was asked for."""
        from rvos_deploy.runtime.segmenter import load

        return load(
            self.predictions, backend=self.backend, device=self.device, threads=self.threads
        )
