"""Define the manifest as typed records with a bound on every size, decoded in one step.

msgspec is used instead of pydantic, because it has no dependencies, states bounds as types, decodes
JSON straight into records without coercion, and is imported in a few milliseconds.

Unknown keys are ignored, so a change of meaning needs a new schema number. The network's
configuration (``model``) is the exception: an unknown key there means another network, and is
refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rvos_deploy.errors import BundleError, one_line
from rvos_deploy.graph_io.graph_spec import GraphSpec, Precision

MAXIMUM_MANIFEST_BYTES = 8 << 20
MAXIMUM_FILE_BYTES = 8 << 30
"""Size limit of any file in a bundle. ``folder.py`` has tighter limits for files read at once."""

# Lines are printed, so they hold no control characters and none that change the reading direction.
Line = Annotated[
    str,
    Meta(
        max_length=1024,
        pattern=r"\A[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]*\Z",
    ),
]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1 << 50)]

Record = TypeVar("Record")


class FileEntry(msgspec.Struct, frozen=True):
    """Hold the hash and size of a file in the bundle."""

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=0, le=MAXIMUM_FILE_BYTES)]


class NetworkOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Record the origin of the trained part: random numbers, or a checkpoint and its training run.

    ``recorded``: the checkpoint names the configuration of the bundle. ``url``: address of a
    fetched file. ``license`` (SPDX) and ``attribution``: terms of published weights.
    """

    random_seed: Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)] | None = None
    file: Line | None = None
    sha256: Sha256 | None = None
    recorded: bool = False
    run: Line | None = None
    checkpoint: Literal["best", "latest"] | None = None
    step: Count | None = None
    url: Line | None = None
    license: Line | None = None
    attribution: Line | None = None

    def __post_init__(self) -> None:
        if self.random_seed is None and (self.file is None or self.sha256 is None):
            raise ValueError("neither random_seed, nor file and sha256, is given")


class ClipOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Record the origin of the frozen CLIP part: random numbers, an open_clip tag, or a file.

    ``fingerprint``: fingerprint of the weights before rounding. ``recorded``: the checkpoint names
    this fingerprint.
    """

    fingerprint: Line
    random_seed: Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)] | None = None
    tag: Line | None = None
    file: Line | None = None
    sha256: Sha256 | None = None
    recorded: bool = False

    def __post_init__(self) -> None:
        of_file = self.file is not None and self.sha256 is not None
        if self.random_seed is None and self.tag is None and not of_file:
            raise ValueError("neither random_seed, nor tag, nor file and sha256, is given")


class SourceFile(msgspec.Struct, frozen=True):
    """Record a file that an export read, and the address of a fetched file."""

    file: Line
    sha256: Sha256
    url: Line | None = None


class TokenizerOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Record the origin of the vocabulary; ``license`` (SPDX) and ``attribution``: its terms."""

    files: Annotated[tuple[SourceFile, ...], Meta(min_length=1, max_length=4)]
    license: Line | None = None
    attribution: Line | None = None


class Origin(msgspec.Struct, frozen=True):
    """Record the origin of every weight; ``clip`` is None for networks without a CLIP part.

    ``tokenizer``: None where the vocabulary is part of this package.
    """

    network: NetworkOrigin
    clip: ClipOrigin | None = None
    tokenizer: TokenizerOrigin | None = None


class WeightsRecord(msgspec.Struct, frozen=True):
    """Record the weights; bundles of revision 0 have no ``origin``."""

    random: bool
    seed: Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)] | None
    checkpoint: Line | None
    checkpoint_sha256: Sha256 | None
    stored: Line
    clip: Line | None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        needed = ("seed",) if self.random else ("checkpoint", "checkpoint_sha256")
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is null where random is {str(self.random).lower()}")


