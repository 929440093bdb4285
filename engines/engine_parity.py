"""Compare engines with ONNX Runtime: outputs at every corner of every profile, then masks.

The tests run the comparison with ONNX Runtime in the engine's place. NOT RUN with engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.bundle.engine_sidecar import Profile, supports
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.engines.profiles import corners
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.graph_io.graph_spec import fixed_box
from rvos_deploy.graph_io.probe import probe_clip, probe_inputs
from rvos_deploy.networks.clip_probe import clip_probe
from rvos_deploy.networks.network import Network
from rvos_deploy.parity.verification import (
    Check,
    CheckResult,
    MaskCheck,
    allowed_differences,
    case_name,
    check_probe_masks,
    check_tensor,
    probe_masks,
)
from rvos_deploy.runtime.backends.base import Backend, Session
from rvos_deploy.stream_settings import StreamSettings


def compare_graph(
    name: str, engine: Session, reference: Session, network: Network, profiles: Sequence[Profile]
) -> list[Check]:
    """Compare every output of a graph at every corner of every profile, on the same inputs.

    Args:
        name: the graph's name.
        engine: a session with the graph as an engine.
        reference: a session with the graph in ONNX Runtime.
        network: the graph's network.
        profiles: of the engine.

    Returns:
        One check for each output at each corner.
    """
    spec = engine.graphs[name].spec
    checks: list[Check] = []
    for seed, axes in enumerate(corners(spec, profiles)):
        inputs = probe_inputs(spec, axes, seed, network.probe_makers)
        expected = reference.graphs[name].run(inputs)
        found = engine.graphs[name].run(inputs)
        for tensor in spec.outputs:
            (theirs,) = reference.ops.to_host([expected[tensor.name]]).arrays()
            (ours,) = engine.ops.to_host([found[tensor.name]]).arrays()
            checks.append(
                check_tensor(
                    f"{case_name(spec.name, axes)} {tensor.name}",
                    spec.tolerance,
                    theirs,
                    ours,
                    network.independent_rows(spec, tensor, theirs.shape),
                )
            )
    return checks


def compare_masks(
    bundle: Bundle, engine: Backend, reference: Backend, profiles: Sequence[Profile]
) -> MaskCheck:
    """Compute J&F between the engines' masks of the probe clip and ONNX Runtime's.

    The engines replay ONNX Runtime's slots (see ``verification.check_masks``).

    Raises:
        InputError: no profile supports the clip.
    """
    if fixed_box(bundle.graphs) is None:
        clip, box = fitting_clip(bundle.network, profiles)
    else:
        probe = clip_probe(bundle.network, bundle.graphs)
        clip, box = probe.frames, probe.box
    truth = probe_masks(bundle, reference, clip, box)
    found = probe_masks(bundle, engine, clip, box, truth.orders)
    count = len(truth.masks)
    name = f"masks of a clip, {len(clip)} frames, {count} expressions, in {box[0]}x{box[1]}"
    return check_probe_masks(name, allowed_differences(bundle), truth.masks, found)


def fitting_clip(
    network: Network, profiles: Sequence[Profile]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the probe clip and a box that some profile supports; turned for portrait profiles.

    Returns:
        Frames uint8 [T,H,W,3], and (height, width) of the box.

    Raises:
        InputError: no profile supports the clip.
    """
    for profile in profiles:
        box = (profile["H"][1], profile["W"][1])
        clip = probe_clip()
        if box[0] > box[1]:
            clip = np.ascontiguousarray(clip.transpose(0, 2, 1, 3))
        display = (clip.shape[1], clip.shape[2])
        padded = network.geometry(display, StreamSettings(size=box), None).padded
        if supports(profile, dict(zip("HW", padded, strict=True))):
            return clip, box
    raise InputError(
        "no profile supports the probe clip (157x90 pixels, fitted into its best size), so masks "
        "cannot be compared; begin H and W lower, for example at 32"
    )


def require_all(results: Sequence[CheckResult], target: str) -> None:
    """Raise ParityError when a check failed; then no engine is installed."""
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise ParityError(
            f"{len(failed)} of {len(results)} parity checks of the {target} engines failed, none "
            f"was put in place: {'; '.join(failed[:8])}{' ...' if len(failed) > 8 else ''}; try "
            "--optimization-level 2 or another TensorRT version, and report it with this line"
        )


@dataclass(frozen=True)
class PartialEngines(Backend):
    """A back end of engines where there are some, and of ONNX Runtime for the other graphs."""

    engines: Session
    rest: Backend
    name = "engines"

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open the other graphs beside the engines. Closing the session leaves the engines open."""
        names = tuple(bundle.graphs if graphs is None else graphs)
        missing = [name for name in names if name not in self.engines.graphs]
        return _Mixed(names, self.engines, self.rest.open(bundle, missing))

    def describe(self) -> dict[str, str]:
        """Return the library and version of the other graphs; sidecars describe the engines."""
        return self.rest.describe()


class _Mixed(Session):
    """Graphs of two sessions; the engines' session keeps the tensors."""

    def __init__(self, names: Sequence[str], engines: Session, rest: Session) -> None:
        both = {**rest.graphs, **engines.graphs}
        super().__init__({name: both[name] for name in names}, engines.ops)
        self._rest = rest

    def close(self) -> None:
        """Free the graphs that are not engines."""
        self.closed = True
        self._rest.close()
