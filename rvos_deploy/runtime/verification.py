"""Does a bundle, on this machine and back end, give what PyTorch gave when it was exported?

The exporter records samples of every graph's outputs on seeded inputs (:mod:`probe`), and the mask
logits of a small clip. Nothing but NumPy and the back end is needed to check against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import BundleError
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.model.config import ModelConfig
from rvos_deploy.runtime.backends.base import Backend, HostArray, Runner, Value
from rvos_deploy.runtime.bundle import Bundle
from rvos_deploy.runtime.comparison import Comparison, compare, sample
from rvos_deploy.runtime.finite import NotFiniteError
from rvos_deploy.runtime.geometry import display_logits, fit_frame
from rvos_deploy.runtime.graph_spec import GraphSpec
from rvos_deploy.runtime.probe import (
    PROBE_BOX,
    PROBE_EXPRESSIONS,
    Probe,
    probe_clip,
    probe_inputs,
)
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.settings import StreamSettings
from rvos_deploy.runtime.slots import LOST, RecordedTracker, ReplayedTracker

MINIMUM_J_AND_F = 0.999
"""Masks of the clip against PyTorch's: a mask of 1,000 pixels may differ in one at its edge. What
was exported with another minimum (``--minimum-j-and-f``) is judged by that, and says so."""
TIE = {"fp32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}
"""A pixel whose logit is nearer to 0 than this share of the clip's largest is undecided: how sums
were rounded decides its side (two roundings of float16, or of bfloat16), so it is not compared."""
MAXIMUM_UNDECIDED = 0.01
"""Masks of which a larger share is undecided prove nothing, and fail."""


SLOT_TIE = 16
"""PyTorch's slots may cost more than the best ones here by so many times what the graph that gives
their cues may err by. Two queries changed places: four costs, of cues with weights of together 4.4
(``runtime/slots.py``), may each err by that, which makes 17.6. In float16 it is 0.16."""
MAXIMUM_SLOT_EXCESS = LOST / 4
"""And never by more than this: so far apart, it is another object."""
CLIP_LOGITS, CLIP_ORDER = "clip mask_logits", "clip slot_order"
"""What a bundle records of the clip (see ``export/parity.py``)."""


@dataclass(frozen=True)
class Check:
    """One comparison with its verdict."""

    name: str
    passed: bool
    tolerance: float
    comparison: Comparison

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        verdict = {"name": self.name, "passed": self.passed, "tolerance": self.tolerance}
        return {**verdict, **self.comparison.as_dict()}


@dataclass(frozen=True)
class MaskCheck:
    """J and F of the clip's masks against PyTorch's, with the shares of pixels that are foreground
    and that were left out as undecided, and by how much PyTorch's slots cost more than the best.
    """

    name: str
    passed: bool
    tolerance: float
    j: float
    f: float
    foreground: float
    undecided: float = 0.0
    slot_excess: float = 0.0

    @property
    def j_and_f(self) -> float:
        """Mean of J and F, 0 to 1."""
        return (self.j + self.f) / 2

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "name": self.name,
            "passed": self.passed,
            "tolerance": self.tolerance,
            "j": self.j,
            "f": self.f,
            "j_and_f": self.j_and_f,
            "foreground": self.foreground,
            "undecided": self.undecided,
            "slot_excess": self.slot_excess,
        }


Verdict = Check | MaskCheck
Progress = Callable[[str], None]


def probe_cases(config: ModelConfig) -> list[dict[str, int]]:
    """Sizes at which every graph is checked: the smallest, odd ones, and the bundle's own."""
    height, width = config.input_size
    return [
        {"H": 32, "W": 32, "E": 1, "L": 2, "M": 1},
        {"H": 64, "W": 96, "E": 3, "L": 9, "M": 4},
        {"H": 160, "W": 64, "E": 2, "L": 77, "M": 17},
        {"H": height, "W": width, "E": 1, "L": 12, "M": 64},
    ]


