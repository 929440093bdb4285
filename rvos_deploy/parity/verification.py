"""Check that a bundle, on this machine and back end, reproduces PyTorch's results at export.

The exporter records samples of every graph's outputs on seeded inputs (:mod:`probe`), and the mask
logits of a small clip. The checks against them need only NumPy and the back end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import PARITY, Bundle
from rvos_deploy.bundle.parity_file import read_arrays
from rvos_deploy.errors import BundleError
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.graph_io.frame_geometry import upsample_logits
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.probe import (
    PROBE_EXPRESSIONS,
    Probe,
    probe_inputs,
)
from rvos_deploy.graph_io.tensors import HostArray, Tensor
from rvos_deploy.networks.clip_probe import clip_probe
from rvos_deploy.networks.network import Network
from rvos_deploy.parity.comparison import INFINITY, Comparison, compare, sample
from rvos_deploy.progress import StepProgress, ignore_steps
from rvos_deploy.runtime.backends.base import Backend, Graph
from rvos_deploy.runtime.finite import NotFiniteError
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings

MINIMUM_J_AND_F = 0.999
"""Minimum J&F of the clip's masks against PyTorch's: a mask of 1,000 pixels may differ in one pixel
at its edge. A bundle that was exported with another minimum (``--minimum-j-and-f``) states it."""
MINIMUM_J_AND_F_LOWER = 0.75
"""The minimum where a back end computes in a lower precision than the bundle's, by request.

The clip is hard on purpose, and rounding alone moves single queries of it: of twelve masks of the
trained ``tiny``, products in bfloat16 move one to another object, and the others keep 0.95 and
more. On another CPU it may be two. A wrong operator keeps none. A query that moves takes the cost
of its slot along, so that cost is reported and has no limit. What a hint costs is measured by J&F
over a data set (``benchmarks/studies/lower_precision.py``)."""
TIE = {"fp32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2.0**-7}
"""A pixel is undecided, and not compared, if its logit is nearer to 0 than this share of the clip's
largest logit: then rounding decides its side (two roundings of float16, or of bfloat16; int8 in the
backbone changes logits as much)."""
MAXIMUM_UNDECIDED = 0.01
"""Masks with a larger share of undecided pixels prove nothing, and fail."""


CLIP_LOGITS, CLIP_ORDER = "clip mask_logits", "clip slot_order"
"""Names of a bundle's records of the clip (see ``export/parity.py``)."""
MAXIMUM_UNDECIDED_QUERIES = 0.5
"""Share of a frame's queries that may differ by more than the tolerance in half precision.

Masked attention hides a pixel as its logit falls through a twentieth of a unit, and stops hiding as
a query's best pixel falls from 0 to -1. Logits reach 50, and float16 resolves such sums to a few
hundredths, so the last bit decides which pixels a query reads that sees few of them. Random
rounding moves one or two of 20 queries of the trained ``tiny`` by more than 1e-2 (7 in the worst of
24 draws at 128x224), and the others by 3e-3. Which queries move differs between libraries, and
between instruction sets of one library. Float32 islands do not help: with the whole frame decoder
in float32, the encoder's rounding moves these queries as far. Gentler hiding does not help either:
with it the trained network lost 0.011 of J&F. A wrong kernel moves every query; a wrong operator is
found without rounding (``export/parity.py``); and the effect on masks is measured on masks."""
MAXIMUM_QUERY_DIFFERENCE = 0.5
"""Greatest allowed difference of such a query: rounding moved none by more than 0.24, and another
object is 1 away."""


@dataclass(frozen=True)
class Check:
    """Hold one comparison and its result.

    ``undecided`` is the share of queries that differ by more than the tolerance, because the last
    bit decides which pixels they read.
    """

    name: str
    passed: bool
    tolerance: float
    comparison: Comparison
    undecided: float = 0.0

    @property
    def note(self) -> str:
        """Return a remark on a result with undecided queries; "" for other results."""
        if not (self.passed and self.undecided):
            return ""
        return (
            f"{self.undecided:.0%} of the queries differ by more than {self.tolerance}, as "
            "rounding alone moves them; masks are compared"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "name": self.name,
            "passed": self.passed,
            "tolerance": self.tolerance,
            **self.comparison.as_dict(),
            "undecided": self.undecided,
            "note": self.note,
        }


