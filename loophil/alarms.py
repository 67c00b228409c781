"""Whether automatic rounds go too far: what is watched while they teach, and the sentence that stops them.

They optimise what is thought to be the person's taste, and whatever is optimised for long enough leaves it behind. Three signs are watched:

    drift       the KL divergence of what is drawn from the base, in nats a step: over its cap
    diversity   how much pictures of one prompt differ, against the base's: below its floor
                (in a run that began from a LoRA "the base" is that LoRA here)
    ratings     the stars that people give to what they see: lower than before

What follows from an alarm is the loop's to do (loop.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from loophil.config import LoopKnobs
from loophil.evaluation import Pictures, spread
from loophil.jobs import adopted
from loophil.store import Store
from loophil.types import Entry, Group

WINDOW = 4  # readings that are judged together
TWINS_EVERY = 4  # automatic groups between two that the base draws too
RATED = 8  # groups, and as many before them
SURE = 3.0  # standard errors by which ratings must have fallen
LEVELS = frozenset({"stars", "good", "bad"})  # acts that say how good a group is; best and worst only order it
STATE = "alarms"  # the store's note


@dataclass(frozen=True)
class Twins:
    """How much the pictures of a group differ, and those that the base drew of the same prompt and seeds. Other prompts vary too much."""

    spread: float
    base: float


class Fallen(NamedTuple):
    """Mean stars of the newest rated groups and of those before, and the newest version that drew one of the latter."""

    then: float
    now: float
    version: int


class Watch:
    """Of one run, and kept in it. `alarm`: why automatic rounds have stopped, "" = they have not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        kept = store.noted(STATE, {})
        self.alarm: str = kept.get("alarm", "")
        self._good: int = kept.get("good", 0)
        self._since: int = kept.get("since", 0)  # acts before it were answered for by somebody
        self._drifts = [math.nan if drift is None else drift for drift in kept.get("drifts", [])]  # JSON has no NaN
        self._twins = [Twins(**twins) for twins in kept.get("twins", [])]
        self._seen: int = kept.get("seen", 0)

    def look(self, group: Group, drift: float, loop: LoopKnobs, twins: Callable[[], Pictures]) -> int | None:
        """Reads an automatic group. If it has gone too far the alarm is raised, and the version to go back to is returned; else None.

        twins: the group's pictures, and the base's of the same prompt and seeds; asked for now and then
        """
        self._drifts = [*self._drifts, drift][-WINDOW:]
        paired = self._seen % TWINS_EVERY == 0
        if paired:
            ours, base = twins()
            self._twins = [*self._twins, Twins(spread([ours]), spread([base]))][-WINDOW:]
        self._seen += 1
        back = None if self.alarm else self._judge(loop)
        if paired and not self.alarm and len(self._drifts) == WINDOW:
            self._good = group.policy_version
        self._keep()
        return back

    def dismiss(self) -> None:
        """Somebody has answered the alarm: automatic rounds may go on, and what people say is watched anew."""
        newest = self._store.history(limit=1)
        self.alarm, self._since = "", newest[0].act_id if newest else 0
        self._keep()

    def _judge(self, loop: LoopKnobs) -> int | None:
        found, good = self._sign(loop), self._good or adopted(self._store)
        if not found and (fallen := self._fallen()):
            found, good = f"your ratings have fallen from {fallen.then:.1f} to {fallen.now:.1f} stars", fallen.version
        if not found:
            return None
        self.alarm = f"Automatic rounds have stopped: {found}. Version {good} draws again."
        self._drifts, self._twins = [], []
        return good

    def _keep(self) -> None:
        twins = [asdict(each) for each in self._twins]
        known = {"alarm": self.alarm, "good": self._good, "since": self._since, "drifts": self._drifts, "twins": twins, "seen": self._seen}
        self._store.note(STATE, known)

    def _sign(self, loop: LoopKnobs) -> str:
        """What the readings of the window say, "" = nothing."""
        whence = "the LoRA that the run began from" if adopted(self._store) else "the base"
        drift = float(np.mean(self._drifts))
        if len(self._drifts) == WINDOW and drift > loop.drift_cap_nats:
            return f"pictures went {drift:.1f} nats a step from {whence}, and --loop.drift-cap-nats is {loop.drift_cap_nats:g}"
        ours, base = sum(twins.spread for twins in self._twins), sum(twins.base for twins in self._twins)
        share = ours / base if len(self._twins) == WINDOW and base else math.inf
        if share < loop.diversity_floor:
            return f"pictures of one prompt differ {share:.0%} as much as those of {whence}, and --loop.diversity-floor is {loop.diversity_floor:g}"
        return ""

    def _fallen(self) -> Fallen | None:
        """Whether what people see has become worse in their eyes."""
        entries = [entry for entry in self._store.history(limit=6 * RATED) if entry.act.kind in LEVELS and entry.act_id > self._since]
        newest, before = entries[:RATED], entries[RATED : 2 * RATED]
        if len(before) < RATED:
            return None
        now, then = _levels(newest), _levels(before)
        error = math.sqrt((now.var(ddof=1) + then.var(ddof=1)) / RATED)
        if then.mean() - now.mean() <= SURE * error:
            return None
        return Fallen(float(then.mean()), float(now.mean()), max(entry.group.policy_version for entry in before))


def _levels(entries: Sequence[Entry]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([np.mean([stars for stars in entry.act.stars if stars is not None]) for entry in entries])
