"""What the page costs, in Chromium on the real program with the embedded model: time to the first group, weight, waits, round trips, work per key.

The waits are those between the end of one group's flash and the next group, for people who take 1.5, 2.5 and 5 s to look, on one run each.
"""

import argparse
import statistics
import time
from typing import Any

from bench.visitor import SECONDS, chromium, quantile, rate, served

FLASH = 0.12  # seconds for which a finished choice stays in view, on purpose
PACES = (1.5, 2.5, 5.0)
KEY = """key => {
    const began = performance.now();
    document.dispatchEvent(new KeyboardEvent('keydown', {key, code: `Digit${key}`}));
    return performance.now() - began;
}"""
WEIGHT = """() => {
    const loaded = performance.getEntries().filter(entry => entry.transferSize > 0);
    return [loaded.length, loaded.reduce((sum, entry) => sum + entry.transferSize, 0)];
}"""  # as they came over the wire, packed or not, with their headers
FETCH = """async () => {
    const began = performance.now();
    await fetch('gradio_api/run/status', {method: 'POST', headers: {'content-type': 'application/json'}, body: '{"data": []}'}).then(a => a.text());
    return performance.now() - began;
}"""


def run(argv: list[str]) -> int:
    """Prints one line per figure."""
    parser = argparse.ArgumentParser(prog="python -m bench page", description=__doc__)
    parser.add_argument("--groups", type=int, default=40, help="groups rated at each pace")
    given, knobs = parser.parse_known_args(argv)
    with chromium() as browser:
        for pace in PACES:
            began = time.monotonic()
            with served(*knobs) as url:
                page = browser.new_page()
                start = time.monotonic()
                page.goto(url)
                page.wait_for_selector(".lh-board")
                print(f"served after {start - began:.1f} s, page there {time.monotonic() - start:.1f} s later", end="")
                page.wait_for_selector(".lh-board[data-state=rating]", timeout=1000 * SECONDS)
                first = time.monotonic() - start
                files, weight = page.evaluate(WEIGHT)
                print(f", first group {first:.1f} s after the page was asked for; {files} files, {weight / 1e6:.2f} MB")
                waits = [max(0.0, wait - FLASH) for wait in rate(page, given.groups, pace)[1:]]
                print(f"{pace:g} s a group: waits p50 {quantile(waits, 0.5):.2f} s, p95 {quantile(waits, 0.95):.2f} s (n = {len(waits)})", flush=True)
                if pace == PACES[0]:
                    _small_things(page)
                page.close()
    return 0


def _small_things(page: Any) -> None:
    """A round trip to the server, and what the page does for a key until it has the next thing on show."""
    trips = [page.evaluate(FETCH) for _ in range(30)]
    print(f"round trip: median {statistics.median(trips):.0f} ms, p95 {quantile(trips, 0.95):.0f} ms (n = {len(trips)})")
    keys: list[float] = []
    for _ in range(10):
        page.wait_for_selector(".lh-board[data-state=rating]", timeout=1000 * SECONDS)
        keys += [page.evaluate(KEY, "2"), page.evaluate(KEY, "4")]
        page.wait_for_timeout(400)
    print(f"page work per key: median {statistics.median(keys):.1f} ms, most {max(keys):.1f} ms (n = {len(keys)})")