@dataclass(frozen=True)
class MaskCheck:
    """Hold J and F of the clip's masks against PyTorch's.

    ``foreground`` and ``undecided`` are shares of pixels; undecided ones are not compared.
    ``slot_excess`` is the cost of PyTorch's slots above the best, and ``allowed_excess`` its limit.
    ``note`` names nearly tied slots, and the masks that were compared then.
    """

    name: str
    passed: bool
    tolerance: float
    j: float
    f: float
    foreground: float
    undecided: float = 0.0
    slot_excess: float = 0.0
    allowed_excess: float = 0.0
    note: str = ""

    @property
    def j_and_f(self) -> float:
        """Return the mean of J and F, 0 to 1."""
        return (self.j + self.f) / 2

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
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
            "allowed_excess": self.allowed_excess,
            "note": self.note,
        }


CheckResult = Check | MaskCheck


def run_cases(
    graph: Graph, network: Network
) -> Iterator[tuple[str, dict[str, Probe], dict[str, Tensor]]]:
    """Run a graph at every size that it supports; yield each case's name, inputs and outputs.

    Raises:
        EngineError: the graph supports no case; the message names the command.
    """
    cases = _named_cases(graph.spec, network)
    supported = {name: case for name, case in cases.items() if graph.supports(case[1])}
    for name, (seed, axes) in (supported or cases).items():
        inputs = probe_inputs(graph.spec, axes, seed, network.probe_makers)
        yield name, inputs, graph.run(inputs)


def unsupported_cases(graph: Graph, network: Network) -> list[str]:
    """Return the names of unsupported cases: their sizes lie outside an engine's profiles."""
    cases = _named_cases(graph.spec, network)
    return [name for name, (_, axes) in cases.items() if not graph.supports(axes)]


def _named_cases(spec: GraphSpec, network: Network) -> dict[str, tuple[int, dict[str, int]]]:
    """Return seed and sizes by name; cases of equal sizes share a name, and run once."""
    return {
        case_name(spec.name, axes): (seed, axes)
        for seed, case in enumerate(network.probe_cases())
        for axes in [spec.axis_sizes(case)]
    }


def case_name(graph: str, axes: Mapping[str, int]) -> str:
    """Return the name of a check, for example ``frame_decoder H64 W96 E3 L9``."""
    return " ".join([graph, *(f"{name}{size}" for name, size in axes.items())])


def check_tensor(
    name: str,
    tolerance: float,
    reference: HostArray,
    measured: HostArray,
    queries: NDArray[np.int64] | None = None,
) -> Check:
    """Compare a tensor with its reference, and decide whether the check passes.

    Args:
        name: name of the check.
        tolerance: tolerance of the graph.
        reference: expected values.
        measured: measured values.
        queries: the query of each value, in the shape of ``reference``, if some queries may differ
            by more (see ``MAXIMUM_UNDECIDED_QUERIES``). None: no query may.
    """
    comparison = compare(reference, measured)
    if comparison.max_abs <= tolerance:
        return Check(name, True, tolerance, comparison)
    if queries is None or not comparison.max_abs <= MAXIMUM_QUERY_DIFFERENCE:
        return Check(name, False, tolerance, comparison)
    change = np.abs(reference.astype(np.float64) - measured.astype(np.float64)) / comparison.scale
    beyond = np.unique(queries[change > tolerance])
    share = len(beyond) / len(np.unique(queries))
    return Check(name, share <= MAXIMUM_UNDECIDED_QUERIES, tolerance, comparison, share)


