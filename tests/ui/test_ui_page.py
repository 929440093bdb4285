"""The page in a real browser, with the packaged network."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rvos_deploy.datasets.moving_sprites import sample_video

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is absent; apt install chromium")
PATIENCE = 60_000
expect = playwright.expect


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "rvos_deploy", "ui", "--port", "0", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "GRADIO_ALLOWED_PATHS": "/",  # it must not widen what is served
            "GRADIO_SHARE": "True",
            "HTTP_PROXY": "http://127.0.0.1:9",  # nobody answers there
            "HTTPS_PROXY": "http://127.0.0.1:9",
        },
    )
    assert child.stdout is not None
    found = re.search(r"http://\S+?(?=;|/;)", child.stdout.readline())
    if found is None:
        child.kill()
        pytest.fail(str(child.communicate()))
    yield found[0]
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "Traceback" not in stderr, stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, whose camera shows a rendered clip."""
    folder = tmp_path_factory.mktemp("camera")
    sample_video(folder / "clip.mp4", seed=0, frames=24)
    motion = folder / "clip.mjpeg"
    write_motion_jpeg(folder / "clip.mp4", motion)
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-video-capture={motion}",
            ],
        )
        yield one
        one.close()


def write_motion_jpeg(video: Path, out: Path) -> None:
    import io

    import numpy as np
    from PIL import Image

    from rvos_deploy.video import read_video

    with out.open("wb") as file:
        for frame in read_video(video):
            picture = io.BytesIO()
            Image.fromarray(np.asarray(frame.image)).save(picture, "JPEG", quality=95)
            file.write(picture.getvalue())


class Tab:
    """A page that is open, and what it asked the network for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(permissions=["camera"], **options)
        self.page = self.context.new_page()
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.route(re.compile(".*"), self._route)
        self.page.goto(address)
        expect(self.page.get_by_role("button", name="Segment")).to_be_visible(timeout=PATIENCE)

    def _route(self, route: Any) -> None:
        if re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:", route.request.url):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def segment(self) -> None:
        self.page.get_by_role("button", name="Segment").click()

    @property
    def progress(self) -> Any:
        return self.page.locator("#progress")

    def picture(self) -> Any:
        return self.page.locator("[data-testid=image] img, .image-frame img").last

    def upload(self, *files: Path) -> None:
        self.page.get_by_label("Clear").first.click()
        self.page.locator("input[type=file]").first.set_input_files([str(file) for file in files])


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    one = Tab(browser, address)
    yield one
    one.context.close()
    assert one.outside == []
    assert one.errors == []


def test_the_example_from_the_first_click_to_the_files(tab: Tab, tmp_path: Path) -> None:
    tab.segment()
    expect(tab.progress).to_contain_text(re.compile(r"Frame \d+ of 48"), timeout=PATIENCE)
    expect(tab.picture()).to_be_visible()  # before the video has been read
    expect(tab.progress).to_contain_text("Done: 48 frames", timeout=PATIENCE)
    table = tab.page.locator(".found table")
    assert table.locator("tr").count() == 4

    before = tab.picture().get_attribute("src")
    threshold = tab.page.get_by_label(re.compile("number input for Threshold", re.IGNORECASE))
    threshold.fill("0.95")
    threshold.press("Enter")
    playwright.expect(tab.picture()).not_to_have_attribute("src", before, timeout=PATIENCE)

    tab.page.get_by_role("button", name="Make files to download").click()
    link = tab.page.get_by_role("link", name=re.compile("results.zip|MB|KB", re.IGNORECASE)).last
    with tab.page.expect_download(timeout=PATIENCE) as download:
        link.click(timeout=PATIENCE)
    saved = tmp_path / "saved"
    download.value.save_as(saved)
    assert saved.stat().st_size > 1000


def test_a_file_of_ones_own_and_stop(tab: Tab, tmp_path: Path) -> None:
    sample_video(tmp_path / "mine.mp4", seed=3, frames=150)
    tab.upload(tmp_path / "mine.mp4")
    expect(tab.page.locator("video")).to_be_visible(timeout=PATIENCE)
    tab.page.get_by_label("Sentences, one a line").fill("everything that moves")
    tab.segment()
    expect(tab.progress).to_contain_text(re.compile(r"Frame \d+ of 150"), timeout=PATIENCE)
    tab.page.get_by_role("button", name="Stop").click()
    expect(tab.progress).to_contain_text("Stopped after", timeout=PATIENCE)
    expect(tab.page.get_by_role("button", name="Make files to download")).to_be_visible()


def test_wrong_input_gets_one_line(tab: Tab, tmp_path: Path) -> None:
    tab.page.get_by_label("Sentences, one a line").fill(" ")
    tab.segment()
    expect(tab.page.get_by_text("Write what to look for")).to_be_visible(timeout=PATIENCE)
    assert "Traceback" not in tab.page.content()


def test_only_what_a_visitor_has_is_served(tab: Tab, address: str) -> None:
    """Neither a file of the machine, nor one of the working directory."""
    for name in ("/etc/passwd", str(Path.cwd() / "pyproject.toml"), "pyproject.toml", __file__):
        assert tab.context.request.get(f"{address}/gradio_api/file={name}").status == 403


def test_a_tab_that_is_closed_in_the_middle(browser: Any, address: str) -> None:
    """The page's process prints no traceback: see the end of ``address``."""
    one = Tab(browser, address)
    one.segment()
    expect(one.progress).to_contain_text(re.compile(r"Frame \d+ of 48"), timeout=PATIENCE)
    one.context.close()


