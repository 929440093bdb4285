"""Files of expressions: each form, and what each refuses in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rvos_deploy.batch.expressions_file import read_expressions
from rvos_deploy.errors import InputError


def pairs(path: Path) -> list[tuple[str | None, str]]:
    return [(row.video, row.text) for row in read_expressions(path).rows]


def written(path: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


PAIRS = [("a.mp4", "the dog, running"), ("b", "ein Hund läuft"), ("a.mp4", "the cat")]


@pytest.mark.parametrize("mark", ["", "\ufeff"])  # a spreadsheet begins a CSV with a mark
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(tmp_path: Path, mark: str, end: str) -> None:
    lines = [mark + "video,note,expression"]
    lines += [f'{video},x,"{text}"' for video, text in PAIRS] + [",,", ""]
    file = tmp_path / "a.csv"
    file.write_bytes(end.join(lines).encode())
    assert pairs(file) == PAIRS


def test_expressions_of_every_video(tmp_path: Path) -> None:
    texts = [(None, "the dog"), (None, "the cat")]
    assert pairs(written(tmp_path / "a.csv", "expression\nthe dog\nthe cat\n")) == texts
    assert pairs(written(tmp_path / "a.json", ["the dog", "the cat"])) == texts


def test_json(tmp_path: Path) -> None:
    rows = [{"video": video, "expression": text} for video, text in PAIRS]
    assert pairs(written(tmp_path / "rows.json", rows)) == PAIRS
    by_video = {"a.mp4": ["the dog, running", "the cat"], "videos": ["ein Hund läuft"]}
    found = pairs(written(tmp_path / "by-video.json", by_video))
    assert found == [(v, text) for v, texts in by_video.items() for text in texts]


def test_mevis(tmp_path: Path) -> None:
    expressions = {"0": {"exp": "the dog"}, "1": {"exp": "the cat", "obj_id": [1]}}
    videos = {"v1": {"frames": ["00000"], "expressions": expressions}}
    file = written(tmp_path / "meta_expressions.json", {"videos": videos})
    assert pairs(file) == [("v1", "the dog"), ("v1", "the cat")]
    assert read_expressions(file).folder == tmp_path / "JPEGImages"


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(zip(("video", "expression"), map(list, zip(*PAIRS, strict=True)), strict=True))
    parquet.write_table(arrow.table({**columns, "x": [1, 2, 3]}), tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == PAIRS
    parquet.write_table(arrow.table({"expression": ["dog", None]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"row 1: 'expression' is blank"):
        read_expressions(tmp_path / "b.parquet")
    parquet.write_table(arrow.table({"expression": [1, 2]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"row 0: 'expression' is not text"):
        read_expressions(tmp_path / "c.parquet")
    for content in (b"", b"PAR1" * 9):
        (tmp_path / "d.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"d\.parquet is not valid Parquet"):
            read_expressions(tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"e\.parquet cannot be read"):
        read_expressions(tmp_path / "e.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow, or give a"):
        read_expressions(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.txt", "the dog", r"\.txt is not a known kind .*\.csv, \.json or \.parquet"),
        ("a", "the dog", "no suffix is not a known kind"),
        ("a.csv", "", r"the columns must be .* found none"),
        ("a.csv", "clip,text\na,b\n", "found clip, text"),
        ("a.csv", "expression,expression\na,b\n", "found expression, expression"),
        ("a.csv", "video,expression\n", "holds no expression"),
        ("a.csv", "video,expression\na.mp4,\n", "line 2: 'expression' is blank"),
        ("a.csv", "video,expression\na.mp4\n", "line 2: 'expression' is blank"),
        ("a.csv", "video,expression\n ,the dog\n", "line 2: 'video' is blank"),
        ("a.csv", "video,expression\na.mp4,the dog, running\n", "line 2: more cells than col"),
        ("a.csv", 'video,expression\na.mp4,"the dog\n', "is not valid CSV"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "3", "the file: expected a list of texts"),
        ("a.json", "[]", "holds no expression"),
        ("a.json", '["the dog", " "]', "1: the text is blank"),
        ("a.json", '[["the dog"]]', "0: expected an object"),
        ("a.json", '[{"video": "a"}]', "0: 'expression' is missing"),
        ("a.json", '{"a.mp4": "the dog"}', "a.mp4: expected a list"),
        ("a.json", '{"a.mp4": [3]}', "a.mp4/0: expected a string"),
        ("a.json", '{"videos": {"v": {"expressions": {"0": {"exp": ""}}}}}', "is blank"),
        ("a.json", '{"videos": {"v/../w": {"expressions": {}}}}', "not the name of a file"),
    ],
)
def test_refused(tmp_path: Path, name: str, content: str, found: str) -> None:
    with pytest.raises(InputError, match=found) as error:
        read_expressions(written(tmp_path / name, content))
    assert str(tmp_path / name) in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("expression\nläuft\n".encode("latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_expressions(tmp_path / "latin.csv")
    for name in ("none.csv", "none.json"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            read_expressions(tmp_path / name)
