"""Open bundles: folders with a manifest, graphs and a tokenizer. Only hashed bytes are parsed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from msgspec import UNSET

from rvos_deploy.bundle.manifest import (
    MAXIMUM_FILE_BYTES,
    MAXIMUM_MANIFEST_BYTES,
    FileEntry,
    Head,
    Manifest,
    decode,
)
from rvos_deploy.bundle.onnx_file import MAXIMUM_MODEL_BYTES, OnnxFile
from rvos_deploy.errors import BundleError, InputError, one_line
from rvos_deploy.files import locked, read_regular_file, replacing, sha256_file
from rvos_deploy.graph_io.graph_spec import GraphSpec, Precision
from rvos_deploy.networks.network import Network, NetworkConfig
from rvos_deploy.networks.registry import FIRST_FAMILY, network_of
from rvos_deploy.stream_settings import Mode

SCHEMA = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
PARITY = "parity.npz"
PYTORCH = "pytorch.npz"
"""Where PyTorch's weights are in the graphs (``export/pytorch_weights.py``); not every bundle has
it."""
GOLDEN = "golden.npz"
"""What a stream did with a small clip, step by step (``parity/golden_vectors.py``), for other
people's runtimes; older bundles lack it."""
_MAXIMUM_BYTES = {TOKENIZER: 64 << 20, PARITY: 256 << 20, PYTORCH: 256 << 20, GOLDEN: 256 << 20}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_DIGEST_KEY = "manifest_sha256"
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Bundle:
    """Hold a bundle whose manifest is checked.

    :meth:`read` reads its files, and returns only bytes whose hash the manifest states.
    """

    path: Path
    network: Network
    graphs: Mapping[str, GraphSpec]
    manifest: Manifest
    _hashed: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def config(self) -> NetworkConfig:
        """Return the network's configuration."""
        return self.network.config

    @property
    def precision(self) -> Precision:
        """Return the number format that the graphs compute in: fp32, fp16 or bf16."""
        return self.manifest.precision

    def threshold(self, mode: Mode) -> float:
        """Return the score that a query must exceed: from ``set-threshold``, or the model's own."""
        set_later = self.manifest.thresholds
        if set_later is UNSET:
            return self.config.threshold
        return set_later.online if mode == "online" else set_later.offline

    def graph_file(self, name: str) -> OnnxFile:
        """Return the ONNX file of a graph. The file hashes the bytes that it reads."""
        return OnnxFile(self.path / f"{name}.onnx", self.read)

    def onnx_entries(self, graph: str) -> dict[str, FileEntry]:
        """Return the entries of a graph's files: the ONNX, and external data if there is any."""
        names = (f"{graph}.onnx", f"{graph}.onnx.data")
        return {name: self.manifest.files[name] for name in names if name in self.manifest.files}

    def read(self, name: str) -> bytes:
        """Read a file once, and hash it in memory.

        So a later change of the file, or a symlink that leads elsewhere, cannot change the bytes
        that are parsed.

        Raises:
            BundleError: the file does not belong to the bundle, is missing, or was changed since
                the export.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(
                f"{self.path / MANIFEST} does not list {name}, so nothing says what it should "
                "hold; copy the whole bundle again, or export again"
            )
        file = self.path / name
        _check_size(file, entry)
        try:
            content = read_regular_file(file, entry.bytes)
        except OSError as error:
            raise _unreadable(file, error) from error
        if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise _changed(file)
        self._hashed.add(name)
        return content

    def check_files(self) -> None:
        """Hash every file that has not been read yet.

        Raises:
            BundleError: a file is missing, or was changed since the export.
        """
        for name, entry in self.manifest.files.items():
            if name not in self._hashed:
                file = self.path / name
                _check_size(file, entry)
                try:
                    found = sha256_file(file)
                except OSError as error:
                    raise _unreadable(file, error) from error
                if found != entry.sha256:
                    raise _changed(file)
                self._hashed.add(name)


def packaged_bundles() -> dict[str, Path]:
    """Return the bundles of the package by name."""
    folder = Path(__file__).parents[1] / "bundles"
    return {path.name: path for path in sorted(folder.glob("*")) if (path / MANIFEST).is_file()}


def bundle_files(folder: Path) -> list[Path]:
    """List the files in ``folder`` whose names belong to a bundle, engines included."""
    names = (MANIFEST, TOKENIZER, PARITY, PYTORCH, GOLDEN)
    patterns = (*names, "*.onnx", "*.onnx.data", "engines/**/*")
    return [file for pattern in patterns for file in folder.glob(pattern) if file.is_file()]


def find_bundle(path: str | Path) -> Path:
    """Return the folder at ``path``, or else the packaged bundle of that name."""
    folder = Path(path)
    return folder if _exists(folder / MANIFEST) else packaged_bundles().get(str(path), folder)


def open_bundle(path: str | Path, *, check_files: bool = True) -> Bundle:
    """Read and check the manifest, and hash every file.

    Args:
        path: a folder, or the name of a packaged bundle (see :func:`packaged_bundles`).
        check_files: False leaves the hashing to :meth:`Bundle.read` and
            :meth:`Bundle.check_files`, so that no file is hashed twice.

    Raises:
        BundleError: ``path`` is not a bundle, or the bundle is damaged, incomplete or of another
            schema. The message says what to do.
    """
    bundle = open_contracts(find_bundle(path))
    for name, entry in bundle.manifest.files.items():
        _check_size(bundle.path / name, entry)
    if check_files:
        bundle.check_files()
    return bundle


def open_contracts(folder: Path) -> Bundle:
    """Read and check the manifest alone, for graphs that another program runs.

    Raises:
        BundleError: as in :func:`open_bundle`; a missing file is seen only when it is read.
    """
    manifest = read_manifest(folder)
    _check_names(folder / MANIFEST, manifest.files)
    try:
        network = network_of(manifest.family or FIRST_FAMILY, manifest.model)
    except InputError as error:
        raise BundleError(
            f"{folder / MANIFEST} holds no usable network ({one_line(error)}); export again"
        ) from None
    _require_files(folder / MANIFEST, manifest.files, network)
    _check_repeated(folder / MANIFEST, manifest, network.config)
    network.check_contracts(manifest.graphs)
    graphs = {name: manifest.graphs[name] for name in network.graphs}
    return Bundle(folder, network, graphs, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest, and check its form, hash and schema, without opening other files.

    Raises:
        BundleError: as in :func:`open_bundle`.
    """
    file = folder / MANIFEST
    if not os.path.lexists(file):
        found = "no such folder" if not _exists(folder) else f"no {MANIFEST} in it"
        known = ", ".join(packaged_bundles()) or "none"
        raise BundleError(
            f"{folder} is not a bundle ({found}; packaged ones: {known}); make one with "
            f"'rvos-deploy export tiny --random-weights --out {folder}'"
        )
    try:
        raw = read_regular_file(file, MAXIMUM_MANIFEST_BYTES)
    except OSError as error:
        raise _unreadable(file, error) from error
    head = decode(raw, Head, file)
    # A newer schema may hash differently, so the schema is checked first.
    if head.schema > SCHEMA:
        raise BundleError(
            f"{file} has schema {head.schema}, this version reads {SCHEMA}; "
            "pip install --upgrade rvos-deploy"
        )
    if head.manifest_sha256 != _manifest_digest(raw, head.manifest_sha256):
        raise BundleError(
            f"{file} was changed since the export (its sha256 differs); restore it, or export again"
        )
    if head.schema != SCHEMA:
        raise BundleError(
            f"{file} has schema {head.schema}, this version reads {SCHEMA}; export the bundle again"
        )
    return decode(raw, Manifest, file)


