"""docs/graphs.md states the code's own contracts and constants."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rvos_deploy.bundle.manifest import Manifest
from rvos_deploy.graph_io import frame_geometry, input_size, probe, resampling
from rvos_deploy.networks.contract import Contract
from rvos_deploy.networks.online_refer import contract as online_refer
from rvos_deploy.networks.online_refer import tokenizer as roberta
from rvos_deploy.networks.online_refer.config import PADDING_ID
from rvos_deploy.networks.pan2024 import contract as pan2024
from rvos_deploy.networks.pan2024 import slots, tokenizer
from rvos_deploy.stream_settings import DEFAULT_MEMORY

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "graphs.md"
OF_SLOTS = {
    name: value
    for name, value in vars(slots).items()
    if name.isupper() and isinstance(value, (int, float))
}
CONSTANTS: Mapping[str, object] = {
    "STRIDE": input_size.STRIDE,
    "MASK_STRIDE": frame_geometry.MASK_STRIDE,
    "PADDING_COLOUR": frame_geometry.PADDING,
    "FIXED_BITS": resampling.FIXED_BITS,
    "CONTEXT_LENGTH": tokenizer.CONTEXT_LENGTH,
    "START_OF_TEXT": probe.START_OF_TEXT,
    "END_OF_TEXT": probe.END_OF_TEXT,
    "ROBERTA_START": roberta.START,
    "ROBERTA_PADDING": PADDING_ID,
    "ROBERTA_END": roberta.END,
    "DEFAULT_MEMORY": DEFAULT_MEMORY,
    **OF_SLOTS,
}
OF_MODULES = {"EMPTY_LOGIT"}
"""Constants of the modules, which import torch."""


def section(title: str) -> str:
    """The text under a heading of the second level."""
    return DOCUMENT.read_text(encoding="utf-8").split(f"\n## {title}\n", 1)[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without the head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def stated_constants() -> dict[str, str]:
    return {name: value for name, value, *_ in rows(section("Constants"))}


def value_of(text: str) -> object:
    numbers = tuple(ast.literal_eval(part.strip()) for part in text.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def test_every_constant_is_the_code_s() -> None:
    stated = stated_constants()
    assert len(OF_SLOTS) >= 13
    assert stated.keys() == CONSTANTS.keys() | OF_MODULES
    found = {name: value_of(value) for name, value in stated.items() if name not in OF_MODULES}
    assert found == CONSTANTS


def test_the_empty_logit_is_the_code_s() -> None:
    pytest.importorskip("torch")
    from rvos_deploy.networks.pan2024.modules.mask_head import EMPTY_LOGIT

    assert value_of(stated_constants()["EMPTY_LOGIT"]) == EMPTY_LOGIT


def test_every_constant_in_the_pseudo_code_is_in_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text)) - {"MODEL_NAME"}
    stated = stated_constants().keys()
    assert named <= stated
    used = text.split("\n## Constants\n")[0]
    assert [name for name in stated if not re.search(rf"\b{name}\b", used)] == []


@pytest.mark.parametrize("family", [pan2024, online_refer])
def test_every_tensor_is_the_contract_s(family: object) -> None:
    contracts: Mapping[str, Contract] = family.CONTRACTS  # type: ignore[attr-defined]
    name = "pan2024" if family is pan2024 else "online_refer"
    needed = [
        (graph, side, tensor, dtype, ", ".join(map(str, shape)))
        for graph, contract in contracts.items()
        for side, tensors in (("in", contract.inputs), ("out", contract.outputs))
        for tensor, (dtype, shape) in tensors.items()
    ]
    stated, graph = [], ""
    for cells in rows(section(f"Family `{name}`").split("\n### ")[0]):
        graph = cells[0].strip("`") or graph
        stated.append((graph, cells[1], cells[2].strip("`"), cells[3], cells[4]))
    assert stated == needed


def test_the_manifest_has_the_keys() -> None:
    named = {cells[0].strip("`") for cells in rows(section("The files").split("\n\nA shape")[0])}
    assert named == {"family", "graphs", "model", "thresholds", "files"}
    assert named <= set(Manifest.__struct_fields__)


@pytest.mark.parametrize("program", ["numpy_frames", "numpy_pan2024", "numpy_online_refer"])
def test_the_programs_import_nothing_of_ours(program: str) -> None:
    tree = ast.parse((Path(__file__).parent / f"{program}.py").read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    libraries = {"numpy", "onnxruntime", "PIL", "tokenizers", "scipy", "numpy_frames"}
    assert names <= libraries | sys.stdlib_module_names


def test_the_links_lead_somewhere() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", h.lower()).replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        assert (DOCUMENT.parent / file).exists(), target
        assert not anchor or file or anchor in anchors, target