def run_cases(
    runner: Runner, config: ModelConfig
) -> Iterator[tuple[str, dict[str, Probe], dict[str, Value]]]:
    """Run a graph at every size that the runner takes: the case's name, inputs and outputs.

    Raises:
        EngineError: the runner takes none of them; says the command.
    """
    cases = _named_cases(runner.spec, config)
    taken = {name: case for name, case in cases.items() if runner.takes(case[1])}
    for name, (seed, axes) in (taken or cases).items():
        inputs = probe_inputs(runner.spec, axes, seed)
        yield name, inputs, runner.infer(inputs)


def left_out(runner: Runner, config: ModelConfig) -> list[str]:
    """Names of the cases that the runner does not take: sizes outside an engine's profiles."""
    cases = _named_cases(runner.spec, config)
    return [name for name, (_, axes) in cases.items() if not runner.takes(axes)]


def _named_cases(spec: GraphSpec, config: ModelConfig) -> dict[str, tuple[int, dict[str, int]]]:
    """Seed and sizes by name: a bundle's own size may be that of another case, and is run once."""
    return {
        case_name(spec.name, axes): (seed, axes)
        for seed, case in enumerate(probe_cases(config))
        for axes in [case_axes(spec, case)]
    }


def case_axes(spec: GraphSpec, case: Mapping[str, int]) -> dict[str, int]:
    """The case's sizes of those axes that the graph has."""
    return {axis.name: case[axis.name] for axis in spec.axes}


def case_name(graph: str, axes: Mapping[str, int]) -> str:
    """Name of a check, for example ``frame_decoder H64 W96 E3 L9``."""
    return " ".join([graph, *(f"{name}{size}" for name, size in axes.items())])


def judge(name: str, tolerance: float, reference: HostArray, measured: HostArray) -> Check:
    """Compare and decide."""
    comparison = compare(reference, measured)
    return Check(name, comparison.max_abs <= tolerance, tolerance, comparison)


def verify(
    bundle: Bundle,
    backend: Backend,
    progress: Progress | None = None,
    on_left_out: Progress | None = None,
) -> list[Verdict]:
    """Run every recorded check on this back end; all run, whatever fails.

    Args:
        bundle: opened.
        backend: where to run them.
        progress: told what is under way.
        on_left_out: told the name of every case whose sizes the back end does not take. Engines
            were compared at the corners of their profiles, and take nothing beyond.

    Raises:
        BundleError: the bundle records no reference.
        EngineError: an engine takes none of a graph's cases, or not the clip; says the command.
    """
    recorded = _read_reference(bundle)
    verdicts: list[Verdict] = []
    for spec in bundle.graphs.values():
        if progress is not None:
            progress(spec.name)
        with backend.runner(spec, bundle.graph_file(spec.name)) as runner:
            if on_left_out is not None:
                for name in left_out(runner, bundle.config):
                    on_left_out(name)
            for name, _, outputs in run_cases(runner, bundle.config):
                for tensor in spec.outputs:
                    key = f"{name} {tensor.name}"
                    measured = sample(runner.to_host(outputs[tensor.name]))
                    verdicts.append(judge(key, spec.tolerance, recorded[key], measured))
    if progress is not None:
        progress("masks of a clip")
    verdicts.append(check_masks(bundle, backend, recorded[CLIP_LOGITS], recorded.get(CLIP_ORDER)))
    return verdicts


def _read_reference(bundle: Bundle) -> dict[str, NDArray[Any]]:
    try:
        with np.load(bundle.parity_file, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{bundle.parity_file} cannot be read ({error}); export the bundle again"
        ) from error


def check_masks(
    bundle: Bundle,
    backend: Backend,
    reference_logits: NDArray[np.float32],
    reference_order: NDArray[np.int64] | None = None,
) -> MaskCheck:
    """Masks of the probe clip by this back end, offline, against those of PyTorch's mask logits.

    Slots are those that PyTorch chose, and its choice must be as good here, but for rounding: of
    two queries on one object it decides which is taken, and the masks differ by what those two do.

    Args:
        bundle: the bundle.
        backend: where to run it.
        reference_logits: float32 [E,T,h,w] at stride 4.
        reference_order: int64 [E,T,N], the query of each slot; None: as this back end finds.
    """
    clip = probe_clip()
    geometry = fit_frame((clip.shape[1], clip.shape[2]), PROBE_BOX)
    logits = np.stack([[display_logits(m, geometry) for m in maps] for maps in reference_logits])
    name = f"masks of a clip, {len(clip)} frames, {len(logits)} expressions"
    try:
        found = probe_masks(bundle, backend, clip, PROBE_BOX, reference_order)
    except NotFiniteError:
        # There are no masks; which graph it was stands among the checks of its tensors.
        return MaskCheck(name, False, minimum_j_and_f(bundle), j=0.0, f=0.0, foreground=0.0)
    undecided = np.abs(logits) <= TIE[bundle.precision] * np.abs(logits).max()
    return judge_probe(name, bundle, logits > 0, found, undecided)