def verify(
    bundle: Bundle,
    backend: Backend,
    progress: StepProgress = ignore_steps,
    on_unsupported: Callable[[str], None] | None = None,
) -> list[CheckResult]:
    """Run every recorded check on this back end, also after a failed check.

    Tolerances are those of the precision in which the back end computes a graph.

    Args:
        bundle: an open bundle.
        backend: the back end that runs the checks.
        progress: called with each step.
        on_unsupported: called with the name of every case whose sizes the back end does not
            support. Engines were compared at the corners of their profiles, their only sizes.

    Raises:
        BundleError: the bundle records no reference.
        EngineError: an engine supports none of a graph's cases, or not the clip; the message names
            the command.
    """
    recorded = read_reference(bundle)
    results: list[CheckResult] = []
    computed: dict[str, GraphSpec] = {}
    for spec in bundle.graphs.values():
        progress(spec.name)
        with backend.open(bundle, [spec.name]) as session:
            graph = session.graphs[spec.name]
            computed[spec.name] = graph.spec
            if on_unsupported is not None:
                for name in unsupported_cases(graph, bundle.network):
                    on_unsupported(name)
            for name, _, outputs in run_cases(graph, bundle.network):
                for tensor in spec.outputs:
                    key = f"{name} {tensor.name}"
                    (whole,) = session.ops.to_host([outputs[tensor.name]]).arrays()
                    expected = _recorded(recorded, key, bundle)
                    of = bundle.network.independent_rows(graph.spec, tensor, whole.shape)
                    queries = None if of is None else sample(of)
                    results.append(
                        check_tensor(key, graph.spec.tolerance, expected, sample(whole), queries)
                    )
    progress("masks of a clip")
    logits, order = recorded[CLIP_LOGITS], recorded.get(CLIP_ORDER)
    results.append(check_masks(bundle, backend, logits, order, computed))
    return results


