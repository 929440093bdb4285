"""The commands of docs/evaluation.md, as they are written, in their order."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.slow
def test_the_commands_run_as_written(
    rvos: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "rvos-deploy"
        result = rvos(*arguments)
        assert (result.code, result.stderr) == (0, ""), line
        if "--sweep-threshold" in arguments:
            copy, change = map(shlex.split, result.stdout.splitlines()[-2:])
            shutil.copytree(*copy[-2:])  # cp -r FROM TO
            assert rvos(*change[1:]).code == 0
            assert change[2] == "my-tiny"
    assert {path.name for path in tmp_path.iterdir()} == {
        "choose", "report", "my-tiny", "sweep.json", "sweep.csv", "submission.zip",
    }  # fmt: skip