@dataclass(frozen=True)
class ProbeMasks:
    """Masks of a clip, bool [E,T,H,W]; orders int64 [E,T,N], the query of each slot; excess: by how
    much these slots, when they were replayed, cost more than the best (else 0).
    """

    masks: NDArray[np.bool_]
    orders: NDArray[np.int64]
    excess: float


def judge_probe(
    name: str,
    bundle: Bundle,
    truth: NDArray[np.bool_],
    found: ProbeMasks,
    undecided: NDArray[np.bool_] | None = None,
) -> MaskCheck:
    """Judge masks by :func:`judge_masks` and the bundle's own minimum, and replayed slots by what
    their graph may err by.
    """
    check = judge_masks(name, truth, found.masks, undecided, minimum_j_and_f(bundle))
    allowed = min(SLOT_TIE * bundle.graphs["frame_decoder"].tolerance, MAXIMUM_SLOT_EXCESS)
    passed = check.passed and found.excess <= allowed
    return replace(check, passed=passed, slot_excess=found.excess)


def minimum_j_and_f(bundle: Bundle) -> float:
    """What the masks of the clip must reach: the bundle's own, where it records one."""
    return float(bundle.manifest["parity"].get("minimum_j_and_f", MINIMUM_J_AND_F))


def probe_masks(
    bundle: Bundle,
    backend: Backend,
    clip: NDArray[np.uint8],
    box: tuple[int, int],
    orders: NDArray[np.int64] | None = None,
) -> ProbeMasks:
    """Masks of a clip uint8 [T,H,W,3] by this back end, offline, fitted into ``box``.

    ``orders``: int64 [E,T,N], slots to replay; None: as this back end finds.
    """
    settings = StreamSettings(mode="offline", fallback="top1", size=box)
    with (
        Segmenter(bundle, backend) as segmenter,
        segmenter.stream(PROBE_EXPRESSIONS, settings) as stream,
    ):
        recorded = [RecordedTracker() for _ in PROBE_EXPRESSIONS]
        replayed = [] if orders is None else [ReplayedTracker(of_one) for of_one in orders]
        stream.track_by(replayed or recorded)
        for frame in clip:
            stream.push(frame)
        masks = np.stack([result.masks for result in stream.flush()], axis=1)
    if orders is None:
        orders = np.stack([np.array(tracker.orders, np.int64) for tracker in recorded])
    return ProbeMasks(masks, orders, max((tracker.excess for tracker in replayed), default=0.0))


def judge_masks(
    name: str,
    truth: NDArray[np.bool_],
    masks: NDArray[np.bool_],
    undecided: NDArray[np.bool_] | None = None,
    minimum: float = MINIMUM_J_AND_F,
) -> MaskCheck:
    """Compare masks bool [E,T,H,W] with the true ones by J&F, without the undecided pixels."""
    share = 0.0
    if undecided is not None:
        masks, share = np.where(undecided, truth, masks), float(undecided.mean())
    scores = [frame_scores(mask, true) for mask, true in zip(masks, truth, strict=True)]
    j = float(np.mean([score.j_mean for score in scores]))
    f = float(np.mean([score.f_mean for score in scores]))
    return MaskCheck(
        name=name,
        passed=(j + f) / 2 >= minimum and share <= MAXIMUM_UNDECIDED,
        tolerance=minimum,
        j=j,
        f=f,
        foreground=float(truth.mean()),
        undecided=share,
    )
