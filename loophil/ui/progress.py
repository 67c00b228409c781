"""What the Progress tab gets: does it learn, in words and in pictures, and what each update did."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from loophil.types import Mean
from loophil.ui import answers
from loophil.ui.access import Handlers
from loophil.ui.events import Answer, answering, sent_with

POINTS = 200  # of a curve; more only cost the page time
ROWS = 24  # versions in the table of pictures
LINES = 60  # of the log


class Progress(Handlers):
    """The handlers; they only read."""

    @answering
    def look(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Everything that the tab shows."""
        current = self.session.status().policy_version  # first: what comes meanwhile is asked for again
        prompts, strip = self.session.strip()
        images, names = self.session.images, self.session.version_names()
        urls = {version: {str(i): file and answers.picture_url(images, file) for i, file in drawn.items()} for version, drawn in strip.items()}
        rows = [{"version": version, "name": names.get(version, ""), "pictures": pictures} for version, pictures in urls.items()]
        rater = self.rater(request, sent_with(event))
        updates, agreement = self.session.updates(), self.session.agreement(rater)
        taste, rounds = self.session.understanding(rater)
        return {
            "prompts": prompts,
            "rows": [row for row in rows[:1] if len(rows) > ROWS] + rows[-ROWS:],
            "verdicts": [answers.verdict(tally) for tally in reversed(self.session.tallies())],
            "agreement": {"share": agreement[0], "groups": agreement[1]} if agreement else None,
            "taste": dataclasses.asdict(taste) if taste else None,
            "rounds": rounds,
            "between": self.session.raters_agreement(),
            "curves": curves(self.session.curves()),
            "log": [answers.update_line(update) for update in updates[-LINES:]],
            "current": current,
            "now": time.time(),
        }


def curves(means: Sequence[Mean]) -> list[dict[str, Any]]:
    """[{source, points: [[version, mean], ...]}], each at most POINTS long: neighbouring versions are put together, by how much is behind them."""
    of: dict[str, list[Mean]] = {}
    for mean in means:
        of.setdefault(mean.source, []).append(mean)
    return [{"source": source, "points": _thinned(of[source])} for source in sorted(of, key=lambda source: (source != "stars", source))]


def _thinned(means: Sequence[Mean]) -> list[list[float]]:
    width = -(-len(means) // POINTS)
    points = []
    for start in range(0, len(means), width):
        bin_ = means[start : start + width]
        n = sum(mean.n for mean in bin_)
        points.append([bin_[-1].version, round(sum(mean.mean * mean.n for mean in bin_) / n, 4)])
    return points
