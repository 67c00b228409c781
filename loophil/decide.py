"""What the worker does next: a pure function of what is going on. Finding out what is going on, and doing it, is the loop's (loop.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """What `decide` looks at.

    asked       somebody waits for a group of their own;  present: somebody looks at the board;  ready, target: groups in stock, and wanted there
    learning    there are ratings or scores that no version has learned from, and it is not paused
    owed        seconds of updating to come before the next drawing, while learning; below 0 the drawing has its turn
    resting     drawing or loading has just failed;  said: ratings that the taste was not learned from
    unscored    new groups;  again_due: a group with missing scores is to be asked for again
    """

    loaded: bool = True
    resting: bool = False
    asked: bool = False
    present: bool = False
    learning: bool = False
    owed: float = 0.0
    ready: int = 0
    target: int = 4
    unscored: int = 0
    said: bool = False
    again_due: bool = False
    strip_due: bool = False
    strip_late: bool = False
    auto_due: bool = False

    @property
    def drawing_wanted(self) -> bool:
        """Somebody waits for a drawing, and it is the drawing's turn."""
        waiting = self.asked or (self.present and not self.ready and not self.resting)
        return waiting and (self.owed < 0 or not self.learning)

    @property
    def quiet_work(self) -> str:
        """What to do while nobody waits and nothing is to be learned, "" = nothing."""
        return "taste" if self.said else "strip" if self.strip_due else "auto" if self.auto_due else ""


def decide(s: Situation) -> str:
    """What the worker does next: the first that is due, "" = nothing."""
    order = (
        ("load", not s.loaded and not s.resting),
        ("draw", s.drawing_wanted and s.unscored <= s.target),
        ("", s.resting),
        ("strip", s.strip_late),
        ("score", s.unscored > 0 or s.again_due),
        ("update", s.learning and (s.owed >= 0 or s.ready >= s.target)),
        ("prefetch", s.ready < s.target),
    )
    return next((work for work, due in order if due), s.quiet_work)
