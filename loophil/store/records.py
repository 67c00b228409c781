"""What the tabs beside the board keep and look up: history, blind pairs, names of versions; and the deletion of one person's ratings.

Not how ratings are filed (ratings), nor what they teach (lessons).
"""

from __future__ import annotations

import contextlib
import json
import reprlib
import sqlite3
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from loophil.errors import InvalidInput, KeyConflict, RunError
from loophil.store.connection import to_json
from loophil.store.imports import Imports
from loophil.store.ratings import ACT_KINDS, check_number, check_text
from loophil.store.ratings_file import COLUMNS
from loophil.store.versions import Versions
from loophil.types import HUMAN, MAX_PROMPT, MAX_SEED, Entry, Mean, Pair, Tally

CHOICES = ("tuned", "base", "tie")
MAX_NAME = 80
DELETED = "(deleted)"  # whose share in an update it is once a rater's ratings are deleted


class Records(Imports, Versions):
    """Everything that is known, for people to look at, take away or take out."""

    def add_pair(self, pair: Pair) -> int:
        """Files a blind comparison, durable when it returns: its row number. InvalidInput, UnknownVersion and KeyConflict change nothing.

        The same key with the same content gets the first row number again, however often it comes.
        """
        pair = check_pair(pair)
        with self._write():
            filed = self._rows("SELECT * FROM pairs WHERE key = ?", pair.key) if pair.key else []
            if filed and _pair(filed[0]) != pair:
                raise KeyConflict(f"The key {reprlib.repr(pair.key)} was used before with other content: use a new key for every comparison.")
            if filed:
                return int(filed[0]["id"])
            for number in (pair.version, pair.against):
                self.version(number)
            return self._insert("pairs", **{**vars(pair), "key": pair.key or None, "created": time.time()})

    def tallies(self) -> list[Tally]:
        """How each version that was compared with the base did, oldest version first."""
        rows = self._rows(
            """SELECT version, sum(choice = 'tuned') AS tuned, sum(choice = 'base') AS base, sum(choice = 'tie') AS tie
            FROM pairs WHERE against = 0 GROUP BY version ORDER BY version"""
        )
        return [Tally(**dict(row)) for row in rows]

    def name_version(self, number: int, name: str) -> None:
        """Gives a version a name in place of the one before; "" takes it away. UnknownVersion, InvalidInput."""
        version, name = self.version(number).number, _line(name, "name", 0, MAX_NAME)
        with self._write():
            self._insert("names", version=version, name=name, created=time.time())

    def version_names(self) -> dict[int, str]:
        """{version: name} of those that have one, oldest version first."""
        rows = self._rows("SELECT version, name FROM names n WHERE id = (SELECT max(id) FROM names WHERE version = n.version) ORDER BY version")
        return {row["version"]: row["name"] for row in rows if row["name"]}

    def history(
        self,
        *,
        rater: str | None = None,
        version: int | None = None,
        kind: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Entry]:
        """The acts that count now, newest first: of this rater, on groups drawn by this version, of this kind; None = any.

        `before` is the `act_id` of the last entry of the page before. InvalidInput for what no act can have.
        """
        if kind is not None and kind not in ACT_KINDS:
            raise InvalidInput(f"Unknown kind of rating {reprlib.repr(kind)}. Choose from: {', '.join(ACT_KINDS)}.")
        wanted = (
            rater if rater is None else check_text(rater, "rater", 1),
            check_number(version, "version", 2**53),
            kind,
            check_number(before, "before", 2**53),
            check_number(limit, "limit", 2**53),
        )
        with self._lock:
            acts = self._acts(
                """SELECT * FROM act_images WHERE id IN (
                    SELECT a.id FROM current_acts a JOIN groups g ON g.id = a.group_id
                    WHERE coalesce(?, a.rater) = a.rater AND coalesce(?, g.policy_version) = g.policy_version AND coalesce(?, a.kind) = a.kind
                    AND a.id < coalesce(?, a.id + 1) ORDER BY a.id DESC LIMIT ?
                ) ORDER BY id DESC, position""",
                *wanted,
            )
            groups = self._groups(
                "SELECT * FROM group_images WHERE id IN (SELECT value FROM json_each(?)) ORDER BY number, position",
                json.dumps([record.act.group for record in acts]),
            )
            uses = self._rows(
                """SELECT DISTINCT act_id, version FROM uses JOIN versions v ON v.number = version
                WHERE act_id IN (SELECT value FROM json_each(?)) AND NOT v.broken ORDER BY version""",
                json.dumps([record.id for record in acts]),
            )
        of = {group.id: group for group in groups}
        taught: dict[int, tuple[int, ...]] = {}
        for use in uses:
            taught[use["act_id"]] = (*taught.get(use["act_id"], ()), use["version"])
        return [Entry(of[record.act.group], record.act, record.created, record.id, taught.get(record.id, ())) for record in acts]

    def acted(self, rater: str) -> int:
        """How many acts of this rater stand: also those that a newer one on the same group has superseded."""
        return int(self._value("SELECT count(*) FROM standing_acts WHERE rater = ?", rater))

    def means(self) -> list[Mean]:
        """The mean stars of all people and the mean score of each reward model over the images of each version, oldest version first."""
        rows = self._rows(
            """SELECT g.policy_version AS version, 'stars' AS source, avg(r.stars) AS mean, count(*) AS n
            FROM current_acts a JOIN groups g ON g.id = a.group_id JOIN ratings r ON r.act_id = a.id GROUP BY version
            UNION ALL
            SELECT g.policy_version, s.reward, avg(s.value), count(*) FROM scores s JOIN groups g ON g.id = s.group_id
            WHERE s.value IS NOT NULL GROUP BY g.policy_version, s.reward ORDER BY version, source"""
        )
        return [Mean(**dict(row)) for row in rows]

    def ratings_rows(self) -> list[dict[str, Any]]:
        """One row for each image of every act ever filed, oldest first, with the COLUMNS of ratings_file; an undo has its rows too."""
        rows = self._rows(
            """SELECT a.*, a.id AS act, a.group_id AS "group", a.policy_version AS rated_version, a.id IN (SELECT id FROM current_acts) AS current,
            g.image, g.file, g.prompt, g.negative_prompt, g.seed, g.policy_version AS drawn_version, g.scheduler, g.num_inference_steps,
            g.guidance_scale, g.eta
            FROM act_images a JOIN group_images g ON g.id = a.group_id AND g.position = a.position ORDER BY a.id, a.position"""
        )
        return [{column: _column(row, column) for column in COLUMNS} for row in rows]

    def forget_rater(self, rater: str) -> int:
        """Deletes all that this person rated and compared, here or in imported groups, and what is said of what it taught; how many acts those were.

        In one transaction, and really: the database is then written anew, so that no trace of them is left in it. Groups, images and
        versions stay, and LoRA weights that have learned from the ratings stay as they are. Keys of what was deleted are free again.
        """
        rater = check_text(rater, "rater", 1)
        with self._lock:
            with self._write(), self._unguarded("uses", "ratings", "receipts", "acts", "pairs", "imported_ratings", "imported_acts"):
                last = self._value("SELECT max(id) FROM acts")
                for table in ("uses", "ratings", "receipts"):
                    self._db.execute(f"DELETE FROM {table} WHERE act_id IN (SELECT id FROM acts WHERE rater = ?)", (rater,))  # noqa: S608
                deleted = self._db.execute("DELETE FROM acts WHERE rater = ?", (rater,)).rowcount
                self._db.execute("DELETE FROM pairs WHERE rater = ?", (rater,))
                if deleted:
                    self._insert("forgotten", last_act=last, created=time.time())
                self._forget_shares(rater)
                self._keep_pending()
                deleted += self._forget_imported(rater)
            self._rewrite()
        return deleted

    def _rewrite(self) -> None:
        """Makes the files of the database anew from what is in it: secure_delete misses copies that the balancing of pages leaves in their gaps."""
        try:
            self._db.execute("VACUUM")
            held = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            reason = "another program reads the database" if held else ""
        except sqlite3.OperationalError as error:
            reason = str(error)
        if reason:
            raise RunError(
                f"The ratings are deleted from the run '{self.name}', but traces of them may be left in its file ({reason}): "
                "free the disk, close other programs and delete them again."
            )

    def _forget_shares(self, rater: str) -> None:
        """The person's name in the stats of updates."""
        for row in self._rows("SELECT id, stats FROM updates"):
            stats = json.loads(row["stats"])
            shares = stats.get("shares", {})
            if (share := shares.pop(HUMAN + rater, None)) is not None:
                shares[HUMAN + DELETED] = shares.get(HUMAN + DELETED, 0) + share
                self._db.execute("UPDATE updates SET stats = ? WHERE id = ?", (to_json(stats), row["id"]))

    @contextlib.contextmanager
    def _unguarded(self, *tables: str) -> Iterator[None]:
        """In a transaction: these tables may shrink inside the block; what forbids it is back, word for word, at its end."""
        guards = self._guards(tables)
        for name, _ in guards:
            self._db.execute(f"DROP TRIGGER {name}")
        yield
        for _, statement in guards:
            self._db.execute(statement)
        if self._guards(tables) != guards:
            raise RunError(f"The history of the run '{self.name}' could not be closed again: nothing was deleted. Start LoopHIL again.")

    def _guards(self, tables: Sequence[str]) -> list[tuple[str, str]]:
        """(name, statement) of the triggers on these tables."""
        sql = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name IN (SELECT value FROM json_each(?)) ORDER BY name"
        return [(row["name"], row["sql"]) for row in self._rows(sql, json.dumps(tables))]


