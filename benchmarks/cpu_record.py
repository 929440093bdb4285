"""Run the sections of the CPU benchmark, and keep their record: complete after every section."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvos_deploy.benchmarks.cpu_report import render
from rvos_deploy.benchmarks.cpu_sections import Section, Setup
from rvos_deploy.benchmarks.cpu_targets import evaluate
from rvos_deploy.benchmarks.other_work import other_work
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.files import write_text
from rvos_deploy.json_file import write_json

JSON_FILE, HTML_FILE = "cpu.json", "cpu.html"
NAME_AND_PATH = "NAME=PATH"
SCHEMA = "rvos-deploy/benchmark/cpu/1"


def run_sections(
    out: Path,
    record: dict[str, Any],
    sections: Mapping[str, Section],
    setup: Setup,
) -> None:
    """Run the sections that the record lacks, and write the record after each one.

    Args:
        out: folder of the results.
        record: a new record, or that of a run that was stopped; it is extended.
        sections: what is measured, by name.
        setup: what sections share.
    """
    for name, section in sections.items():
        if record["sections"].get(name, {}).get("status") == "done":
            continue
        setup.progress(name)
        record["sections"][name] = _guarded(section, setup)
        finish(out, record)


def finish(out: Path, record: dict[str, Any]) -> None:
    """Compare the record with the targets, and write it as JSON and as HTML."""
    judge(record)
    write_json(out / JSON_FILE, record)
    write_text(out / HTML_FILE, render(record))


def _guarded(section: Section, setup: Setup) -> dict[str, Any]:
    started = time.perf_counter()
    with other_work() as others:
        try:
            found: dict[str, Any] = {"status": "done", "result": section.work(setup)}
        except (RvosError, ImportError) as error:
            found = {"status": "failed", "reason": str(error)}
            setup.progress(f"failed: {error}")
    return {**found, "seconds": time.perf_counter() - started, **others}


def judge(record: dict[str, Any]) -> None:
    """Compare a record's results with the targets, and set ``targets`` and ``passed``."""
    results = results_of(record)
    record["targets"] = evaluate(results)
    record["refused"] = [
        f"{section}: {name}: {contender['refused']}"
        for section, result in results.items()
        for name, contender in result.get("contenders", {}).items()
        if "refused" in contender
    ]
    failed = [s for s in record["sections"].values() if s["status"] == "failed"]
    missed = [row for row in record["targets"] if row["status"] == "missed"]
    record["passed"] = not (failed or missed or record["refused"])


def results_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of the sections that are done, and ``accuracy``."""
    done = {
        name: section["result"]
        for name, section in record["sections"].items()
        if section["status"] == "done"
    }
    return {**done, "accuracy": record["accuracy"]}


def open_record(out: Path, request: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Return a new record, or the one that an earlier run with the same request left.

    Raises:
        InputError: the folder holds results of another request.
    """
    file = out / JSON_FILE
    if file.is_file() and not overwrite:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            same = record["schema"] == SCHEMA and record["request"] == request
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise InputError(
                f"{file} holds the results of other options or versions; choose another --out, or "
                "pass --overwrite"
            )
        return record
    libraries = ("torch", "onnxruntime", "openvino", "onnx", "av")
    return {
        "schema": SCHEMA,
        "command": "",
        "versions": versions(*libraries),
        "machine": machine(),
        "request": request,
        "accuracy": {},
        "sections": {},
        "targets": [],
        "refused": [],
        "passed": False,
    }


def named_paths(option: str, values: list[str] | None, known: Mapping[str, Any]) -> dict[str, Path]:
    """Read values of the form NAME=PATH.

    Raises InputError: a value has another form, or its name is unknown.
    """
    found = {}
    for value in values or ():
        name, equals, path = value.partition("=")
        if not equals or not path or name not in known:
            raise InputError(
                f"{option} '{value}' is not {NAME_AND_PATH} with a name of {', '.join(known)}"
            )
        found[name] = Path(path)
    return found


def read_accuracy(files: Mapping[str, Path]) -> dict[str, Any]:
    """Read what number formats lose, from files of ``studies.bundle_parity``.

    Raises InputError: a file is not such a result.
    """
    found = {}
    for name, file in files.items():
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found[name] = {
                "lost": float(record["lost"]),
                "expressions": int(record["expressions"]),
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} does not say what a number format loses ({error}); write it with "
                "'python -m rvos_deploy.benchmarks.studies.bundle_parity ... --json FILE'"
            ) from None
    return found
