"""Scores of reward models, and all that the learner may learn from, read at once. Not advantages: mixing makes those of it."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loophil.errors import InvalidInput
from loophil.store.ratings import Ratings
from loophil.types import Group

Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Taught:
    """All that is known of one group: ratings {rater: (k,) stars}, scores {reward: (k,)}; NaN = nothing known.

    `acts` are the rows behind the ratings. `fresh` = something in it has taught no version yet.
    """

    group: Group
    ratings: Values
    scores: Values
    acts: tuple[int, ...]
    fresh: bool


class Lessons(Ratings):
    """Scores, and groups that can teach."""

    def add_scores(self, group_id: str, reward: str, values: Sequence[float] | NDArray[np.float64], reason: str = "") -> None:
        """One reward model's (k,) scores; what is not finite is missing, and `reason` says why. The newest win."""
        k = len(self.group(group_id).images)
        if len(values) != k:
            raise InvalidInput(f"Group {group_id} has {k} images, but {reward} gave {len(values)} scores: give one for each, NaN for none.")
        now = time.time()
        with self._write():
            for position, value in enumerate(values):
                known = float(value) if math.isfinite(value) else None
                self._insert("scores", group_id=group_id, reward=reward, position=position, value=known, reason=reason, created=now)

    def scores(self, group_id: str) -> Values:
        """{reward: (k,)}, NaN = missing."""
        group = self.group(group_id)
        rows = self._rows("SELECT group_id, reward AS source, position, value FROM scores WHERE group_id = ? ORDER BY id", group.id)
        return values_by_source(rows, {group.id: len(group.images)})[group.id]

    def learnable_groups(self, newest: int | None = None) -> list[Taught]:
        """All groups, or the `newest` so many, that can teach something, oldest first.

        That is those with a rated image, those answered without a rating if they have scores, and automatic ones with scores.
        """
        with self._lock:
            wanted = self._rows("SELECT number, id FROM learnable_groups ORDER BY number DESC LIMIT ?", -1 if newest is None else newest)
            since, ids = min((row["number"] for row in wanted), default=0), {row["id"] for row in wanted}
            groups = [g for g in self._groups("SELECT * FROM group_images WHERE number >= ? ORDER BY number, position", since) if g.id in ids]
            stars = self._rows(
                """SELECT a.group_id, a.rater AS source, r.position, r.stars AS value, a.id FROM current_acts a JOIN ratings r ON r.act_id = a.id
                WHERE a.group_id IN (SELECT id FROM groups WHERE number >= ?) ORDER BY a.id""",
                since,
            )
            scored = self._rows(
                """SELECT group_id, reward AS source, position, value FROM scores
                WHERE group_id IN (SELECT id FROM groups WHERE number >= ?) ORDER BY id""",
                since,
            )
            pending = {row["group_id"] for row in self._rows("SELECT group_id FROM pending")}
            learned = {row["group_id"] for row in self._rows("SELECT group_id FROM learned_groups")}
        ks = {group.id: len(group.images) for group in groups}
        ratings, scores, acts = values_by_source(stars, ks), values_by_source(scored, ks), act_ids(stars)
        return [Taught(g, ratings[g.id], scores[g.id], acts.get(g.id, ()), g.id in pending if ratings[g.id] else g.id not in learned) for g in groups]


def values_by_source(rows: Iterable[sqlite3.Row], ks: Mapping[str, int]) -> dict[str, Values]:
    """{group: {source: (k,)}}, NaN where there is no row or its value is NULL; later rows win."""
    table: dict[str, Values] = {group_id: {} for group_id in ks}
    for row in rows:
        group_id = row["group_id"]
        if group_id in ks:
            values = table[group_id].setdefault(row["source"], np.full(ks[group_id], np.nan))
            values[row["position"]] = math.nan if row["value"] is None else row["value"]
    return table


def act_ids(rows: Iterable[sqlite3.Row]) -> dict[str, tuple[int, ...]]:
    acts: dict[str, tuple[int, ...]] = {}
    for row in rows:
        before = acts.get(row["group_id"], ())
        if row["id"] not in before:
            acts[row["group_id"]] = (*before, row["id"])
    return acts
