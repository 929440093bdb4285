"""Damaged JSON and bytes by kind, and what must come of them: shared by the tests of bundles."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from rich.console import Console

from rvos_deploy.bundle.folder import (
    GOLDEN,
    MANIFEST,
    PARITY,
    PYTORCH,
    TOKENIZER,
    Bundle,
    open_bundle,
    write_manifest,
)
from rvos_deploy.bundle.manifest import plain
from rvos_deploy.cli import inspect as inspect_command
from rvos_deploy.cli.parity_table import parity_table
from rvos_deploy.errors import RvosError
from rvos_deploy.parity.verification import read_reference

Attempt = Callable[[str], AbstractContextManager[None]]
Resign = Callable[..., None]
Place = tuple[str | int, ...]
NO_DIGEST = b"0" * 64
_MARK = "@fragment@"

FRAGMENTS: tuple[bytes, ...] = (
    *(b"null", b"true", b"false", b"0", b"-1", b"1", b"2", b"1.5", b"-0.0", b"1e999", b"-1e999"),
    *(b"NaN", b"Infinity", b"9" * 5000, b"0.5", b"64", b"1048577", b"2147483648"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809"),
    *(b'""', b'"H/x"', b'"H/0"', b'"H/4"', b'"Q"', b'"E"', b'"float64"', b'"object"', b'"x"'),
    *(b'"../x"', b'"/etc/passwd"', b'"."', b'"manifest.json"', b'"mask_head.onnx"'),
    *(b'"\\ud800"', b'"\xff\xfe"', b'"\\u0000"', b'"\\u001b[2J"', b'"[/red]"', b'"\\u202e"'),
    *(b'"' + b"x" * 100_000 + b'"', b"[]", b"{}", b"[[]]", b"[0]", b"[null,1]", b'{"a":1,"a":2}'),
    *(b"[" * 200_000, b"[" * 200_000 + b"]" * 200_000, b'{"a":' * 100_000, b"", b"}", b'"'),
    *(b'{"sha256":"' + NO_DIGEST + b'","bytes":0}', b'[{"name":"E","minimum":1,"maximum":4}]'),
)
"""JSON, and what is none, to stand in the place of a value."""

EDITS = ("replace", "delete", "rename", "double", "cut", "grow")


def paths(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where every value of a JSON tree stands, the whole included."""
    yield at
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from paths(child, (*at, key))


def damaged(tree: Any, path: Place, edit: str, fragment: bytes = b"null") -> bytes:
    """The tree as JSON, with one edit at one place."""
    if not path:
        return fragment
    tree = copy.deepcopy(tree)
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    value = holder[key]
    if edit == "delete":
        del holder[key]
    elif edit == "rename" and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif edit == "double" and isinstance(holder, list):
        holder.insert(int(key), value)
    elif edit == "cut" and isinstance(value, (list, str)):
        holder[key] = value[:-1]
    elif edit == "grow" and isinstance(value, (list, str)):
        holder[key] = value + value
    else:
        holder[key] = _MARK
    return json.dumps(tree, indent=1).encode().replace(f'"{_MARK}"'.encode(), fragment, 1)


def signed(manifest: bytes) -> bytes:
    """The manifest with the hash that makes it pass for an export's."""
    digest = hashlib.sha256(manifest).hexdigest().encode()
    return manifest.replace(NO_DIGEST, digest, 1)


def json_damage(tree: Any) -> st.SearchStrategy[bytes]:
    """Up to three edits would hide one another: one edit anywhere in the tree."""
    return st.builds(
        damaged,
        st.just(tree),
        st.sampled_from(list(paths(tree))),
        st.sampled_from(EDITS),
        st.sampled_from(FRAGMENTS),
    )


@st.composite
def byte_damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut, flipped, left out, doubled, or written over."""
    at = draw(st.integers(0, len(content) - 1))
    length = draw(st.sampled_from((1, 2, 8, 64, 4096)))
    kind = draw(st.sampled_from(("cut", "flip", "leave out", "double", "zero", "ones", "prepend")))
    piece = content[at : at + length]
    middle = {
        "cut": None,
        "flip": bytes([piece[0] ^ 1 << draw(st.integers(0, 7))]) + piece[1:],
        "leave out": b"",
        "double": piece * 2,
        "zero": bytes(len(piece)),
        "ones": b"\xff" * len(piece),
        "prepend": b"\0" + piece,
    }[kind]
    return content[:at] if middle is None else content[:at] + middle + content[at + length :]


quick = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
many = settings(quick, max_examples=4000, derandomize=False)


def ends_well(work: Callable[[], Any]) -> str:
    """The one line that ``work`` was refused with, or nothing; any other exception is a fault."""
    try:
        work()
    except RvosError as error:
        text = str(error)
        assert text.isprintable(), f"more than a line, or not for a terminal: {text!r}"
        assert len(text) < 2000
        return text
    return ""


def linked(bundle: Path, folder: Path, *changed: str) -> Path:
    """A bundle of links, but for the files named, which are copies to be changed."""
    folder.mkdir()
    for file in bundle.iterdir():
        if file.name in changed:
            shutil.copy(file, folder)
        else:
            (folder / file.name).symlink_to(file)
    return folder


def show(bundle: Bundle) -> None:
    """What ``inspect`` prints and writes of a bundle, and ``verify`` reads."""
    console = Console(file=StringIO(), width=100)
    console.print(inspect_command._fact_table(bundle), inspect_command._graph_table(bundle))
    console.print(parity_table([plain(check) for check in bundle.manifest.parity.checks], 120))
    json.dumps(bundle.manifest.as_dict(), allow_nan=False)
    read_reference(bundle)


_OWN = ("schema", "manifest_sha256")


def hollow_bundle(bundle: Path, folder: Path) -> Path:
    """The bundle with a few bytes for every graph, which opens in a moment."""
    folder.mkdir()
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    for name in manifest["graphs"]:
        (folder / f"{name}.onnx").write_bytes(b"a graph")
    (folder / TOKENIZER).write_bytes(b"a tokenizer")
    for name in (PARITY, PYTORCH, GOLDEN):
        if name in manifest["files"]:
            shutil.copy(bundle / name, folder)
    checks = manifest["parity"]["checks"]
    manifest["parity"]["checks"] = [checks[0], checks[-1]]
    names = list(manifest.pop("files"))
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in _OWN}, names)
    show(open_bundle(folder))
    return folder


def unsigned_manifest(hollow: Path) -> dict[str, Any]:
    """The hollow bundle's manifest, unsigned."""
    content = json.loads((hollow / MANIFEST).read_text(encoding="utf-8"))
    return {**content, "manifest_sha256": NO_DIGEST.decode()}


def opened_line(hollow: Path, manifest: bytes) -> str:
    """Put a manifest in place, open and show the bundle; the line that it was refused with."""
    (hollow / MANIFEST).write_bytes(signed(manifest))
    return ends_well(lambda: show(open_bundle(hollow)))
