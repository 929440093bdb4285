"""A video goes to a server, and a line for every frame comes back."""

from __future__ import annotations

import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import FRAMES, PATIENCE, TEXTS, Server
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from rvos_deploy.datasets.moving_sprites import sample_video

Lines = list[dict[str, Any]]


def post(server: Server, video: Path | None = None, **fields: object) -> httpx.Response:
    files = {"video": (video.name, video.read_bytes())} if video else {"video_": ("", b"")}
    texts = fields.pop("expression", TEXTS)
    data = {"expression": list(texts), **{key: str(value) for key, value in fields.items()}}
    return httpx.post(
        f"{server.address}/v1/segment",
        data=data,
        files=files if video else None,
        timeout=PATIENCE,
    )


def lines(response: httpx.Response) -> Lines:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def refused(response: httpx.Response, status: int, code: str, text: str) -> None:
    assert response.status_code == status, response.text
    content = response.json()
    assert (content["schema"], content["code"]) == ("rvos-deploy/error/1", code)
    assert text in content["message"]


def samples(server: Server) -> dict[tuple[str, str, str], float]:
    """Values by metric, kind and outcome."""
    text = httpx.get(f"{server.address}/metrics", timeout=PATIENCE).text
    return {
        (s.name, s.labels.get("kind", ""), s.labels.get("outcome", "")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if "le" not in s.labels
    }


def test_lines_equal_those_of_a_run(server: Server, clip: Path, lines_of: Callable) -> None:
    head, *frames, summary = lines(post(server, clip))
    assert head["schema"] == "rvos-deploy/stream/1"
    assert (head["width"], head["height"], head["expressions"]) == (224, 128, list(TEXTS))
    assert head["model"] == "tiny"
    assert len(head["manifest_sha256"]) == 64
    assert frames == lines_of(clip)
    assert any(row["area"] for frame in frames for row in frame["expressions"])
    assert summary["schema"] == "rvos-deploy/summary/1"
    assert (summary["frames"], summary["damage"]) == (FRAMES, None)


def test_options_are_those_of_a_run(server: Server, clip: Path, lines_of: Callable) -> None:
    answer = post(server, clip, threshold=0.2, lookahead=1, stride="2f", size="64x96")
    expected = lines_of(
        clip, "--threshold", 0.2, "--lookahead", 1, "--stride", "2f", "--size", "64x96"
    )
    assert lines(answer)[1:-1] == expected
    assert len(expected) == FRAMES // 2


def test_a_damaged_video_gives_the_frames_before_the_damage(
    server: Server, clip: Path, tmp_path: Path
) -> None:
    content = clip.read_bytes()
    damaged = tmp_path / "damaged.mp4"
    data = bytearray(content)
    begin = data.index(b"mdat")
    end = data.index(b"moov") if data.index(b"moov") > begin else len(data)
    data[begin + (end - begin) // 2 : end - 4] = bytes(end - 4 - begin - (end - begin) // 2)
    damaged.write_bytes(data)
    _, *frames, summary = lines(post(server, damaged))
    assert 0 < len(frames) == summary["frames"] < FRAMES
    assert summary["damage"]


@pytest.fixture
def web(clip: Path) -> Any:
    """Address of a folder with the clip, on loopback."""
    handler = partial(SimpleHTTPRequestHandler, directory=clip.parent)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    site = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{site.server_port}"
    site.shutdown()


def by_url(server: Server, url: str | None, **fields: object) -> httpx.Response:
    body = {"url": url, "expressions": list(TEXTS), **fields}
    return httpx.post(f"{server.address}/v1/segment", json=body, timeout=PATIENCE)


def test_a_url(server: Server, clip: Path, web: str, lines_of: Callable) -> None:
    assert lines(by_url(server, f"{web}/{clip.name}"))[1:-1] == lines_of(clip)
    refused(by_url(server, f"{web}/absent.mp4"), 422, "url", "answers with status 404")
    refused(by_url(server, "http://127.0.0.1:9/a.mp4"), 422, "url", "cannot be fetched")
    for url in ("file:///etc/passwd", "concat:a|b", str(clip), "ftp://a/b.mp4", "http://"):
        refused(by_url(server, url), 422, "url", "is not an http or https address")


def test_wrong_requests(server: Server, clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    refused(post(server, text), 422, "video", "video")
    refused(post(server, clip, expression=[]), 422, "no_expression", "say what to segment")
    refused(post(server, clip, expression=[" "]), 422, "wrong_field", "empty")
    refused(post(server, clip, colour="red"), 422, "wrong_field", "colour")
    refused(post(server, clip, threshold=2), 422, "wrong_field", "threshold must lie in 0..1")
    refused(post(server, clip, mode="fast"), 422, "wrong_field", "fast")
    refused(post(server, clip, start="soon"), 422, "wrong_field", "soon")
    refused(post(server, clip, size="3x3"), 422, "wrong_field", "multiple")
    refused(post(server), 415, "wrong_type", "x-www-form-urlencoded")
    refused(by_url(server, None), 422, "no_video", "exactly one video")
    raw = httpx.post(
        f"{server.address}/v1/segment", content=b"{", headers={"content-type": "application/json"}
    )
    refused(raw, 422, "wrong_field", "not valid JSON")
    assert httpx.get(f"{server.address}/v1/segment").status_code == 405
    assert httpx.get(f"{server.address}/elsewhere").status_code == 404


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        "ffconcat version 1.0\nfile '{clip}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.sdp"])
def test_an_upload_that_names_other_files_is_refused(
    server: Server, clip: Path, tmp_path: Path, content: str, name: str
) -> None:
    (tmp_path / name).write_text(content.replace("{clip}", str(clip)))
    assert post(server, tmp_path / name).status_code == 422


def test_pages_of_other_sites_are_refused(server: Server) -> None:
    url = f"{server.address}/readyz"
    for headers, status in (
        ({"origin": "https://example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "rebound.example.org"}, 403),
        ({"host": f"localhost:{server.port}"}, 200),
        ({"origin": server.address}, 200),
    ):
        answer = httpx.get(url, headers=headers)
        assert answer.status_code == status, headers
    live = f"ws{server.address.removeprefix('http')}/v1/live"
    with pytest.raises(InvalidStatus):
        connect(live, origin="https://example.org")


def test_limits(server: Server, clip: Path, tmp_path: Path) -> None:
    refused(post(server, clip, expression="abcd"), 413, "too_many_expressions", "at most 3")
    refused(post(server, clip, expression=["a" * 501]), 413, "expression_too_long", "at most 500")
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(2**20 + 1))
    refused(post(server, large), 413, "body_too_large", "larger than 1 MiB")
    sample_video(tmp_path / "long.mp4", seed=0, frames=14)
    *_, frame, last = lines(post(server, tmp_path / "long.mp4"))
    assert frame["index"] == 11
    assert (last["code"], last["schema"]) == ("too_many_frames", "rvos-deploy/error/1")
    assert len(lines(post(server, tmp_path / "long.mp4", max_frames=12))) == 14
    sample_video(tmp_path / "wide.mp4", seed=0, frames=8, size=(320, 384))
    refused(post(server, tmp_path / "wide.mp4"), 413, "frame_too_large", "at most 100000")


def open_stream(server: Server, clip: Path) -> tuple[http.client.HTTPConnection, Any]:
    """Begin a request whose answer is not read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    boundary, body = "x", io.BytesIO()
    body.write(b'--x\r\nContent-Disposition: form-data; name="expression"\r\n\r\nthe star\r\n')
    body.write(b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n')
    body.write(clip.read_bytes() + b"\r\n--x--\r\n")
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    connection.request("POST", "/v1/segment", body.getvalue(), headers)
    return connection, connection.getresponse()


def wait_for_no_stream(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while samples(server)[("rvos_streams", "", "")]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_streams_are_counted_and_freed(server: Server, clip: Path) -> None:
    """A body that never ends holds a stream; a client that leaves frees it."""
    head = (
        b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 1000\r\n\r\n--x\r\n"
    )
    wait_for_no_stream(server)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    for one in held:
        one.sendall(head)
    deadline = time.monotonic() + PATIENCE
    while samples(server)[("rvos_streams", "", "")] < 2:
        assert time.monotonic() < deadline
    answer = post(server, clip)
    refused(answer, 503, "too_many_streams", "all 2 streams")
    assert answer.headers["retry-after"] == "5"
    for one in held:
        one.close()
    wait_for_no_stream(server)
    assert lines(post(server, clip))[-1]["frames"] == FRAMES


def test_a_client_that_stops_sending_is_told(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(
            b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        one.settimeout(PATIENCE)
        answer = one.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 408")
    wait_for_no_stream(server)


def test_health_and_measurements(server: Server, clip: Path) -> None:
    assert httpx.get(f"{server.address}/healthz").json() == {"alive": True}
    ready = httpx.get(f"{server.address}/readyz").json()
    assert ready["ready"]
    assert ready["model"] == "tiny"
    assert ready["backend"]["name"] == "onnxruntime"
    before = samples(server)
    lines(post(server, clip))
    post(server, clip, expression=[])
    wait_for_no_stream(server)
    after = samples(server)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0)  # type: ignore[index]

    assert grown("rvos_requests_total", "segment", "done") == 1
    assert grown("rvos_requests_total", "segment", "no_expression") == 1
    assert grown("rvos_frames_total", "", "") == FRAMES
    assert grown("rvos_frame_interval_seconds_count", "", "") == FRAMES
    assert after[("rvos_streams", "", "")] == 0


def test_the_example(server: Server, clip: Path, lines_of: Callable) -> None:
    example = Path(__file__).parents[2] / "examples" / "serve_client.py"
    command = [sys.executable, example, server.address, clip]
    done = subprocess.run([*command, *TEXTS], capture_output=True, text=True, check=True)
    expected = [
        f"{line['index']} {row['score']:.2f} {row['area']} {row['text']}"
        for line in lines_of(clip)
        for row in line["expressions"]
    ]
    assert done.stdout.splitlines() == expected
    failed = subprocess.run([*command, "a" * 501], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "at most 500" in failed.stderr
