"""Fetching into the cache, against a real server: whole files, the same ones for ever, or an error.

The disk that fills up is in tests/faults/test_download_disk_full.py, stops of the command line are
in tests/cli/test_cli_export_fetch.py.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPMessage
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import answer_signals

from rvos_deploy.errors import DownloadError, InputError, RvosError
from rvos_deploy.export import http_transfer
from rvos_deploy.export.download import cached_path, fetch
from rvos_deploy.files import holding

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
HASH = sha256(CONTENT).hexdigest()
FETCH = "import sys; from pathlib import Path; from rvos_deploy.export.download import fetch; "


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(cache: Path) -> dict[str, bytes]:
    """Every file of the cache by its name."""
    return {path.name: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def refused(url: str, cache: Path, **options: Any) -> str:
    """Fetch in vain; the error's one line."""
    with pytest.raises(RvosError) as error:
        fetch(url, cache, **options)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def interrupt(server: Any, path: str, cache: Path, at: int, **how: Any) -> str:
    """Fetch a file whose connection breaks after some bytes, and serve it whole afterwards."""
    url = server.serve(path, CONTENT, cut=at, **how)
    line = refused(url, cache)
    assert f"the connection broke after {at} of {len(CONTENT)} bytes" in line
    server.files[path].cut = None
    return url


