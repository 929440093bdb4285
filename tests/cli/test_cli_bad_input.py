"""Bad input: one line that says what is wrong and what to do, exit code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from rvos_deploy.bundle.folder import GOLDEN, MANIFEST, PARITY, PYTORCH, TOKENIZER, write_manifest
from rvos_deploy.networks.pan2024.contract import GRAPHS

BUNDLE_FILES = (*(f"{name}.onnx" for name in GRAPHS), TOKENIZER, PARITY, PYTORCH, GOLDEN, MANIFEST)


@pytest.fixture
def refused(rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path) -> Callable[..., str]:
    """Call ``run`` and give its one line; the exit code is 2 and no folder was made."""

    def call(
        *options: object,
        source: Path = video,
        expression: str = "the dog",
        bundle: Path = tiny_bundle,
    ) -> str:
        out = tmp_path / "out"
        result = rvos("run", source, "-b", bundle, "-o", out, *options, "--", expression)
        assert result.code == 2
        assert not out.exists()
        return str(result.error)

    return call


def test_a_file_that_is_not_there(process: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    gone, out = tmp_path / "gone.mp4", tmp_path / "out"
    result = process("run", gone, "the dog", "-b", tiny_bundle, "-o", out)
    assert result.code == 2
    assert str(gone) in result.error
    assert "check the path" in result.error
    assert not out.exists()


def test_a_file_that_is_no_video(process: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    noise, out = tmp_path / "noise.mp4", tmp_path / "out"
    noise.write_bytes(bytes(range(256)) * 40)
    result = process("run", noise, "the dog", "-b", tiny_bundle, "-o", out)
    assert result.code == 2
    assert f"{noise} is not a video" in result.error
    assert "needed: a video file" in result.error
    assert not out.exists()


def test_an_empty_file(refused: Callable[..., str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    error = refused(source=empty)
    assert "empty (0 bytes)" in error
    assert "copy or record it again" in error


def test_a_video_of_no_frames(refused: Callable[..., str], tmp_path: Path) -> None:
    source = tmp_path / "none.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        container.start_encoding()
    error = refused(source=source)
    assert str(source) in error
    assert "copy the video again" in error


def test_a_video_whose_every_frame_is_damaged(refused: Callable[..., str], video: Path) -> None:
    content = video.read_bytes()
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    video.write_bytes(content[:start] + bytes(end - start) + content[end:])
    error = refused(source=video)
    assert f"no frame of {video.name}" in error
    assert "record or convert it again" in error


def test_a_folder_without_images(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "readme.txt").touch()
    error = refused(source=folder)
    assert f"{folder} holds no image" in error
    assert "put frames there" in error


@pytest.mark.parametrize("text", ["", " \t\n", "&#32;"])
def test_an_empty_expression(refused: Callable[..., str], text: str) -> None:
    error = refused(expression=text)
    assert "is empty; say what to segment" in error


def test_no_expression(rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    result = rvos("run", video, "-b", tiny_bundle, "-o", tmp_path / "out")
    assert result.code == 2
    assert "missing argument 'EXPRESSION'" in result.error
    assert "rvos-deploy run --help" in result.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("100x100", "not a multiple of 32; the nearest that is: 96x96"),
        ("0x32", "the nearest that is: 32x32"),
        ("256", "not of the form HxW, for example 256x448"),
        ("256x448x3", "not of the form HxW"),
        ("-32x32", "not of the form HxW"),
        ("largexsmall", "not of the form HxW"),
    ],
)
def test_a_size_that_cannot_be(refused: Callable[..., str], size: str, message: str) -> None:
    error = refused("--size", size)
    assert f"size {size}" in error or f"size '{size}'" in error
    assert message in error


def test_a_size_of_thousands_of_digits(refused: Callable[..., str]) -> None:
    error = refused("--size", "9" * 5000 + "x64")
    assert "is not of the form HxW, for example 256x448" in error
    assert len(error) < 200


@pytest.mark.parametrize("threshold", ["1.01", "-0.1", "nan"])
def test_a_threshold_out_of_range(refused: Callable[..., str], threshold: str) -> None:
    assert "threshold must lie in 0..1" in refused(f"--threshold={threshold}")


@pytest.mark.parametrize("options", [("--mode", "offline"), ()], ids=["asked for", "a file's mode"])
def test_lookahead_offline(refused: Callable[..., str], options: tuple[str, ...]) -> None:
    error = refused(*options, "--lookahead", "2")
    assert "lookahead 2 has no meaning offline" in error
    assert "use mode online" in error


def test_out_is_a_file(rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine", encoding="utf-8")
    result = rvos("run", video, "the dog", "-b", tiny_bundle, "-o", out)
    assert result.code == 2
    assert "choose a folder for --out" in result.error
    assert out.read_text(encoding="utf-8") == "mine"


@pytest.fixture(params=["run", "verify", "inspect", "benchmark"])
def opens_bundle(
    request: pytest.FixtureRequest, rvos: Callable, video: Path, tmp_path: Path
) -> Callable[[Path], str]:
    """Give a bundle to a command and return its one line; exit code 2, nothing written."""
    before = set(tmp_path.iterdir())

    def call(bundle: Path) -> str:
        known = before | {bundle}
        arguments = {
            "run": (video, "the dog", "--bundle", bundle, "--out", tmp_path / "out"),
            "benchmark": ("--bundle", bundle, "--json", tmp_path / "result.json"),
        }
        result = rvos(
            request.param,
            *arguments.get(request.param, (bundle, "--json", tmp_path / "result.json")),
        )
        assert result.code == 2
        assert set(tmp_path.iterdir()) <= known
        return str(result.error)

    return call


def test_a_bundle_that_is_not_there(opens_bundle: Callable[[Path], str], tmp_path: Path) -> None:
    error = opens_bundle(tmp_path / "none")
    assert f"{tmp_path / 'none'} is not a bundle (no such folder; packaged ones: " in error
    assert "rvos-deploy export tiny --random-weights" in error


def test_a_folder_that_is_no_bundle(opens_bundle: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "no manifest.json in it" in opens_bundle(tmp_path / "folder")


@pytest.mark.parametrize("consistent", [True, False])
def test_a_bundle_of_a_newer_schema(
    opens_bundle: Callable[[Path], str],
    bundle_copy: Callable[..., Path],
    rewrite: Callable[..., None],
    consistent: bool,
) -> None:
    """Newer schemas may hash differently: whether ours agrees with the hash does not matter."""
    folder = bundle_copy(MANIFEST)
    if consistent:
        rewrite(folder, schema=2)
    else:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        text = json.dumps({**manifest, "schema": 7, "manifest_sha512": "?"})
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    error = opens_bundle(folder)
    assert "this version reads 1" in error
    assert "pip install --upgrade rvos-deploy" in error


def test_a_missing_file(
    opens_bundle: Callable[[Path], str], bundle_copy: Callable[..., Path]
) -> None:
    folder = bundle_copy()
    (folder / "mask_head.onnx").unlink()
    error = opens_bundle(folder)
    assert "mask_head.onnx is missing" in error
    assert "copy the whole bundle again" in error


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_every_file_of_the_bundle_is_tried(tiny_bundle: Path) -> None:
    # A bundle that RVOS_TEST_BUNDLE names may be older than golden vectors.
    assert {file.name for file in tiny_bundle.iterdir()} | {GOLDEN} == set(BUNDLE_FILES)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("name", BUNDLE_FILES)
@pytest.mark.parametrize("command", ["run", "verify"])
def test_one_flipped_bit_in_any_file(
    rvos: Callable,
    tiny_bundle: Path,
    bundle_copy: Callable[..., Path],
    video: Path,
    tmp_path: Path,
    command: str,
    name: str,
    place: str,
) -> None:
    if not (tiny_bundle / name).exists():
        pytest.skip("the bundle that RVOS_TEST_BUNDLE names is older than golden vectors")
    folder, out = bundle_copy(name), tmp_path / "out"
    size = (folder / name).stat().st_size
    flip(folder / name, {"first": 0, "middle": size // 2, "last": size - 1}[place])
    if command == "run":
        result = rvos("run", video, "the dog", "-b", folder, "-o", out)
    else:
        result = rvos("verify", folder, "--json", out)
    assert result.code == 2
    assert str(folder / name) in result.error
    assert "export again" in result.error
    assert not out.exists()


@pytest.mark.parametrize("key", ["schema", "manifest_sha256", "sha256", "bytes", "threshold"])
def test_one_flipped_bit_in_a_value_of_the_manifest(
    rvos: Callable, bundle_copy: Callable[..., Path], key: str
) -> None:
    folder = bundle_copy(MANIFEST)
    raw = (folder / MANIFEST).read_bytes()
    colon = raw.index(f'"{key}": '.encode()) + len(f'"{key}": ')
    flip(folder / MANIFEST, colon + 1 if raw[colon : colon + 1] == b'"' else colon)
    result = rvos("inspect", folder)
    assert result.code == 2
    assert str(folder / MANIFEST) in result.error


def test_unknown_preset(rvos: Callable, tmp_path: Path) -> None:
    result = rvos("export", "huge", "--random-weights", "--out", tmp_path / "bundle")
    assert result.code == 2
    assert result.error == (
        "'huge' is neither the folder of a training run, nor a recipe (a .toml file, or "
        "mevis_large, mevis_tiny, sprites_tiny), nor a preset (large, large-paper, base, tiny); "
        "check the name"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Change a bundle's manifest and sign it again, as no damage could."""

    def change(folder: Path, **changes: object) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = list(manifest.pop("files"))
        for key in ("schema", "manifest_sha256"):
            del manifest[key]
        write_manifest(folder, {**manifest, **changes}, names)

    return change


def test_a_json_file_that_cannot_be_written(
    rvos: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = rvos("inspect", tiny_bundle, "--json", tmp_path / "file" / "result.json")
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / "file") in line
