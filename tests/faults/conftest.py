"""The fault suite counts what it tries: the counts stand in SECURITY.md and in reports."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# pytest's importlib mode leaves this folder off the path; tests here share damage.py.
sys.path.insert(0, str(Path(__file__).parent))

_tried: Counter[str] = Counter()
_held: Counter[str] = Counter()


@pytest.fixture(scope="session")
def attempt() -> Callable[[str], AbstractContextManager[None]]:
    """Count one damaged input, stop or race of a kind; it held when the block ends well."""

    @contextmanager
    def attempt(kind: str) -> Iterator[None]:
        _tried[kind] += 1
        yield
        _held[kind] += 1

    return attempt


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _tried:
        terminalreporter.section("fault suite")
        for kind, count in sorted(_tried.items()):
            terminalreporter.line(f"{kind}: {count} tried, {_held[kind]} held")
        terminalreporter.line(f"all: {_tried.total()} tried, {_held.total()} held")