class CheckRecord(msgspec.Struct, frozen=True):
    """Record a parity check of the export: of a tensor, or of the masks of a clip (J and F)."""

    name: Line
    passed: bool
    tolerance: float
    max_abs: float | UnsetType = UNSET
    max_rel: float | UnsetType = UNSET
    cosine: float | UnsetType = UNSET
    scale: float | UnsetType = UNSET
    worst_index: Annotated[list[Count], Meta(max_length=16)] | UnsetType = UNSET
    j: Share | UnsetType = UNSET
    f: Share | UnsetType = UNSET
    j_and_f: Share | UnsetType = UNSET
    foreground: Share | UnsetType = UNSET
    undecided: Share | UnsetType = UNSET
    slot_excess: float | UnsetType = UNSET
    allowed_excess: float | UnsetType = UNSET
    note: Line | UnsetType = UNSET

    def __post_init__(self) -> None:
        tensor = ("max_abs", "max_rel", "cosine", "worst_index")
        if self.j_and_f is UNSET and any(getattr(self, name) is UNSET for name in tensor):
            raise ValueError(f"a check needs j_and_f, or {', '.join(tensor)}")


class ParityRecord(msgspec.Struct, frozen=True):
    """Record the reference of the export, and the parity checks against it."""

    reference: Line
    checks: Annotated[tuple[CheckRecord, ...], Meta(max_length=10_000)]
    minimum_j_and_f: Share | UnsetType = UNSET
    maximum_slot_excess: Annotated[float, Meta(ge=0)] | UnsetType | None = UNSET
    not_proved: Line | UnsetType | None = UNSET


class QuantizationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Record how a graph became int8.

    ``source``: name of the video or data set of the frames. ``int8_layers``: number of layers in
    int8. ``float_layers``: names of the layers that stayed in float32, because they err most.
    ``errors``: of every output on the measuring frames, the root mean square of the difference from
    float32 over that of float32. ``maximum_error``: the allowed error.
    """

    graph: Line
    source: Line
    calibrating_frames: Count
    measuring_frames: Count
    int8_layers: Count
    float_layers: Annotated[tuple[Line, ...], Meta(max_length=10_000)]
    errors: Annotated[dict[Line, Annotated[float, Meta(ge=0)]], Meta(max_length=64)]
    maximum_error: Annotated[float, Meta(ge=0)]


class Thresholds(msgspec.Struct, frozen=True):
    """Hold the thresholds by mode; ``note`` says when ``set-threshold`` wrote them."""

    offline: Share
    online: Share
    note: Line


REVISION = 1
"""Version of the required keys within the schema. From 1 on, every weight needs its origin."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a bundle."""

    schema: Literal[1]
    revision: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    manifest_sha256: Sha256
    created: Line
    family: Line | UnsetType = UNSET
    model: Annotated[dict[Line, Any], Meta(max_length=256)]
    precision: Precision
    threshold: Share | UnsetType = UNSET
    thresholds: Thresholds | UnsetType = UNSET
    input_size: tuple[int, int] | UnsetType = UNSET
    weights: WeightsRecord
    parameters: Count
    versions: Annotated[dict[Line, Line | dict[Line, Line]], Meta(max_length=64)]
    graphs: Annotated[dict[Line, GraphSpec], Meta(max_length=16)]
    # By graph. Bundles from before opsets could be chosen do not record them.
    opsets: Annotated[dict[Line, Count], Meta(max_length=16)] | UnsetType = UNSET
    parity: ParityRecord
    # What made the golden vectors. Bundles from before golden vectors do not have it.
    golden: Line | UnsetType = UNSET
    # int8 bundles alone.
    quantization: QuantizationRecord | UnsetType = UNSET
    files: Annotated[dict[Line, FileEntry], Meta(max_length=64)]

    def __post_init__(self) -> None:
        if self.revision >= 1 and self.weights.origin is None:
            raise ValueError("weights.origin is missing: it must say where each weight came from")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return plain(self)


class Head(msgspec.Struct, frozen=True):
    """The part of a manifest that is read before its hash is checked."""

    schema: int
    manifest_sha256: str


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """Return a record as plain values, ready for JSON, without unset fields."""
    values: dict[str, Any] = msgspec.to_builtins(record)
    return values


def decode(raw: bytes, kind: type[Record], file: Path) -> Record:
    """Decode JSON bytes to a record.

    Raises:
        BundleError: the bytes are not JSON, are nested too deeply, or have another form. The
            message says where.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(
            f"{file} is damaged ({reason(error)}); restore it, or export again"
        ) from None


def reason(error: Exception) -> str:
    """Return msgspec's message with a lower-case first letter and without backquotes."""
    text = one_line(str(error).replace("`", ""), 300)
    return text[:1].lower() + text[1:]
