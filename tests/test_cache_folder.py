"""Where fetched files and timings are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rvos_deploy.cache_folder import VARIABLE, cache_folder


@pytest.mark.parametrize(
    ("platform", "variables", "found"),
    [
        ("linux", {}, "home/.cache/rvos-deploy"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/rvos-deploy"),
        ("linux", {"XDG_CACHE_HOME": "xdg", VARIABLE: "mine"}, "mine"),
        ("linux", {VARIABLE: ""}, "home/.cache/rvos-deploy"),
        ("darwin", {}, "home/Library/Caches/rvos-deploy"),
        ("win32", {}, "home/AppData/Local/rvos-deploy"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/rvos-deploy"),
    ],
)
def test_the_folder_is_where_the_system_keeps_caches(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    platform: str,
    variables: dict[str, str],
    found: str,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    assert cache_folder() == tmp_path / found
