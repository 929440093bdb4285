"""The README's table and plot of speeds come from the committed result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rvos_deploy.errors import InputError
from rvos_deploy.files import sha256_file

pytest.importorskip("matplotlib")

from rvos_deploy.benchmarks.studies.readme_table import (
    BEGIN,
    END,
    PLOT,
    README,
    RESULT,
    ROOT,
    plot,
    readme_table,
    with_table,
)

AGAIN = "run 'python -m rvos_deploy.benchmarks.studies.readme_table'"


def test_the_table_is_that_of_the_result() -> None:
    record = json.loads((ROOT / RESULT).read_text(encoding="utf-8"))
    readme = (ROOT / README).read_text(encoding="utf-8")
    assert readme == with_table(readme, record), AGAIN
    table = readme_table(record)
    header, rule, *rows = (line for line in table.splitlines() if line.startswith("|"))
    assert rows
    assert header.count("|") == rule.count("|")
    assert {row.count("|") for row in rows} == {header.count("|")}
    # A changed figure changes the table.
    for section in record["sections"].values():
        for one in section.get("result", {}).get("contenders", {}).values():
            if "end_to_end" in one:
                one["end_to_end"]["milliseconds"]["p50"] += 1000
    assert readme_table(record) != table


def test_the_plot_is_that_of_the_result() -> None:
    with Image.open(ROOT / PLOT) as picture:
        assert picture.info["Source"] == sha256_file(ROOT / RESULT), AGAIN
        assert min(picture.size) > 200


def test_a_result_is_drawn(tmp_path: Path) -> None:
    record = json.loads((ROOT / RESULT).read_text(encoding="utf-8"))
    plot(record, ROOT / RESULT, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as again, Image.open(ROOT / PLOT) as committed:
        assert again.size == committed.size
        assert again.info["Source"] == committed.info["Source"]


def test_a_disturbed_result_says_so() -> None:
    record: dict[str, Any] = {
        "sections": {"one": {"status": "failed", "other_cores": 1.5}},
        "accuracy": {},
    }
    assert "**Preliminary.** Other processes kept up to 1.5 cores busy" in readme_table(record)
    record["sections"]["one"]["other_cores"] = 0.1
    assert "Preliminary" not in readme_table(record)


def test_a_readme_without_the_comments() -> None:
    record: dict[str, Any] = {"sections": {}, "accuracy": {}}
    with pytest.raises(InputError, match="put them back"):
        with_table(f"{BEGIN} but no end", record)
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", record).startswith(f"a\n{BEGIN}\n| milli")
