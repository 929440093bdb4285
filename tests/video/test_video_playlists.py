"""A file or pipe opens nothing but itself: the canary is a clip that a playlist names."""

from __future__ import annotations

import http.server
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import pytest
from video_clips import encode, moving_images

from rvos_deploy.errors import VideoError
from rvos_deploy.video import open_video
from rvos_deploy.video.sources.demuxers import input_options
from rvos_deploy.video.sources.options import SourceOptions

FRAMES = 6
SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A transport stream of six frames: whoever sees them has opened it."""
    (tmp_path / "private").mkdir()
    return encode(tmp_path / "private" / "canary.ts", moving_images(FRAMES))


def hls(address: object) -> str:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"


def hls_with_map(address: object) -> str:
    """The address as the initialisation section of an MP4 playlist."""
    return hls(address).replace("#EXTINF", f'#EXT-X-MAP:URI="{address}"\n#EXTINF')


def hls_with_key(address: object) -> str:
    return hls(address).replace("#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{address}"\n#EXTINF')


def hls_of_playlists(address: object) -> str:
    return f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{address}\n"


def concat(address: object) -> str:
    return f"ffconcat version 1.0\nfile '{address}'\n"


def concat_safe(address: object) -> str:
    return f"ffconcat version 1.0\nfile {Path(str(address)).name}\n"


PLAYLISTS: dict[str, Callable[[object], str]] = {
    "a.m3u8": hls, "map.m3u8": hls_with_map, "key.m3u8": hls_with_key,
    "master.m3u8": hls_of_playlists, "a.m3u": hls, "a.ffconcat": concat, "a.txt": concat,
    "safe.ffconcat": concat_safe, "a.sdp": lambda _: SDP,
}  # fmt: skip
LYING = ["clip.mp4", "clip.jpg", "clip"]


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_local_playlist_opens_nothing(canary: Path, name: str) -> None:
    path = canary.parent / name
    path.write_text(PLAYLISTS[name](canary))
    with pytest.raises(VideoError, match="--allow-playlists") as caught:
        open_video(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "file:", "file://"])
@pytest.mark.parametrize("lying", LYING)
@pytest.mark.parametrize("make", [hls, concat, concat_safe, lambda _: SDP])
def test_a_playlist_under_another_name_opens_nothing(
    canary: Path, make: Callable[[object], str], lying: str, scheme: str
) -> None:
    path = canary.parent / lying
    path.write_text(make(f"{scheme}{canary}"))
    with pytest.raises(VideoError):
        open_video(path)


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_piped_playlist_opens_nothing(
    canary: Path, piped: Callable[[bytes], str], name: str
) -> None:
    with pytest.raises(VideoError, match="standard input"):
        open_video(piped(PLAYLISTS[name](canary).encode()))


@pytest.mark.parametrize("source", ["concat:{0}", "concat:{0}|{0}", "subfile,,start,0,end,0,,:{0}",
                                    "crypto:{0}", "async:{0}", "cache:{0}"])  # fmt: skip
def test_protocols_that_wrap_files_are_refused(canary: Path, source: str) -> None:
    with pytest.raises(VideoError):
        open_video(source.format(canary))


@pytest.mark.parametrize("format", ["concat", "hls", "sdp", "lavfi"])
def test_a_named_demuxer_does_not_let_them_in(canary: Path, format: str) -> None:
    path = canary.parent / "a.txt"
    path.write_text(concat(canary))
    with pytest.raises(VideoError):
        open_video(path, options=SourceOptions(format=format))


def test_a_pattern_is_a_name(tmp_path: Path) -> None:
    """image2 would read frame1.ppm, frame2.ppm, ... of the folder for this one."""
    for name in ("frame%d.ppm", "frame1.ppm", "frame2.ppm"):
        (tmp_path / name).write_bytes(b"P6 4 4 255 " + bytes(48))
    with open_video(tmp_path / "frame%d.ppm") as reader:
        assert len(list(reader)) == 1


@pytest.mark.parametrize("name", ["a.m3u8", "a.ffconcat"])
def test_playlists_open_where_they_are_allowed(canary: Path, name: str) -> None:
    path = canary.parent / name
    text = PLAYLISTS[name](canary if name == "a.m3u8" else canary.name)
    path.write_text(text)
    with open_video(path, options=SourceOptions(allow_playlists=True)) as reader:
        assert len(list(reader)) == FRAMES


def external_media(canary: Path, path: Path) -> Path:
    """A QuickTime file without media data, which says that it lies in ``canary``, an MP4."""
    data = canary.read_bytes()

    def boxes(start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        while start < end:
            (size,) = struct.unpack_from(">I", data, start)
            yield data[start + 4 : start + 8], start, start + size
            start += size

    def rewritten(start: int, end: int) -> bytes:
        out = b""
        for kind, first, last in boxes(start, end):
            if kind == b"dref":
                body = bytes(4) + struct.pack(">I", 1) + alias()
            elif kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                body = rewritten(first + 8, last)
            else:
                body = data[first + 8 : last]
            out += struct.pack(">I", len(body) + 8) + kind + body
        return out

    def alias() -> bytes:
        """An alias record (libavformat's mov_read_dref): volume, name, then the absolute path."""
        name, full = canary.name.encode(), str(canary).encode()
        record = bytes(10) + b"\1" + b"v".ljust(27, b"\0") + bytes(12)
        record += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
        record += struct.pack(">HH", 1, 1) + bytes(16)
        record += struct.pack(">HH", 2, len(full)) + full + bytes(len(full) % 2)
        record += struct.pack(">HH", 0xFFFF, 0)
        return struct.pack(">I4sI", len(record) + 12, b"alis", 0) + record

    kept = [box for box in boxes(0, len(data)) if box[0] in (b"ftyp", b"moov")]
    path.write_bytes(b"".join(
        data[first:last] if kind == b"ftyp"
        else struct.pack(">I", len(body := rewritten(first + 8, last)) + 8) + kind + body
        for kind, first, last in kept
    ))  # fmt: skip
    return path


def test_media_data_in_another_file_is_not_read(tmp_path: Path) -> None:
    canary = encode(tmp_path / "canary.mp4", moving_images(FRAMES))
    path = external_media(canary, tmp_path / "outside.mov")
    enabled = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(path), options=enabled) as container:  # the trap works where it is let
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
    with pytest.raises(VideoError, match=r"no frame of outside\.mov"):
        open_video(path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def test_a_playlist_of_a_server_is_a_live_stream(served: tuple[str, Path]) -> None:
    address, folder = served
    encode(folder / "a.ts", moving_images(FRAMES))
    (folder / "live.m3u8").write_text(hls(f"{address}/a.ts"))
    with open_video(f"{address}/live.m3u8") as reader:
        assert len(list(reader)) == FRAMES


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("scheme", ["", "file:", "file://", "crypto:", "concat:", "subfile,,:"])
@pytest.mark.parametrize("make", [hls, hls_with_map, hls_of_playlists, concat])
def test_a_playlist_of_a_server_reaches_no_local_file(
    served: tuple[str, Path],
    canary: Path,
    make: Callable[[object], str],
    scheme: str,
    allowed: bool,
) -> None:
    address, folder = served
    (folder / "live.m3u8").write_text(make(f"{scheme}{canary}"))
    with pytest.raises(VideoError):
        open_video(f"{address}/live.m3u8", options=SourceOptions(allow_playlists=allowed))


def test_the_lists_keep_every_ordinary_demuxer() -> None:
    allowed = input_options("local", allow_playlists=False)["format_whitelist"].split(",")
    assert {"mov", "matroska", "webm", "avi", "mpegts", "gif", "apng", "mjpeg", "flv"} <= {*allowed}
    assert not {"hls", "concat", "sdp", "rtsp", "lavfi"} & {*allowed}
    streaming = input_options("url", allow_playlists=False)["format_whitelist"].split(",")
    assert {"hls", "rtsp", "sdp"} <= {*streaming}
    assert "concat" not in streaming
    assert "file" not in input_options("url", allow_playlists=True)["protocol_whitelist"].split(",")
