"""What of an address may be shown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rvos_deploy.redaction import redact, redact_command, redact_text


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://admin:secret@host/x", "rtsp://host/x"),
        ("http://secret@host:80/p.mp4", "http://host:80/p.mp4"),
        ("https://host/p.mp4?token=secret&x=1#secret", "https://host/p.mp4"),
        ("https://host/p.mp4?secret", "https://host/p.mp4"),
        ("srt://host:9000?passphrase=secret", "srt://host:9000"),
        ("http:me:secret@host/x?secret", "http:host/x"),
        ("tls:me:secret@host", "tls:host"),
        # Passwords with characters that should have been escaped.
        ("rtsp://a:sec/secret@host/x", "rtsp://host/x"),
        ("rtsp://a:sec?secret@host/x", "rtsp://host/x"),
        ("rtsp://a:sec#secret@host/x", "rtsp://host/x"),
        ("rtsp://a:sec@secret@host/x", "rtsp://host/x"),
        ("rtsp://a:sec secret@host/x", "rtsp://host/x"),
        ("rtsp://a:sec|secret@host/x", "rtsp://host/x"),
        ("rtsp://a:http://secret@host/x", "rtsp://host/x"),
        ("concat:http://a:secret@h/a?secret|http://b:secret@h/b", "concat:http://h/a|http://h/b"),
        ("cache:http://a:secret@h/a?secret", "cache:http://h/a"),
        ("HTTP://a:secret@h/a", "HTTP://h/a"),
        # No secret.
        ("https://host/@user/v.mp4", "https://host/@user/v.mp4"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("my#clip?.mp4", "my#clip?.mp4"),
        ("cam:1 100%.mp4", "cam:1 100%.mp4"),
        ("a@b:c?d.mp4", "a@b:c?d.mp4"),
        ("/dev/video0", "/dev/video0"),
        ("-", "-"),
    ],
)
def test_a_source_without_its_secrets(source: str, shown: str) -> None:
    assert redact(source) == shown
    assert "secret" not in redact(source)


def test_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "cannot open 'http://a:secret@h/x?secret': refused (http://h/y?secret); 12:30, C: no"
    assert redact_text(text) == "cannot open 'http://h/x': refused (http://h/y); 12:30, C: no"
    spaced = "rtsp://a:sec secret@host/x"
    monkeypatch.setattr(sys, "argv", ["rvos-deploy", "run", spaced])
    assert redact_text(f"no route to {spaced} now") == "no route to rtsp://host/x now"


def test_a_command_can_be_pasted() -> None:
    command = ["rvos-deploy", "run", "http://a:secret@h/x?secret", "the dog", "--video=http://h/?s"]
    assert redact_command(command) == "rvos-deploy run http://h/x 'the dog' --video=http://h/"


def test_nothing_heavy_is_imported() -> None:
    code = "import rvos_deploy.redaction, sys; print('torch' in sys.modules, 'av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "False False"
