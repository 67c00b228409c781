"""Pictures of every tab, light and dark, desktop and phone, of the real program after a few dozen ratings; three of them go into the README.

They lie in bench/out/screenshots/; with --docs the README's three are replaced too.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from bench.visitor import ROOT, WARMTH, chromium, rate, served

OUT = ROOT / "bench" / "out" / "screenshots"
TABS = ("Rate", "Progress", "Compare", "History", "Export")
DEVICES = {"desktop": (1280, 860, False), "phone": (390, 844, True)}
IN_README = {"page.png": "rate-light-desktop.png", "progress.png": "progress-dark-desktop.png", "phone.png": "rate-dark-phone.png"}


def run(argv: list[str]) -> int:
    """Prints where each picture is."""
    parser = argparse.ArgumentParser(prog="python -m bench screenshots", description=__doc__)
    parser.add_argument("--groups", type=int, default=40, help="groups that are rated first")
    parser.add_argument("--docs", action="store_true", help="replace the README's pictures")
    given, knobs = parser.parse_known_args(argv)
    OUT.mkdir(parents=True, exist_ok=True)
    with chromium() as browser, served("--rewards", "scene_check=0.3", *knobs) as url:
        page = browser.new_page()
        page.goto(url)
        rate(page, given.groups, 1.0)
        _blind_test(page)
        page.close()
        for scheme in ("light", "dark"):
            for device, (width, height, touch) in DEVICES.items():
                view = {"width": width, "height": height}
                context = browser.new_context(viewport=view, color_scheme=scheme, has_touch=touch, device_scale_factor=2 if touch else 1)
                _pictures(context.new_page(), url, f"{scheme}-{device}")
                context.close()
    if given.docs:
        for name, source in IN_README.items():
            shutil.copy(OUT / source, ROOT / "docs" / name)
    return 0


def _blind_test(page: Any) -> None:
    """Twenty pairs, the warmer one each time."""
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Start the blind test").click()
    for n in range(1, 21):
        page.wait_for_function("n => document.querySelector('.which').textContent.startsWith(`Pair ${n} `)", arg=n, timeout=60_000)
        page.wait_for_function("() => [...document.querySelectorAll('.lh-side img')].every(image => image.complete)")
        left, right = page.evaluate(WARMTH, ".lh-side img")
        page.keyboard.press("ArrowLeft" if left > right else "ArrowRight")
    page.wait_for_selector(".lh-verdicts li")


def _pictures(page: Any, url: str, kind: str) -> None:
    page.goto(url)
    page.wait_for_selector(".lh-board[data-state=rating] .frame img", timeout=60_000)
    for tab in TABS:
        _open(page, tab)
        page.wait_for_timeout(2500)
        if tab == "Compare":
            page.locator(".lh-panel .prompt").locator("visible=true").fill("a large blue star")
            page.get_by_role("button", name="Draw both").click()
            page.wait_for_selector(".two img", timeout=60_000)
            page.wait_for_timeout(1500)
        elif tab == "Rate":
            page.locator(".pick").first.click()
            page.wait_for_timeout(300)
        file = OUT / f"{tab.lower()}-{kind}.png"
        page.screenshot(path=str(file), full_page=tab != "Rate")
        if tab == "Rate":
            page.locator("[data-act=undo]").click()
        print(Path(file).relative_to(ROOT), flush=True)


def _open(page: Any, tab: str) -> None:
    """Opens a tab, which on a phone may be behind Gradio's three dots."""
    button = page.get_by_role("tab", name=tab)
    if button.is_visible():
        button.click()
        return
    page.locator(".overflow-menu button").first.click()
    page.locator(".overflow-dropdown button", has_text=tab).click()
