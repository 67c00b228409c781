"""Hidden repeats: now and then a group is shown once more, to whoever rated it, to see how well people agree with themselves, or to another.

Which one follows from what was rated: nothing is left to chance, and a page that asks again gets the same. What was shown again is noted in the
store.
"""

from __future__ import annotations

from loophil.store import Store
from loophil.types import Group

EVERY = 20  # acts of a rater: 5% are repeats of their own, and 5% another's where there are several
BACK = 12  # acts that lie between, so that nobody remembers
NOTE = "repeats"  # [[rater, group], ...]
TELLING = ("best", "stars")


class Repeats:
    """The repeats of one run."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def due(self, rater: str) -> Group | None:
        """The group that this rater is to see again next, None = none."""
        turn = self._store.acted(rater) % EVERY
        if turn == EVERY // 2 - 1:
            return self._others(rater)
        if turn != EVERY - 1:
            return None
        known = {group for who, group in self._noted() if who == rater}
        older = [entry for entry in self._store.history(rater=rater, limit=BACK + EVERY)[BACK - 1 :] if entry.act.kind in TELLING]
        entry = next((entry for entry in older if entry.group.id not in known or self._waits(entry.group.id, rater)), None)
        if entry is None:
            return None
        if entry.group.id not in known:
            self._store.note(NOTE, [*self._noted(), [rater, entry.group.id]])
        return entry.group

    def _others(self, rater: str) -> Group | None:
        """The newest group that others have told apart and this rater was never shown, None = none."""
        others = [entry.group for entry in self._store.history(limit=BACK + EVERY) if entry.act.rater != rater and entry.act.kind in TELLING]
        return next((group for group in others if not any(record.act.rater == rater for record in self._store.acts(group.id))), None)

    def agreement(self, rater: str) -> tuple[float, int] | None:
        """(share of the pairs of images that this rater put in the same order both times, groups that were rated twice); None = none was.

        Of the pairs that were told apart the first time; one that was a tie the second time counts half.
        """
        shares, groups = list[float](), 0
        for who, group in self._noted():
            acts = [
                record.act.stars for record in self._store.acts(group) if record.act.rater == who and not record.undone and record.act.kind != "undo"
            ]
            if who == rater and len(acts) > 1:
                shares += _same_order(acts[0], acts[-1])
        groups = sum(who == rater and not self._waits(group, rater) for who, group in self._noted())
        return (sum(shares) / len(shares), groups) if shares else None

    def forget(self, rater: str) -> None:
        """Nothing of this rater stays."""
        self._store.note(NOTE, [entry for entry in self._noted() if entry[0] != rater])

    def _waits(self, group: str, rater: str) -> bool:
        """Whether a repeat was offered and is not rated yet."""
        return len(self._acts(group, rater)) < 2

    def _acts(self, group: str, rater: str) -> list[tuple[float | None, ...]]:
        """The stars of this rater's acts on a group that were not taken back, oldest first."""
        acts = [record for record in self._store.acts(group) if not record.undone and record.act.kind != "undo"]
        return [record.act.stars for record in acts if record.act.rater == rater]

    def _noted(self) -> list[list[str]]:
        noted: list[list[str]] = self._store.noted(NOTE, [])
        return noted


def _same_order(first: tuple[float | None, ...], second: tuple[float | None, ...]) -> list[float]:
    """1, 0.5 or 0 for each pair of images that the first time told apart and the second time rated."""
    same = []
    for i in range(len(first)):
        for j in range(i):
            a, b, c, d = first[i], first[j], second[i], second[j]
            if a is not None and b is not None and c is not None and d is not None and a != b:
                same.append(0.5 if c == d else float((a > b) == (c > d)))
    return same