def write_manifest(folder: Path, manifest: Mapping[str, Any], files: Iterable[str]) -> None:
    """Write the manifest with the hashes of ``files`` and its own hash."""
    entries = {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(files)
    }
    content = {"schema": SCHEMA, _DIGEST_KEY: _NO_DIGEST, **manifest, "files": entries}
    text = json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(text.replace(_NO_DIGEST, digest, 1), encoding="utf-8")


def set_threshold(
    path: str | Path, *, offline: float | None = None, online: float | None = None
) -> Bundle:
    """Write a bundle's own thresholds into its manifest. None keeps the threshold of a mode.

    The graphs do not change, and their parity stays valid, because parity is checked at the
    threshold of the export.

    Raises:
        BundleError: as in :func:`open_bundle`, or the bundle is part of the package.
        InputError: no threshold is given, or one lies outside 0..1.
    """
    given = {"offline": offline, "online": online}
    values = {mode: value for mode, value in given.items() if value is not None}
    if not values:
        raise InputError("no threshold was given; pass --offline SCORE, --online SCORE, or both")
    for mode, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"the {mode} threshold must lie in 0..1, found {value}")
    bundle = open_bundle(path)
    if bundle.path in packaged_bundles().values():
        raise BundleError(
            f"{path} comes with the package and stays as it is; copy {bundle.path} and change that"
        )
    with locked(bundle.path, "writing into"):
        before = {mode: bundle.threshold(mode) for mode in get_args(Mode)}
        manifest = bundle.manifest.as_dict()
        manifest["thresholds"] = {
            **before,
            **values,
            "note": f"set on {time.strftime('%Y-%m-%d', time.gmtime())}; the export had "
            f"{bundle.config.threshold}",
        }
        kept = {k: v for k, v in manifest.items() if k not in ("schema", _DIGEST_KEY, "files")}
        write_manifest(bundle.path, kept, bundle.manifest.files)
    return open_bundle(bundle.path)


