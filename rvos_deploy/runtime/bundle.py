"""The bundle: a folder with graphs, tokenizer and manifest, hashed before anything is parsed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvos_deploy.errors import BundleError
from rvos_deploy.files import sha256_file
from rvos_deploy.model.config import ModelConfig
from rvos_deploy.runtime.graph_spec import GraphSpec

SCHEMA = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
PARITY = "parity.npz"
GRAPHS = ("backbone", "text_encoder", "frame_decoder", "video_decoder", "mask_head")

_DIGEST_KEY = "manifest_sha256"
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file has the hash that its manifest states."""

    path: Path
    config: ModelConfig
    graphs: Mapping[str, GraphSpec]
    precision: str
    manifest: Mapping[str, Any]

    def graph_file(self, name: str) -> Path:
        """The ONNX file of a graph."""
        return self.path / f"{name}.onnx"

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer of the text encoder."""
        return self.path / TOKENIZER

    @property
    def parity_file(self) -> Path:
        """What PyTorch gave at export, for ``verify``."""
        return self.path / PARITY


def packaged_bundles() -> dict[str, Path]:
    """Bundles that come with the package, by name."""
    folder = Path(__file__).parents[1] / "bundles"
    return {path.name: path for path in sorted(folder.glob("*")) if (path / MANIFEST).is_file()}


def bundle_files(folder: Path) -> list[Path]:
    """Files in ``folder`` that belong to a bundle, engines included, by their names alone."""
    names = (MANIFEST, TOKENIZER, PARITY, "*.onnx", "*.onnx.data", "engines/**/*")
    return [file for name in names for file in folder.glob(name) if file.is_file()]


def find_bundle(path: str | Path) -> Path:
    """The folder at ``path``, or else the packaged bundle of that name."""
    folder = Path(path)
    return folder if (folder / MANIFEST).exists() else packaged_bundles().get(str(path), folder)


def open_bundle(path: str | Path) -> Bundle:
    """Check every hash, then read the manifest.

    ``path``: a folder, or the name of a packaged bundle (see :func:`packaged_bundles`).

    Raises:
        BundleError: not a bundle, damaged, incomplete, or of another schema; says what to do.
    """
    folder = find_bundle(path)
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry)
    return Bundle(
        path=folder,
        config=ModelConfig.from_dict(manifest["model"]),
        graphs={name: GraphSpec.from_dict(manifest["graphs"][name]) for name in GRAPHS},
        precision=manifest["precision"],
        manifest=manifest,
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, its own hash and schema checked; the other files are not looked at.

    Raises:
        BundleError: as :func:`open_bundle`.
    """
    file = folder / MANIFEST
    if not file.is_file():
        found = "no such folder" if not folder.is_dir() else f"no {MANIFEST} in it"
        known = ", ".join(packaged_bundles()) or "none"
        raise BundleError(
            f"{folder} is not a bundle ({found}; packaged ones: {known}); make one with "
            f"'rvos-deploy export tiny --random-weights --out {folder}'"
        )
    raw = file.read_bytes()
    try:
        manifest = json.loads(raw)
        schema, digest = manifest["schema"], manifest[_DIGEST_KEY]
    except (ValueError, KeyError, TypeError):
        raise BundleError(
            f"{file} is damaged (not a manifest); restore it, or export again"
        ) from None
    # A newer schema may hash differently, so it is told apart first.
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"{file} has schema {schema}, this version reads {SCHEMA}; "
            "pip install --upgrade rvos-deploy"
        )
    if not isinstance(digest, str) or digest != _manifest_digest(raw, digest):
        raise BundleError(
            f"{file} was changed since the export (its sha256 differs); restore it, or export again"
        )
    if schema != SCHEMA:
        raise BundleError(
            f"{file} has schema {schema}, this version reads {SCHEMA}; export the bundle again"
        )
    return dict(manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any], files: list[str]) -> None:
    """Write the manifest with the hashes of ``files`` and of itself."""
    entries = {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(files)
    }
    content = {"schema": SCHEMA, _DIGEST_KEY: _NO_DIGEST, **manifest, "files": entries}
    text = json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(text.replace(_NO_DIGEST, digest, 1), encoding="utf-8")


def _manifest_digest(raw: bytes, digest: str) -> str:
    """Hash of the manifest as it was before its own hash was put in."""
    return hashlib.sha256(raw.replace(digest.encode(), _NO_DIGEST.encode(), 1)).hexdigest()


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    if Path(name).name != name:
        raise BundleError(f"{folder / MANIFEST} names a file outside the bundle: {name}")
    file = folder / name
    if not file.is_file():
        raise BundleError(f"{file} is missing; copy the whole bundle again, or export again")
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise BundleError(
            f"{file} has {size} bytes, its manifest says {entry['bytes']}; "
            "copy the bundle again, or export again"
        )
    if sha256_file(file) != entry["sha256"]:
        raise BundleError(
            f"{file} was changed since the export (its sha256 differs); "
            "copy the bundle again, or export again"
        )
