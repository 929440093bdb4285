"""How a server starts, admits, and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from served import FRAMES, PATIENCE, TEXTS, start_server
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from rvos_deploy.errors import InputError
from rvos_deploy.listening import is_loopback, url_of
from rvos_deploy.ray_cluster import Shares
from rvos_deploy.runtime.segmenter_options import SegmenterOptions
from rvos_deploy.serving.app import ServerOptions
from rvos_deploy.serving.downloads import is_public
from rvos_deploy.serving.measurements import Board, Measurements, joined
from rvos_deploy.serving.server import Place, serve_forever
from rvos_deploy.stream_settings import StreamSettings

TOKEN = "0123456789abcdef"
OPTIONS = ServerOptions(SegmenterOptions("tiny", StreamSettings()))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::7f00:1", False),
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("fec0::1", False),
    ],
)
def test_which_addresses_are_fetched(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_other_machines_need_a_token() -> None:
    with pytest.raises(InputError, match=r"--host 0\.0\.0\.0 lets other machines in"):
        serve_forever(OPTIONS, Shares(1, 1, 0.0), Place("0.0.0.0"), print)
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("192.0.2.1")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fd00::1", "http://[fd00::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_the_address_that_is_printed_can_be_called(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_refused_before_ray_starts(rvos: Callable, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = rvos("serve", "tiny", "--port", port)
        assert done.code == 2
        assert f"nothing can listen on 127.0.0.1:{port}" in done.stderr
    short = tmp_path / "token"
    short.write_text("short")
    for arguments, found in (
        (("tiny", "--token-file", short), "at least 16 letters"),
        (("tiny", "--token-file", tmp_path / "none"), "No such file"),
        ((tmp_path / "none",), "none"),
        (("tiny", "--host", "no.such.host.invalid"), "--host"),
        (("tiny", "--device", "cuda:1"), "write --device cuda"),
        (("tiny", "--size", "3x3"), "multiple"),
    ):
        done = rvos("serve", *arguments)
        assert done.code == 2
        assert found in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


def test_measurements_of_two_replicas_stand_in_one_text() -> None:
    one, two, board = Measurements("a"), Measurements("b"), Board()
    one.request("segment", "done")
    two.request("segment", "done")
    two.frame(0.3)
    board.put("a", one.text())
    text = joined(board.put("b", two.text())).decode()
    assert text.count("# TYPE rvos_requests_total counter") == 1
    assert 'rvos_requests_total{kind="segment",outcome="done",replica="a"} 1.0' in text
    assert 'rvos_requests_total{kind="segment",outcome="done",replica="b"} 1.0' in text
    assert 'rvos_frame_interval_seconds_bucket{le="0.5",replica="b"} 1.0' in text
    two.frame(0.1)
    assert 'rvos_frames_total{replica="b"} 2.0' in joined(board.put("b", two.text())).decode()


def test_a_dead_replica_counts_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    board, now = Board(), [100.0]
    monkeypatch.setattr("rvos_deploy.serving.measurements.time.monotonic", lambda: now[0])
    assert board.put("dead", "old") == ["old"]
    now[0] += 9
    assert board.put("new", "1") == ["old", "1"]
    now[0] += 9
    assert board.put("new", "2") == ["2"]


def test_what_an_operator_sees_is_bounded() -> None:
    board = Board()
    for number in range(100):
        board.report(str(number))
    assert board.take_reports() == [str(number) for number in range(80, 100)]
    assert board.take_reports() == []


def post(address: str, clip: Path, **options: object) -> httpx.Response:
    files = {"video": ("a.mp4", clip.read_bytes())}
    data = {"expression": list(TEXTS)}
    return httpx.post(f"{address}/v1/segment", data=data, files=files, timeout=PATIENCE, **options)


@pytest.mark.slow
def test_a_token_and_the_public_rule(clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    server = start_server("tiny", "--cpus", 1, "--token-file", file)
    try:
        address = server.address
        assert httpx.get(f"{address}/healthz").status_code == 200
        right = {"authorization": f"Bearer {TOKEN}"}
        for path in ("/readyz", "/metrics", "/v1/segment"):
            answer = httpx.get(f"{address}{path}")
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert httpx.get(f"{address}{path}", headers=right).status_code in (200, 405)
        for wrong in (f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", ""):
            assert post(address, clip, headers={"authorization": wrong}).status_code == 401
        assert len(post(address, clip, headers=right).text.splitlines()) == FRAMES + 2
        live = f"ws{address.removeprefix('http')}/v1/live"
        with pytest.raises(InvalidStatus) as refused:
            connect(live)
        assert refused.value.response.status_code == 403
        with connect(live, additional_headers=right) as opened:
            opened.send('{"type": "start"}')
            assert json.loads(opened.recv(PATIENCE))["schema"] == "rvos-deploy/stream/1"
        for url in (
            "http://127.0.0.1:9/a",
            "http://localhost/a",
            "http://[::1]/",
            "http://10.0.0.1/",
        ):
            body = {"url": url, "expressions": ["a"]}
            answer = httpx.post(f"{address}/v1/segment", json=body, headers=right)
            assert (answer.status_code, answer.json()["code"]) == (403, "private_url")
    finally:
        code, stderr = server.stop(signal.SIGINT)
    assert code == 130
    assert stderr.startswith("error: interrupted")


def children(pid: int) -> set[int]:
    """All processes below one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except (OSError, IndexError):
                continue
    found: set[int] = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.slow
def test_two_replicas_and_the_end_of_one(clip: Path) -> None:
    server = start_server("tiny", "--cpus", 1, "--replicas", 2, "--max-streams", 1)
    try:
        below = children(server.child.pid)
        replicas = [
            pid for pid in below if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(replicas) == 2
        for _ in range(6):
            assert post(server.address, clip).status_code == 200
        time.sleep(3)  # replicas exchange their measurements every two seconds
        text = httpx.get(f"{server.address}/metrics").text
        done = [line for line in text.splitlines() if 'outcome="done"' in line and "total" in line]
        assert sum(float(line.split()[-1]) for line in done) == 6
        assert len([line for line in text.splitlines() if line.startswith("rvos_streams{")]) == 2

        os.kill(replicas[0], signal.SIGKILL)
        deadline, good = time.monotonic() + PATIENCE, 0
        while good < 10:
            assert time.monotonic() < deadline
            good = good + 1 if post(server.address, clip).status_code == 200 else 0
    finally:
        below = children(server.child.pid)
        code, _ = server.stop()
    assert code == 143
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline, [
            Path(f"/proc/{pid}/cmdline").read_bytes()
            for pid in below
            if Path(f"/proc/{pid}").exists()
        ]
        time.sleep(0.2)