def _manifest_digest(raw: bytes, digest: str) -> str:
    """Hash the manifest without its own hash."""
    return hashlib.sha256(raw.replace(digest.encode(), _NO_DIGEST.encode(), 1)).hexdigest()


def _check_names(manifest: Path, files: Mapping[str, FileEntry]) -> None:
    """Check that all files lie directly in the bundle and respect their size limits."""
    for name, entry in files.items():
        if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(
                f"{manifest} names a file outside the bundle: {one_line(name)}, needed: a plain "
                "name; export again"
            )
        default = MAXIMUM_MODEL_BYTES if name.endswith(".onnx") else MAXIMUM_FILE_BYTES
        most = _MAXIMUM_BYTES.get(name, default)
        if entry.bytes > most:
            raise BundleError(
                f"{manifest} gives {name} {entry.bytes} bytes, needed: at most {most}; export again"
            )


def required_files(network: Network) -> tuple[str, ...]:
    """Return the names of the files without which a folder is no bundle of this network."""
    return (*(f"{name}.onnx" for name in network.graphs), TOKENIZER, PARITY)


def _require_files(manifest: Path, files: Mapping[str, FileEntry], network: Network) -> None:
    if missing := [name for name in required_files(network) if name not in files]:
        raise BundleError(
            f"{manifest} does not list {', '.join(missing)}, without which nothing can be checked; "
            "copy the whole bundle again, or export again"
        )


def _check_repeated(file: Path, manifest: Manifest, config: NetworkConfig) -> None:
    """Check that values which the manifest repeats for readers are equal."""
    for name in ("threshold", "input_size"):
        found, needed = getattr(manifest, name), getattr(config, name)
        if found is not UNSET and found != needed:
            raise BundleError(
                f"{file} has {name} {found}, but its model has {needed}; export again"
            )


def _check_size(file: Path, entry: FileEntry) -> None:
    if not (_exists(file) and file.is_file()):
        raise BundleError(f"{file} is missing; copy the whole bundle again, or export again")
    size = file.stat().st_size
    if size != entry.bytes:
        raise BundleError(
            f"{file} has {size} bytes, its manifest says {entry.bytes}; "
            "copy the bundle again, or export again"
        )


def _exists(file: Path) -> bool:
    """Tell whether a file exists; an impossible name belongs to no file."""
    try:
        return file.exists()
    except OSError:
        return False


def _changed(file: Path) -> BundleError:
    return BundleError(
        f"{file} was changed since the export (its sha256 differs); "
        "copy the bundle again, or export again"
    )


def _unreadable(file: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{file} cannot be read ({error.strerror or error}); copy the bundle again, or export again"
    )