def test_pages_of_other_sites_are_refused(address: str) -> None:
    own = address.removeprefix("http://")
    port = own.rpartition(":")[2]
    for path in ("/config", "/gradio_api/queue/join", "/gradio_api/upload"):
        for host, origin, expected in (
            (own, None, True),
            (own, f"http://{own}", True),
            (f"localhost:{port}", f"http://localhost:{port}", True),
            (own, "http://evil.example", False),
            (own, "null", False),
            (f"x.localhost:{port}", "http://evil.example", False),
            (f"x.localhost:{port}", None, False),
            ("evil.example", "http://evil.example", False),
        ):
            headers = {"host": host} | ({} if origin is None else {"origin": origin})
            for method in ("GET", "POST"):
                answer = httpx.request(method, f"{address}{path}", headers=headers, trust_env=False)
                assert (answer.status_code != 403) == expected, (path, host, origin, method)


def test_two_tabs_are_apart(tab: Tab, browser: Any, address: str) -> None:
    other = Tab(browser, address)
    other.page.get_by_label("Sentences, one a line").fill("the disc")
    tab.segment()
    other.segment()
    for one in (tab, other):
        expect(one.progress).to_contain_text("Done: 48 frames", timeout=2 * PATIENCE)
    assert tab.page.locator(".found tr").count() == 4
    assert other.page.locator(".found tr").count() == 2
    other.context.close()


def test_the_camera(tab: Tab) -> None:
    tab.page.get_by_role("tab", name="Camera").click()
    tab.page.get_by_label("Sentences, one a line").fill("everything that moves")
    tab.page.get_by_role("button", name=re.compile("webcam|camera", re.IGNORECASE)).last.click()
    tab.page.get_by_text("Record").click(timeout=PATIENCE)
    line = tab.page.get_by_text("the newest frame wins")
    expect(line).to_contain_text("frames a second", timeout=PATIENCE)
    expect(tab.page.locator(".found tr")).to_have_count(2, timeout=PATIENCE)
    tab.page.get_by_label("Sentences, one a line").fill("the star\nthe disc")
    expect(tab.page.locator(".found tr")).to_have_count(3, timeout=PATIENCE)
