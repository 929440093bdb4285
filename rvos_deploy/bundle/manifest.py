"""The manifest's form: typed records with a bound on every size, decoded in one step.

msgspec, not pydantic: it has no dependencies, states bounds as types, decodes JSON straight into
the records without coercion, and is imported in a few milliseconds.

The schema number governs: keys that this version does not know are ignored within a schema, and
what changes the meaning of a bundle must have another number. The network's own configuration
(``model``) is the exception: an unknown key there is another network, and is refused.
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
"""Of any file in a bundle; what is read at once has tighter bounds (``bundle.py``)."""

# Lines are printed: neither control characters nor those that turn the reading direction.
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
    """A file directly in the bundle: its hash and its size."""

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=0, le=MAXIMUM_FILE_BYTES)]


class NetworkOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the trained part came from: random numbers, or a checkpoint and its training run.

    ``recorded``: the checkpoint names its configuration, which is the bundle's. ``url``: where the
    file was fetched from. ``license`` (SPDX) and ``attribution``: of published weights.
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
    """Where the frozen CLIP part came from: random numbers, an open_clip tag, or a file.

    ``fingerprint``: of its weights, before they were rounded. ``recorded``: the checkpoint names
    that fingerprint.
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
    """A file that an export read, and where it was fetched from."""

    file: Line
    sha256: Sha256
    url: Line | None = None


class TokenizerOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the vocabulary came from; ``license`` (SPDX) and ``attribution`` of published files."""

    files: Annotated[tuple[SourceFile, ...], Meta(min_length=1, max_length=4)]
    license: Line | None = None
    attribution: Line | None = None


class Origin(msgspec.Struct, frozen=True):
    """Where each weight came from; ``clip`` is None for networks without a CLIP part.

    ``tokenizer``: None where the vocabulary is part of this package.
    """

    network: NetworkOrigin
    clip: ClipOrigin | None = None
    tokenizer: TokenizerOrigin | None = None


class WeightsRecord(msgspec.Struct, frozen=True):
    """Where the weights came from; bundles of revision 0 have no ``origin``."""

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
    """A parity check of the export: of a tensor, or of the masks of a clip (with J and F)."""

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
    """What the export was compared with, and how that went."""

    reference: Line
    checks: Annotated[tuple[CheckRecord, ...], Meta(max_length=10_000)]
    minimum_j_and_f: Share | UnsetType = UNSET
    maximum_slot_excess: Annotated[float, Meta(ge=0)] | UnsetType | None = UNSET
    not_proved: Line | UnsetType | None = UNSET


class Thresholds(msgspec.Struct, frozen=True):
    """Scores that a query must pass, by mode, and when ``set-threshold`` wrote them."""

    offline: Share
    online: Share
    note: Line


REVISION = 1
"""What a manifest must hold within its schema: from 1 on, the origin of every weight."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a bundle says of itself."""

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
    # Of each graph's file; bundles made before there was a choice do not say.
    opsets: Annotated[dict[Line, Count], Meta(max_length=16)] | UnsetType = UNSET
    parity: ParityRecord
    files: Annotated[dict[Line, FileEntry], Meta(max_length=64)]

    def __post_init__(self) -> None:
        if self.revision >= 1 and self.weights.origin is None:
            raise ValueError("weights.origin is missing: it must say where each weight came from")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return plain(self)


class Head(msgspec.Struct, frozen=True):
    """What is read of a manifest before its hash is checked."""

    schema: int
    manifest_sha256: str


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """A record as plain values, ready for JSON; unset fields are left out."""
    values: dict[str, Any] = msgspec.to_builtins(record)
    return values


def decode(raw: bytes, kind: type[Record], file: Path) -> Record:
    """JSON bytes as a record.

    Raises:
        BundleError: not JSON, nested too deeply, or not of that form; says where.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(
            f"{file} is damaged ({reason(error)}); restore it, or export again"
        ) from None


def reason(error: Exception) -> str:
    """msgspec's message, its first letter small, without the quotes of its code style."""
    text = one_line(str(error).replace("`", ""), 300)
    return text[:1].lower() + text[1:]
