"""Make the picture of the page again: ``python tests/ui/picture.py docs/ui.png``."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

PATIENCE = 60_000


def main(out: Path) -> None:
    """Segment the example, and write what the page shows then."""
    command = [sys.executable, "-m", "rvos_deploy", "ui", "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = re.search(r"http://\S+?(?=;|/;)", server.stdout.readline())
    assert found
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(found[0])
            page.get_by_role("button", name="Segment").click()
            expect(page.locator("#progress")).to_contain_text("Done", timeout=PATIENCE)
            page.get_by_label(re.compile("number input for Frame")).fill("20")
            page.get_by_label(re.compile("number input for Frame")).press("Enter")
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    # 256 colours: a third of the bytes.
    picture.quantize(256, Image.Quantize.FASTOCTREE).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