def test_a_file_is_fetched_once_and_hashed_at_each_use(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/a/w.pth", CONTENT)
    first = fetch(url, cache)
    assert first.path.read_bytes() == CONTENT
    assert (first.url, first.sha256, first.bytes) == (url, HASH, len(CONTENT))
    assert first.first_use
    second = fetch(url, cache)
    assert (second.path, second.sha256, second.first_use) == (first.path, HASH, False)
    assert len(file_server.asked) == 1
    assert set(files(cache)) == {"w.pth", "w.pth.origin.json"}
    record = json.loads(files(cache)["w.pth.origin.json"])
    assert (record["url"], record["sha256"]) == (url, HASH)


def test_progress_counts_to_the_whole_file(file_server: Any, cache: Path) -> None:
    url, told = file_server.serve("/w.pth", CONTENT), []
    fetch(url, cache, progress=lambda *state: told.append(state))
    assert told[0] == ("w.pth", 0, len(CONTENT))
    assert told[-1] == ("w.pth", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_an_interrupted_transfer_goes_on(file_server: Any, cache: Path) -> None:
    url, told = interrupt(file_server, "/w.pth", cache, 100_000), []
    assert set(files(cache)) == {"w.pth.part", "w.pth.origin.json"}
    assert files(cache)["w.pth.part"] == CONTENT[:100_000]
    found = fetch(url, cache, progress=lambda *state: told.append(state))
    assert (found.sha256, found.first_use) == (HASH, True)
    assert file_server.ranges == [None, "bytes=100000-"]
    assert told[0] == ("w.pth", 100_000, len(CONTENT))
    assert set(files(cache)) == {"w.pth", "w.pth.origin.json"}


def test_a_date_names_a_version_too(file_server: Any, cache: Path) -> None:
    date = {"Last-Modified": "Mon, 17 Jul 2023 10:00:00 GMT"}
    url = interrupt(file_server, "/w.pth", cache, 100_000, etag='W/"weak"', headers=date)
    file_server.files["/w.pth"].checks_version = False
    assert fetch(url, cache).sha256 == HASH
    assert file_server.asked[-1][1]["If-Range"] == date["Last-Modified"]
    assert file_server.ranges[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    "change",
    [
        {"etag": '"2"', "content": OTHER},  # another file
        {"etag": '"2"', "content": OTHER, "checks_version": False},  # and If-Range is overlooked
        {"ranges": False, "content": OTHER},
        {"content": OTHER[:50_000], "etag": '"1"'},  # 416: nothing is left to send
        {"shift": 7, "content": CONTENT},
    ],
    ids=["changed", "changed, If-Range overlooked", "no ranges", "shorter", "another range"],
)
def test_what_cannot_go_on_starts_again(
    file_server: Any, cache: Path, change: dict[str, Any]
) -> None:
    url = interrupt(file_server, "/w.pth", cache, 100_000)
    for name, value in change.items():
        setattr(file_server.files["/w.pth"], name, value)
    assert fetch(url, cache).path.read_bytes() == change["content"]


def test_without_a_version_nothing_goes_on(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", OTHER, etag=None, cut=1000)
    assert refused(url, cache).endswith("run the command again")
    file_server.serve("/w.pth", CONTENT, etag=None)
    assert fetch(url, cache).sha256 == HASH
    assert file_server.ranges == [None, None]


def test_a_stop_while_the_whole_file_was_checked_fetches_nothing_again(
    file_server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = file_server.serve("/w.pth", CONTENT)

    def stop(path: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("rvos_deploy.export.download.sha256_file", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(url, cache)
    assert set(files(cache)) == {"w.pth.part", "w.pth.origin.json"}
    assert fetch(url, cache).sha256 == HASH
    assert len(file_server.asked) == 1


def test_a_known_hash_is_required(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", OTHER)
    line = refused(url, cache, sha256=HASH)
    assert sha256(OTHER).hexdigest() in line
    assert f"needed {HASH} (the published file's)" in line
    assert set(files(cache)) == {"w.pth.origin.json"}
    file_server.serve("/w.pth", CONTENT)
    found = fetch(url, cache, sha256=HASH)
    assert (found.sha256, found.first_use) == (HASH, False)


def test_a_file_in_the_cache_must_have_the_known_hash(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT)
    path = fetch(url, cache, sha256=HASH).path
    path.write_bytes(OTHER)
    assert refused(url, cache, sha256=HASH).endswith("delete it to fetch it again")
    assert path.read_bytes() == OTHER, "a user's file is not lost"
    path.unlink()
    assert fetch(url, cache, sha256=HASH).sha256 == HASH


def test_the_hash_of_the_first_use_must_stay(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT)
    path = fetch(url, cache).path
    record = path.with_name("w.pth.origin.json")
    path.write_bytes(OTHER)
    line = refused(url, cache)
    assert line.startswith(f"{path} has the sha256 {sha256(OTHER).hexdigest()}, needed {HASH}")
    assert line.endswith(f"delete it to fetch it again; to accept it, delete {record}")
    path.unlink()
    file_server.serve("/w.pth", OTHER)  # what is published has changed, too
    line = refused(url, cache)
    assert line.endswith(f"fetch it again, or delete {record} to accept the new file")
    assert set(files(cache)) == {"w.pth.origin.json"}
    file_server.files["/w.pth"].cut = 1000
    refused(url, cache)
    file_server.files["/w.pth"].cut = None
    assert f"needed {HASH}" in refused(url, cache), "a broken transfer does not forget it"
    record.unlink()
    assert fetch(url, cache).first_use


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema": 2, "url": "x"}', b"x" * (1 << 17)])
def test_a_damaged_record_accepts_nothing(file_server: Any, cache: Path, content: bytes) -> None:
    url = file_server.serve("/w.pth", CONTENT)
    record = fetch(url, cache).path.with_name("w.pth.origin.json")
    record.write_bytes(content)
    assert f"{record} " in refused(url, cache)


def test_offline_says_what_to_put_where(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT)
    line = refused(url, cache, offline=True)
    assert not file_server.asked
    assert not cache.exists()
    path = Path(line.rpartition("put it at ")[2])
    assert line.startswith(f"{url} is not in the cache")
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    found = fetch(url, cache, offline=True)
    assert (found.path, found.sha256, found.first_use) == (path, HASH, True)
    assert not fetch(url, cache, offline=True).first_use
    assert not file_server.asked


def test_a_page_that_was_put_into_the_cache_is_refused(cache: Path) -> None:
    path = cached_path("https://host/w.pth", cache)
    path.parent.mkdir(parents=True)
    path.write_text("\n<!DOCTYPE html><title>Sign in</title>")
    line = refused("https://host/w.pth", cache, offline=True)
    assert line.startswith(f"{path} is a web page")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "does not exist (HTTP 404)"),
        (410, "does not exist (HTTP 410)"),
        (401, "may not be fetched without a login (HTTP 401)"),
        (403, "may not be fetched without a login (HTTP 403)"),
        (418, "is refused by its server (HTTP 418)"),
        (429, "is not available now (HTTP 429); try again later"),
        (503, "is not available now (HTTP 503); try again later"),
    ],
)
def test_an_error_of_the_server_is_one_line(
    file_server: Any, cache: Path, status: int, said: str
) -> None:
    url = file_server.serve("/w.pth?token=secret", CONTENT, status=status)
    line = refused(url, cache)
    assert said in line
    assert "secret" not in line
    assert not cache.exists(), "an empty folder would be litter"


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("text/html; charset=utf-8", b"Welcome to Hotel Wi-Fi"),
        ("application/octet-stream", b"\xef\xbb\xbf <!doctype HTML><html>Welcome</html>"),
        ("application/octet-stream", b"\r\n<HTML><head>"),
    ],
)
def test_a_login_page_is_no_file(file_server: Any, cache: Path, kind: str, page: bytes) -> None:
    file_server.serve("/login", page, headers={"Content-Type": kind})
    url = file_server.serve("/w.pth", b"", location="/login?session=secret")
    file_server.files["/login?session=secret"] = file_server.files["/login"]
    line = refused(url, cache)
    assert line.startswith(f"{url} answers with a web page")
    assert "secret" not in line
    assert not set(files(cache)) - {"w.pth.origin.json"}


def test_a_redirect_is_followed_with_the_range(file_server: Any, cache: Path) -> None:
    file_server.serve("/storage?signature=secret", CONTENT, cut=100_000)
    url = file_server.serve("/w.pth", b"", location="/storage?signature=secret")
    assert "secret" not in refused(url, cache)
    file_server.files["/storage?signature=secret"].cut = None
    found = fetch(url, cache)
    assert (found.sha256, found.url) == (HASH, url)
    assert file_server.ranges == [None, None, "bytes=100000-", "bytes=100000-"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_redirect_is_followed(file_server: Any, cache: Path, status: int) -> None:
    file_server.serve("/there/w.pth", CONTENT)
    url = file_server.serve("/here/w.pth", b"", location="../there/w.pth", status=status)
    assert fetch(url, cache).sha256 == HASH


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/w.pth", "data:text/plain,x"])
def test_a_redirect_leads_nowhere_else(file_server: Any, cache: Path, target: str) -> None:
    url = file_server.serve("/w.pth", b"", location=target)
    line = refused(url, cache)
    assert "or not to an http address (HTTP 302)" in line or "which is not followed" in line
    assert not cache.exists()


def test_https_never_becomes_http() -> None:
    redirects = http_transfer._Redirects()

    def redirect(old: str, new: str) -> object:
        request = urllib.request.Request(f"{old}://a/w")
        return redirects.redirect_request(
            request, BytesIO(), 302, "", HTTPMessage(), f"{new}://b/w"
        )

    for old, new in (("https", "http"), ("http", "ftp")):
        with pytest.raises(DownloadError, match=f"{old} is needed"):
            redirect(old, new)
    assert redirect("http", "https") is not None


def test_endless_redirects_end(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", b"", location="/w.pth")
    assert "redirects in circles" in refused(url, cache)


def test_a_body_shorter_than_announced_is_not_accepted(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT, announced=len(CONTENT) + 1)
    line = refused(url, cache)
    assert f"broke after {len(CONTENT)} of {len(CONTENT) + 1} bytes" in line
    assert "w.pth" not in files(cache)


def test_a_length_nobody_tells_needs_a_known_hash(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT, length=False)
    assert "does not say how long the file is" in refused(url, cache)
    assert fetch(url, cache, sha256=HASH).sha256 == HASH


@pytest.mark.parametrize("length", [True, False])
def test_an_empty_file_is_refused(file_server: Any, cache: Path, length: bool) -> None:
    url = file_server.serve("/w.pth", b"", length=length)
    for _ in range(2):
        assert "w.pth is empty" in refused(url, cache, sha256=sha256(b"").hexdigest())
    file_server.serve("/w.pth", CONTENT)
    assert fetch(url, cache).sha256 == HASH


def test_compressed_answers_are_refused(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT, headers={"Content-Encoding": "gzip"})
    assert "comes compressed (gzip)" in refused(url, cache)


@pytest.mark.parametrize("length", [True, False])
def test_a_file_that_is_too_large_is_refused(file_server: Any, cache: Path, length: bool) -> None:
    url = file_server.serve("/w.pth", CONTENT, length=length)
    told: list[Any] = []
    progress = lambda *state: told.append(state)  # noqa: E731
    line = refused(url, cache, sha256=HASH, maximum=1000, progress=progress)
    assert "at most 1000 are expected" in line
    assert not (length and told), "its length was known before"
    assert not set(files(cache)) - {"w.pth.origin.json"}


def test_a_disk_without_room_is_refused_before_the_transfer(
    file_server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = file_server.serve("/w.pth", CONTENT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=299_999))
    line = refused(url, cache)
    assert f"needs 0.3 MiB in {cached_path(url, cache).parent}, where 0.3 MiB are free" in line
    assert not cache.exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host.invalid/w.pth?token=secret", "its host is not found"),
        ("http://127.0.0.1:1/w.pth?token=secret", "onnection refused"),
        ("http://127.0.0.1:99999/w.pth", "is not a valid address"),
        ("file:///w.pth", "give a local file by its path"),
        ("ftp://host/w.pth", "only http:// and https://"),
        ("http://me:secret@host/w.pth", "user name"),
        ("http:///w.pth", "is not a valid address"),
        ("http://host/a b.pth", "is not a valid address"),
        ("http://host/w\n.pth", "is not a valid address"),
        ("http://host/wéights.pth", "is not a valid address"),
        ("http://[host/w.pth", "is not a valid address"),
        ("http://" + "a" * 64 + "/w.pth", "is not a valid address"),
        ("http://host/" + "a" * 1024, "characters"),
        ("http://host/" + "a" * 201, "does not end in a usable file name"),
        ("http://host/..", "does not end in a usable file name"),
        ("http://host/%2e%2e", "does not end in a usable file name"),
        ("http://host/", "does not name a file"),
        ("http://host", "does not name a file"),
    ],
)
def test_addresses_that_cannot_be_fetched(url: str, said: str, cache: Path) -> None:
    line = refused(url, cache)
    assert said in line
    assert "secret" not in line
    assert not cache.exists()


def test_a_certificate_must_be_trusted(
    file_server: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl, which makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    file_server.use_tls(certificate, key)
    url = file_server.serve("/w.pth", CONTENT).replace("127.0.0.1", "localhost")
    line = refused(url, cache)
    assert "its certificate is not trusted (self-signed certificate)" in line
    assert "SSL_CERT_FILE" in line
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(url, cache).sha256 == HASH


def test_a_server_without_tls_is_one_line(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT).replace("http:", "https:")
    assert "TLS failed" in refused(url, cache)


def test_a_silent_server_is_left(
    file_server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_transfer, "TIMEOUT", 0.2)
    url = file_server.serve("/w.pth", CONTENT, hold=100_000)
    line = refused(url, cache)
    assert "broke after 100000 of 300000 bytes: no answer for" in line
    assert files(cache)["w.pth.part"] == CONTENT[:100_000]


def test_addresses_of_one_folder_share_one_and_others_do_not(cache: Path) -> None:
    base = "https://host/a/vocab.json"
    assert cached_path(base, cache).parent == cached_path("https://host/a/merges.txt", cache).parent
    others = (
        "http://host/a/vocab.json",
        "https://host:444/a/vocab.json",
        "https://other/a/vocab.json",
        "https://host/b/vocab.json",
        "https://host/a/vocab.json?x=1",
        "https://host/a/vocab_json",
        "https://host/a/vocab%2Fjson",
        "https://host/a/VOCAB.json?2",
    )
    paths = {cached_path(url, cache) for url in (base, *others)}
    assert len(paths) == len(others) + 1
    assert all(path.parent.parent == cache for path in paths)


def test_of_two_processes_one_fetches(file_server: Any, cache: Path) -> None:
    url = file_server.serve("/w.pth", CONTENT, hold=100_000)
    program = FETCH + "print(fetch(sys.argv[1], Path(sys.argv[2])).sha256)"
    child = subprocess.Popen(
        [sys.executable, "-c", program, url, str(cache)], stdout=subprocess.PIPE, text=True
    )
    assert file_server.files["/w.pth"].held.wait(60)
    with pytest.raises(InputError, match=r"another process is fetching into .*; wait for it"):
        fetch(url, cache)
    file_server.files["/w.pth"].release.set()
    assert child.communicate(timeout=60)[0].strip() == HASH
    assert not fetch(url, cache).first_use
    assert len(file_server.asked) == 1


def test_what_another_process_has_just_fetched_is_not_fetched_again(
    file_server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = file_server.serve("/w.pth", CONTENT), []

    @contextmanager
    def after_the_other(folder: Path, purpose: str) -> Iterator[None]:
        with monkeypatch.context() as as_it_is:
            as_it_is.setattr("rvos_deploy.export.download.holding", holding)
            other.append(fetch(url, cache))
        with holding(folder, purpose):
            yield

    monkeypatch.setattr("rvos_deploy.export.download.holding", after_the_other)
    assert fetch(url, cache).path == other[0].path
    assert len(file_server.asked) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_however_a_process_ends_its_bytes_are_kept(
    file_server: Any, cache: Path, number: int, code: int
) -> None:
    url = file_server.serve("/w.pth", CONTENT, hold=1000)
    program = (
        "from rvos_deploy import stopping; "
        "from rvos_deploy.console.error_lines import run_with_error_lines as run; "
        "stopping.install(); "
        + FETCH
        + "sys.exit(run(lambda: fetch(sys.argv[1], Path(sys.argv[2])) and 0))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, url, str(cache)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=answer_signals,
    )
    # Only this file is asked for: the child writes and moves others meanwhile.
    while not any(part.stat().st_size >= 1000 for part in cache.rglob("w.pth.part")):
        assert child.poll() is None
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == code
    if number != signal.SIGKILL:
        assert stderr.startswith("error: ")
        assert f"run the command again, which continues from {cache}" in stderr
    assert set(files(cache)) == {"w.pth.part", "w.pth.origin.json"}
    file_server.files["/w.pth"].hold = None
    assert fetch(url, cache).sha256 == HASH
    assert file_server.ranges == [None, "bytes=1000-"]


def test_a_cache_that_cannot_be_written_is_one_line(file_server: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    line = refused(file_server.serve("/w.pth", CONTENT), file)
    assert "cannot be written" in line


def test_fetching_needs_no_torch() -> None:
    program = FETCH + "import rvos_deploy.export.published; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "False"
