"""Groups of other runs with what people did with them: they teach the taste model and nothing else. How a file of them looks is in loophil/dataset.

They have no trajectory, and perhaps another base drew them. They lie in tables of their own that no query about this run reads: such a group is
never offered, never trained on, never counted, and no version of this run is said to have drawn it. Here are also the run's own groups as a
dataset has them, because both leave in one form.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loophil.errors import InvalidInput
from loophil.store.files import sync_folder, write_file
from loophil.store.groups import columns_of_group
from loophil.store.lessons import Lessons, Taught, act_ids, values_by_source
from loophil.store.ratings import ActRecord, columns_of_act
from loophil.types import Act, Group


@dataclass(frozen=True)
class RatedGroup:
    """A group that somebody answered, with all that is known of it.

    group    of `kind` "imported" if another run drew it; 0 denoising steps = its sampler settings are not known, seed -1 = nor is that seed
    acts     all that was ever done with it, oldest first, with what was superseded or taken back
    scores   {reward: one for each image, None = missing}; of this run's own groups alone
    """

    group: Group
    base_model: str
    revision: str | None
    scheduler: str
    acts: tuple[ActRecord, ...]
    scores: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def current(self) -> list[int]:
        """The numbers of the acts that count: of each rater the newest that was not taken back."""
        return sorted({record.act.rater: n for n, record in enumerate(self.acts) if record.act.kind != "undo" and not record.undone}.values())


class Imports(Lessons):
    """What was imported, and groups with their acts as they are exported."""

    def rated_groups(self) -> Iterator[RatedGroup]:
        """Every group that somebody answered: first the imported ones, then this run's, each kind oldest first."""
        imported = self._rows("SELECT id FROM imported_groups g WHERE EXISTS (SELECT 1 FROM imported_acts a WHERE a.group_id = g.id) ORDER BY number")
        own = self._rows("SELECT id FROM groups g WHERE EXISTS (SELECT 1 FROM acts a WHERE a.group_id = g.id) ORDER BY number")
        for row in (*imported, *own):
            if (rated := self.rated_group(row["id"])) is not None:
                yield rated

    def rated_group(self, group_id: str) -> RatedGroup | None:
        """A group of this run or an imported one, answered or not; None = there is none, or it was dropped."""
        with self._lock:
            return self._own(group_id) or self._imported(group_id)

    def has_image(self, image_id: str) -> bool:
        """Whether a group, this run's or imported, has an image of this id."""
        sql = "SELECT EXISTS (SELECT 1 FROM images WHERE id = ?) OR EXISTS (SELECT 1 FROM imported_images WHERE id = ?)"
        return bool(self._value(sql, image_id, image_id))

    def imported(self, newest: int) -> list[Taught]:
        """The newest so many imported groups with a rated image, oldest first. For the taste model: nothing else may learn from them."""
        with self._lock:
            groups = self._groups(
                """SELECT * FROM imported_group_images WHERE number IN (
                    SELECT number FROM imported_groups g WHERE EXISTS (
                        SELECT 1 FROM imported_current_acts a JOIN imported_ratings r ON r.act_id = a.id WHERE a.group_id = g.id)
                    ORDER BY number DESC LIMIT ?
                ) ORDER BY number, position""",
                newest,
            )
            stars = self._rows(
                """SELECT a.group_id, a.rater AS source, r.position, r.stars AS value, a.id
                FROM imported_current_acts a JOIN imported_ratings r ON r.act_id = a.id
                WHERE a.group_id IN (SELECT value FROM json_each(?)) ORDER BY a.id""",
                json.dumps([group.id for group in groups]),
            )
        ratings, acts = values_by_source(stars, {group.id: len(group.images) for group in groups}), act_ids(stars)
        return [Taught(group, ratings[group.id], {}, acts[group.id], fresh=False) for group in groups]

    @contextlib.contextmanager
    def importing(self) -> Iterator[Callable[[RatedGroup, Sequence[bytes]], None]]:
        """`add(rated, pictures)` takes in one group; at the end of the block all are kept in one transaction, after an exception none is.

        Pictures get file names of their own, so that none of the run's is ever overwritten.
        """
        added: list[RatedGroup] = []
        files: list[Path] = []

        def add(rated: RatedGroup, pictures: Sequence[bytes]) -> None:
            refs = tuple(replace(ref, file=secrets.token_hex(16) + Path(ref.file).suffix) for ref in rated.group.images)
            for ref, picture in zip(refs, pictures, strict=True):
                files.append(self.images / ref.file)
                write_file(files[-1], picture)
            added.append(replace(rated, group=replace(rated.group, images=refs)))

        try:
            yield add
            sync_folder(self.images)
            with self._write():
                for rated in added:
                    self._insert_imported(rated)
        except BaseException:
            for file in files:
                file.unlink(missing_ok=True)
            raise

    def _insert_imported(self, rated: RatedGroup) -> None:
        drawn = columns_of_group(rated.group, rated.scheduler)
        self._insert("imported_groups", **drawn, base_model=rated.base_model, revision=rated.revision, imported=time.time())
        self._insert_images("imported_images", rated.group)
        numbers: list[int] = []
        for record, back in zip(rated.acts, taken_back([record.act for record in rated.acts]), strict=True):
            numbers.append(self._insert_imported_act(record, None if back is None else numbers[back]))

    def _insert_imported_act(self, record: ActRecord, undoes: int | None) -> int:
        done = columns_of_act(record.act)
        number = self._insert("imported_acts", **done, undoes=undoes, policy_version=record.policy_version, created=record.created)
        self._insert_stars("imported_ratings", number, record.act)
        return number

    def _forget_imported(self, rater: str) -> int:
        """In a transaction in which these tables may shrink: how many acts on imported groups were deleted."""
        self._db.execute("DELETE FROM imported_ratings WHERE act_id IN (SELECT id FROM imported_acts WHERE rater = ?)", (rater,))
        return int(self._db.execute("DELETE FROM imported_acts WHERE rater = ?", (rater,)).rowcount)

    def _own(self, group_id: str) -> RatedGroup | None:
        groups = self._groups("SELECT * FROM group_images WHERE id = ? AND id NOT IN (SELECT group_id FROM dropped) ORDER BY position", group_id)
        if not groups:
            return None
        base_model, revision, scheduler = self._rows("SELECT base_model, revision, scheduler FROM run, groups WHERE id = ?", group_id)[0]
        known = self.scores(group_id).items()
        scores = {reward: tuple(None if math.isnan(value) else float(value) for value in values) for reward, values in known}
        return RatedGroup(groups[0], base_model, revision, scheduler, tuple(self.acts(group_id)), scores)

    def _imported(self, group_id: str) -> RatedGroup | None:
        groups = self._groups("SELECT * FROM imported_group_images WHERE id = ? ORDER BY position", group_id)
        if not groups:
            return None
        base_model, revision, scheduler = self._rows("SELECT base_model, revision, scheduler FROM imported_groups WHERE id = ?", group_id)[0]
        acts = self._acts("SELECT * FROM imported_act_images WHERE group_id = ? ORDER BY id, position", group_id)
        return RatedGroup(groups[0], base_model, revision, scheduler, tuple(acts))


def taken_back(acts: Sequence[Act]) -> list[int | None]:
    """For each act on a group, oldest first, the number of the one that it takes back, None = it is no undo. InvalidInput where there is none."""
    standing: dict[str, list[int]] = {}
    back: list[int | None] = []
    for n, act in enumerate(acts):
        mine = standing.setdefault(act.rater, [])
        if act.kind != "undo":
            mine.append(n)
        elif not mine:
            raise InvalidInput(f"{act.rater} takes back an act on group {act.group} that is not there: an undo follows what it undoes.")
        back.append(mine.pop() if act.kind == "undo" else None)
    return back