def _column(row: sqlite3.Row, column: str) -> Any:
    if column == "policy_version":
        return row["drawn_version"]
    return json.loads(row[column]) if column == "shown_order" else row[column]


def _pair(row: sqlite3.Row) -> Pair:
    known = {column: row[column] for column in row.keys() if column not in ("id", "created")}  # noqa: SIM118
    return Pair(**known | {"left_is_tuned": bool(row["left_is_tuned"]), "key": row["key"] or ""})


def check_pair(pair: Pair) -> Pair:
    """The pair as it is kept, or InvalidInput. Whether its versions are there is not asked."""
    if pair.choice not in CHOICES:
        raise InvalidInput(f"Unknown choice {reprlib.repr(pair.choice)}. Choose from: {', '.join(CHOICES)}.")
    if pair.version in (0, pair.against):
        raise InvalidInput(f"Version {reprlib.repr(pair.version)} cannot be the tuned side here: choose one from 1 that is not compared with itself.")
    if type(pair.seed) is not int or not 0 <= pair.seed < MAX_SEED:
        raise InvalidInput(f"A seed is a whole number from 0 to 2^53 - 1, not {reprlib.repr(pair.seed)}.")
    if type(pair.left_is_tuned) is not bool:
        raise InvalidInput(f"left_is_tuned = {reprlib.repr(pair.left_is_tuned)} is not possible: send true or false.")
    return replace(
        pair,
        prompt=_line(pair.prompt, "prompt", 1, MAX_PROMPT),
        rater=check_text(pair.rater, "rater", 1),
        milliseconds=check_number(pair.milliseconds, "milliseconds", 2**53),
        key=check_text(pair.key, "key", 0),
    )


def _line(value: Any, what: str, shortest: int, longest: int) -> str:
    """One line of any script, spaces around it cut off: also emoji, whose joiners are not printable."""
    text = value.strip() if isinstance(value, str) else None
    if text is None or not shortest <= len(text) <= longest or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        raise InvalidInput(f"The {what} {reprlib.repr(value)} is not possible: send {shortest} to {longest} characters in one line of plain text.")
    return text
