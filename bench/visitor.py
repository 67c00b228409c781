"""A visitor to the real page: starts the program on a new run, opens it in Chromium, and rates by keys as somebody who likes warm pictures would."""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
SECONDS = 240  # that the first picture may take
WARMTH = """selector => [...document.querySelectorAll(selector)].map(image => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 32;
    const pen = canvas.getContext('2d');
    pen.drawImage(image, 0, 0, 32, 32);
    const pixels = pen.getImageData(0, 0, 32, 32).data;
    let warmth = 0;
    for (let i = 0; i < pixels.length; i += 4) warmth += pixels[i] - pixels[i + 2];
    return warmth;
})"""


def find_chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def served(*knobs: str) -> Iterator[str]:
    """The address of the program, started on a run of its own in a temporary folder; stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "app.py"), "--port", "0", "--runs", folder, *knobs]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if line.startswith("Open "))
            yield next(lines).removeprefix("Open ").strip()
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def chromium() -> Iterator[Any]:
    """A playwright browser. SystemExit with a sentence where there is none."""
    path = find_chromium()
    if path is None:
        raise SystemExit(f"There is no browser here: install one of {', '.join(BROWSERS[:3])}.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def rate(page: Any, groups: int, pace: float) -> list[float]:
    """Rates so many groups, `pace` seconds after each has come; how long each was waited for, in seconds."""
    waits = []
    for _ in range(groups):
        began = time.monotonic()
        page.wait_for_selector(".lh-board[data-state=rating]", timeout=1000 * SECONDS)
        waits.append(time.monotonic() - began)
        page.wait_for_timeout(1000 * pace)
        warmth = page.evaluate(WARMTH, ".lh-card .frame img")
        prompt = page.inner_text(".lh-board .lh-prompt")
        page.keyboard.press(str(1 + warmth.index(max(warmth))))
        page.keyboard.press(str(1 + warmth.index(min(warmth))))
        page.wait_for_function("shown => document.querySelector('.lh-board .lh-prompt').textContent !== shown", arg=prompt, timeout=5000)
    return waits


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them lies, interpolated."""
    return statistics.quantiles(values, n=100, method="inclusive")[round(100 * share) - 1]
