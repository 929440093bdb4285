"""Hold the options of ``evaluate``, and turn them into settings and a loaded bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rvos_deploy.console.stream_options import StreamOptions

if TYPE_CHECKING:
    from rvos_deploy.evaluation.choices import Overlaps, ProtocolName
    from rvos_deploy.evaluation.protocols import Protocol
    from rvos_deploy.graph_io.precision_hint import PrecisionHint
    from rvos_deploy.runtime.backends.registry import BackendName
    from rvos_deploy.runtime.segmenter import Segmenter
    from rvos_deploy.stream_settings import Mode, StreamSettings


@dataclass(frozen=True)
class EvaluationRequest:
    """Hold the predictions, the split that scores them, and the options of both.

    ``predictions`` is a bundle or a folder of masks. ``stream``, ``overlaps`` and the back end have
    no meaning for masks.
    """

    predictions: Path
    data: Path
    protocol: ProtocolName
    stream: StreamOptions
    overlaps: Overlaps | None
    backend: BackendName
    device: str
    threads: int | None
    precision_hint: PrecisionHint | None
    jobs: int

    @property
    def rules(self) -> Protocol:
        """Return the benchmark's rules."""
        from rvos_deploy.evaluation.protocols import protocol_named

        return protocol_named(self.protocol)

    def settings(self, mode: Mode) -> StreamSettings:
        """Return the stream's settings; the default fallback is the protocol's.

        Raises:
            InputError: ``StreamSettings`` refuses a value.
        """
        return self.stream.settings(mode, self.rules.fallback)

    def load(self) -> Segmenter:
        """Load the bundle on the requested back end."""
        from rvos_deploy.runtime.segmenter import load

        return load(
            self.predictions,
            backend=self.backend,
            device=self.device,
            threads=self.threads,
            settings=self.settings("online"),
            precision_hint=self.precision_hint,
        )
