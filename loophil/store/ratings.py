"""What people did with groups: filed once, never changed, superseded by what they do next. Not what the ratings are worth: see mixing."""

from __future__ import annotations

import itertools
import json
import reprlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from loophil.errors import InvalidInput, KeyConflict, UnknownGroup
from loophil.store.groups import Groups
from loophil.types import RATINGS_MAX, RATINGS_MIN, Act, Receipt

ACT_KINDS = ("stars", "best", "tie", "good", "bad", "skip", "undo")
MAX_TEXT = 200


@dataclass(frozen=True)
class ActRecord:
    """An act as it was filed. `policy_version` was current then; `undone` = taken back by a later undo."""

    id: int
    act: Act
    policy_version: int
    created: float
    undone: bool


class Ratings(Groups):
    """The acts of a run. Per rater and group the newest counts; an undo takes the newest back, so that the one before counts again."""

    def rate(self, act: Act, policy_version: int) -> Receipt:
        """Files an act; durable when it returns. UnknownGroup, InvalidInput and KeyConflict change nothing.

        The same key with the same content gets the first answer again, however often it comes.
        """
        act = check_act(act, len(self.group(act.group).images))
        with self._write():
            answered = self._answered(act)
            if answered is not None:
                return answered
            if self._rows("SELECT 1 FROM dropped WHERE group_id = ?", act.group):
                raise UnknownGroup(f"Group {act.group} was dropped before anyone rated it: ask for a new group.")
            number = self._insert_act(act, policy_version)
            pending = self._keep_pending(act.group)
            self._insert("receipts", act_id=number, pending=pending)
            return Receipt(number, _rated(act), policy_version, pending)

    def acts(self, group_id: str) -> list[ActRecord]:
        """All that was ever done with a group, oldest first, with what was superseded or taken back."""
        return self._acts("SELECT * FROM act_images WHERE group_id = ? ORDER BY id, position", self.group(group_id).id)

    def last_act(self, rater: str) -> ActRecord | None:
        """What an undo by this rater should take back: their newest act in the run that was not taken back."""
        sql = "SELECT * FROM act_images WHERE id = (SELECT max(id) FROM standing_acts WHERE rater = ?) ORDER BY position"
        return next(iter(self._acts(sql, rater)), None)

    def _insert_act(self, act: Act, policy_version: int) -> int:
        number = self._insert(
            "acts",
            **columns_of_act(act),
            id=self._next_act(),
            key=act.key or None,
            undoes=self._to_undo(act) if act.kind == "undo" else None,
            rated=_rated(act),
            policy_version=policy_version,
            created=time.time(),
        )
        self._insert_stars("ratings", number, act)
        return number

    def _insert_stars(self, table: str, number: int, act: Act) -> None:
        for position, stars in enumerate(act.stars):
            if stars is not None:
                self._insert(table, act_id=number, position=position, stars=stars)

    def _next_act(self) -> int:
        """Numbers only grow: those of deleted acts are never given again, or what these had taught would count for a new one."""
        sql = "SELECT max(coalesce((SELECT max(id) FROM acts), 0), coalesce((SELECT max(last_act) FROM forgotten), 0)) + 1"
        return int(self._value(sql))

    def _answered(self, act: Act) -> Receipt | None:
        filed = self._acts("SELECT * FROM act_images WHERE key = ? ORDER BY position", act.key) if act.key else []
        if not filed:
            return None
        if filed[0].act != act:
            raise KeyConflict(f"The key {reprlib.repr(act.key)} was used before with other content: use a new key for every rating.")
        pending = self._value("SELECT pending FROM receipts WHERE act_id = ?", filed[0].id)
        return Receipt(filed[0].id, _rated(act), filed[0].policy_version, pending)

    def _to_undo(self, act: Act) -> int:
        newest = self._value("SELECT max(id) FROM standing_acts WHERE group_id = ? AND rater = ?", act.group, act.rater)
        if newest is None:
            raise InvalidInput(f"{act.rater} has nothing to undo on group {act.group}: rate it first.")
        return int(newest)

    def _acts(self, sql: str, *values: Any) -> list[ActRecord]:
        return [_record(list(images)) for _, images in itertools.groupby(self._rows(sql, *values), key=lambda row: row["id"])]


