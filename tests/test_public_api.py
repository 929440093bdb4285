"""The public names and their signatures: a change of them is made on purpose, or not at all."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rvos_deploy

PINNED = Path(__file__).with_name("public_api.txt")
MADE = {"FrameMasks", "RunReport", "Segmenter", "Stream", "VideoReader"}
"""Classes that functions make: their constructors are not public, their attributes are."""


def described(name: str, value: object) -> list[str]:
    """A function's signature; a class's bases, constructor, and public methods and properties."""
    if not inspect.isclass(value):
        return [f"{name}{inspect.signature(value)}"]  # type: ignore[arg-type]
    if issubclass(value, Exception):
        return [f"{name}({', '.join(base.__name__ for base in value.__bases__)})"]
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    constructor = re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.signature(value)))
    lines = [name if name in MADE else f"{name}{constructor}"]
    lines += [f"    {field.name}: {field.type}" for field in fields if name in MADE]
    for attribute in sorted(vars(value).keys() | inherited(value)):
        if attribute.startswith("_") or attribute in {field.name for field in fields}:
            continue
        member = inspect.getattr_static(value, attribute)
        if isinstance(member, property):
            lines.append(f"    {attribute} -> {inspect.signature(member.fget).return_annotation}")  # type: ignore[arg-type]
        elif isinstance(member, (staticmethod, classmethod)) or inspect.isfunction(member):
            lines.append(f"    {attribute}{inspect.signature(getattr(value, attribute))}")
    return lines


def inherited(value: type) -> set[str]:
    """Names from this package's own base classes."""
    bases = [base for base in value.__mro__[1:] if base.__module__.startswith("rvos_deploy")]
    return {name for base in bases for name in vars(base)}


def test_names_and_signatures_are_those_that_are_pinned() -> None:
    lines = [
        line for name in rvos_deploy.__all__ for line in described(name, getattr(rvos_deploy, name))
    ]
    found = "\n".join(lines) + "\n"
    pinned = PINNED.read_text(encoding="utf-8")
    assert found == pinned, "the public API has changed: note it in CHANGELOG.md, and pin it here"


def test_every_name_is_there_and_no_other() -> None:
    assert rvos_deploy.__all__ == sorted(rvos_deploy.__all__)
    assert set(rvos_deploy.__all__) <= set(dir(rvos_deploy))
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        rvos_deploy.Segmentor  # noqa: B018


def test_every_public_name_has_a_docstring() -> None:
    for name in rvos_deploy.__all__:
        value = getattr(rvos_deploy, name)
        assert inspect.getdoc(value), name
        for attribute in vars(value) if inspect.isclass(value) else ():
            member = inspect.getattr_static(value, attribute)
            if not attribute.startswith("_") and isinstance(member, (property, staticmethod)):
                assert inspect.getdoc(member), f"{name}.{attribute}"


def test_the_import_brings_nothing_heavy() -> None:
    code = (
        "import sys, rvos_deploy; rvos_deploy.InputError;"
        "print([m for m in ('numpy', 'av', 'PIL', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