def read_reference(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Read PyTorch's results at export, by the name of the check.

    Raises:
        BundleError: the file is damaged, or does not have the form that an export records.
    """
    path = bundle.path / PARITY
    recorded = read_arrays(bundle.read(PARITY), path)
    probe = clip_probe(bundle.network, bundle.graphs)
    padded = probe.geometry.padded
    expected = (len(PROBE_EXPRESSIONS), len(probe.frames))
    logits, order = recorded.get(CLIP_LOGITS), recorded.get(CLIP_ORDER)
    sizes = (*expected, padded[0] // 4, padded[1] // 4)
    if logits is None or logits.shape != sizes or not np.isfinite(logits).all():
        raise _not_recorded(path, CLIP_LOGITS, f"finite numbers {list(sizes)}")
    if order is not None:
        needed = bundle.network.check_choices(order)
        if needed is not None or order.shape[:2] != expected:
            raise _not_recorded(path, CLIP_ORDER, f"{needed or 'choices'} {[*expected, '...']}")
    return recorded


def _recorded(reference: Mapping[str, NDArray[Any]], key: str, bundle: Bundle) -> NDArray[Any]:
    if key not in reference:
        raise _not_recorded(bundle.path / PARITY, key, "PyTorch's values")
    return reference[key]


def _not_recorded(path: Path, key: str, needed: str) -> BundleError:
    return BundleError(f"{path} has no usable '{key}', needed: {needed}; export the bundle again")


def check_masks(
    bundle: Bundle,
    backend: Backend,
    reference_logits: NDArray[np.float32],
    reference_order: NDArray[np.int64] | None = None,
    computed: Mapping[str, GraphSpec] | None = None,
) -> MaskCheck:
    """Compare this back end's offline masks of the probe clip with PyTorch's mask logits.

    The check replays PyTorch's slots, because rounding may swap two queries of one object, whose
    masks differ. PyTorch's choice must be as good here, except for rounding. If it costs more than
    the bundle allows, but does not choose another object, the masks of this back end's own slots
    are compared instead.

    Args:
        bundle: the bundle.
        backend: the back end that runs it.
        reference_logits: float32 [E,T,h,w] at stride 4.
        reference_order: int64 [E,T,N], the query of each slot; None: this back end's own slots.
        computed: contracts as this back end computes the graphs, by name, if it was asked for a
            lower precision; None: the bundle's own.
    """
    allowed = allowed_differences(bundle, computed)
    probe = clip_probe(bundle.network, bundle.graphs)
    clip, box, geometry = probe.frames, probe.box, probe.geometry
    logits = np.stack([[upsample_logits(m, geometry) for m in maps] for maps in reference_logits])
    name = f"masks of a clip, {len(clip)} frames, {len(logits)} expressions"
    try:
        found = probe_masks(bundle, backend, clip, box, reference_order)
    except NotFiniteError:
        # There are no masks; the checks of its tensors name the graph.
        return MaskCheck(name, False, allowed.j_and_f, j=0.0, f=0.0, foreground=0.0)
    undecided = np.abs(logits) <= TIE[bundle.precision] * np.abs(logits).max()
    check = check_probe_masks(name, allowed, logits > 0, found, undecided)
    if check.allowed_excess < found.excess <= bundle.network.maximum_choice_excess:
        own = probe_masks(bundle, backend, clip, box, None)
        by_own = check_probe_masks(name, allowed, logits > 0, own, undecided)
        if by_own.passed:
            note = f"{found.tie}: masks by own choices compared instead"
            return replace(by_own, slot_excess=found.excess, note=note)
    return check


@dataclass(frozen=True)
class ProbeMasks:
    """Hold masks of a clip, bool [E,T,H,W], and orders int64 [E,T,N], the query of each slot.

    ``excess`` is the cost of replayed slots above the best (0 without a replay); ``tie`` says where
    it arises.
    """

    masks: NDArray[np.bool_]
    orders: NDArray[np.int64]
    excess: float
    tie: str = ""


def check_probe_masks(
    name: str,
    allowed: AllowedDifferences,
    truth: NDArray[np.bool_],
    found: ProbeMasks,
    undecided: NDArray[np.bool_] | None = None,
) -> MaskCheck:
    """Check masks by :func:`score_masks` against the minimum, and the slots' excess."""
    check = score_masks(name, truth, found.masks, undecided, allowed.j_and_f)
    return replace(
        check,
        passed=check.passed and found.excess <= allowed.excess,
        slot_excess=found.excess,
        allowed_excess=allowed.excess,
        note=f"{found.tie}: masks compared with PyTorch's choice" if found.tie else "",
    )


@dataclass(frozen=True)
class AllowedDifferences:
    """Hold the minimum J&F of the clip's masks against PyTorch's, 0 to 1, and the allowed excess.

    ``excess`` is the allowed cost of PyTorch's slots above the best, ``excess_is_stated`` whether
    the bundle states it.
    """

    j_and_f: float
    excess: float
    excess_is_stated: bool


def allowed_differences(
    bundle: Bundle, computed: Mapping[str, GraphSpec] | None = None
) -> AllowedDifferences:
    """Return the limits that a bundle states, with defaults for the others.

    ``computed``: contracts as a back end computes the graphs; None: as the bundle states them.
    Where they differ, the limits are those of a lower precision (``MINIMUM_J_AND_F_LOWER``).
    """
    if computed is not None and computed != bundle.graphs:
        return AllowedDifferences(MINIMUM_J_AND_F_LOWER, INFINITY, False)
    parity = bundle.manifest.parity
    minimum = MINIMUM_J_AND_F if parity.minimum_j_and_f is UNSET else parity.minimum_j_and_f
    stated = parity.maximum_slot_excess
    if stated is UNSET or stated is None:
        return AllowedDifferences(minimum, bundle.network.choice_excess(bundle.graphs), False)
    return AllowedDifferences(minimum, stated, True)


def probe_masks(
    bundle: Bundle,
    backend: Backend,
    clip: NDArray[np.uint8],
    box: tuple[int, int],
    orders: NDArray[np.int64] | None = None,
) -> ProbeMasks:
    """Segment a clip uint8 [T,H,W,3], fitted into ``box``, offline on this back end.

    ``orders``: int64 [E,T,N], slots to replay; None: this back end's own slots.
    """
    # The threshold of the export, even if set-threshold has changed the bundle's since.
    settings = StreamSettings(
        mode="offline", fallback="top1", size=box, threshold=bundle.config.threshold
    )
    with (
        Segmenter(bundle, backend) as segmenter,
        segmenter.stream(PROBE_EXPRESSIONS, settings) as stream,
    ):
        choices = stream.record_choices(orders)
        for frame in clip:
            stream.push(frame)
        masks = np.stack([result.masks for result in stream.flush()], axis=1)
    replay = choices.replay()
    return ProbeMasks(masks, choices.orders(), replay.excess, replay.tie)


def score_masks(
    name: str,
    truth: NDArray[np.bool_],
    masks: NDArray[np.bool_],
    undecided: NDArray[np.bool_] | None = None,
    minimum: float = MINIMUM_J_AND_F,
) -> MaskCheck:
    """Compare masks bool [E,T,H,W] with ``truth`` by J&F, except undecided pixels."""
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