def columns_of_act(act: Act) -> dict[str, Any]:
    """What somebody did, as it is kept."""
    return {
        "group_id": act.group,
        "rater": act.rater,
        "kind": act.kind,
        "best": act.best,
        "worst": act.worst,
        "shown_order": json.dumps(act.order),
        "milliseconds": act.milliseconds,
    }


def _record(rows: Sequence[sqlite3.Row]) -> ActRecord:
    row = rows[0]
    act = Act(
        group=row["group_id"],
        rater=row["rater"],
        stars=tuple(image["stars"] for image in rows),
        kind=row["kind"],
        best=row["best"],
        worst=row["worst"],
        order=tuple(json.loads(row["shown_order"])),
        milliseconds=row["milliseconds"],
        key=row["key"] or "",
    )
    return ActRecord(row["id"], act, row["policy_version"], row["created"], bool(row["undone"]))


def _rated(act: Act) -> int:
    return sum(stars is not None for stars in act.stars)


def check_act(act: Act, k: int) -> Act:
    """The act on a group of k images with its numbers in one form, or InvalidInput."""
    if act.kind not in ACT_KINDS:
        raise InvalidInput(f"Unknown kind of rating {reprlib.repr(act.kind)}. Choose from: {', '.join(ACT_KINDS)}.")
    if act.best is not None and act.best == act.worst:
        raise InvalidInput(f"Image {reprlib.repr(act.best)} cannot be both the best and the worst: choose another for one of them.")
    return Act(
        group=act.group,
        rater=check_text(act.rater, "rater", 1),
        stars=_stars(act, k),
        kind=act.kind,
        best=check_number(act.best, "best", k),
        worst=check_number(act.worst, "worst", k),
        order=_order(act.order, k),
        milliseconds=check_number(act.milliseconds, "milliseconds", 2**53),
        key=check_text(act.key, "key", 0),
    )


def _stars(act: Act, k: int) -> tuple[float | None, ...]:
    silent = act.kind in ("skip", "undo")
    stars = tuple(act.stars) or (None,) * (k if silent else 0)
    if len(stars) != k:
        raise InvalidInput(f"Group {act.group} has {k} images, but {len(stars)} ratings came: send one for each image, null for none.")
    if silent and any(value is not None for value in stars):
        raise InvalidInput(f"'{act.kind}' carries no ratings: send null for every image.")
    return tuple(_star(value) for value in stars)


def _star(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not RATINGS_MIN <= float(value) <= RATINGS_MAX:
        raise InvalidInput(f"A rating of {reprlib.repr(value)} is not possible: send a number from 1 to 5, or null for none.")
    return float(value)


def check_number(value: Any, what: str, end: int) -> int | None:
    """A whole number below `end`, or None; InvalidInput for anything else."""
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < end:
        raise InvalidInput(f"{what} = {reprlib.repr(value)} is not possible: send a whole number from 0 to {end - 1}, or null.")
    return value


def _order(value: Sequence[int], k: int) -> tuple[int, ...]:
    order = tuple(value)
    if order and not (all(type(position) is int for position in order) and sorted(order) == list(range(k))):
        raise InvalidInput(f"The order {reprlib.repr(order)} is not possible: name each image from 0 to {k - 1} once, or none.")
    return order


def check_text(value: Any, what: str, shortest: int) -> str:
    """At most MAX_TEXT printable characters, or InvalidInput."""
    if not isinstance(value, str) or not shortest <= len(value) <= MAX_TEXT or not value.isprintable():
        raise InvalidInput(f"The {what} {reprlib.repr(value)} is not possible: send {shortest} to {MAX_TEXT} printable characters.")
    return value
