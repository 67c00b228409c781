"""Updates and the versions they publish: files first, then one transaction. Not what is in a version: a callback writes that."""

from __future__ import annotations

import itertools
import json
import reprlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loophil.errors import RunError, UnknownVersion
from loophil.store.connection import Connection, to_json
from loophil.store.files import STAGING, is_whole, publish_folder
from loophil.types import Version

# Files of a version that resuming wants and rolling back does not: kept for the newest few only.
TRAINING_STATE = ("optimizer.safetensors", "rng.*")


@dataclass(frozen=True)
class Update:
    """One attempt to learn. `status`: "running", "committed" (`version` is its result) or "aborted" (`reason` says why)."""

    id: int
    base_version: int
    status: str
    version: int | None
    started: float
    finished: float | None
    stats: dict[str, Any]
    reason: str


class Versions(Connection):
    """Numbers only grow. Version 0 is the base and has no files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._publishing = threading.Lock()

    def begin_update(self, base_version: int) -> int:
        """The number of a new update that starts from this version."""
        with self._write():
            return self._insert("updates", base_version=base_version, status="running", started=time.time())

    def abort_update(self, update: int, reason: str) -> None:
        """Says why a running update came to nothing; one that has ended stays as it is."""
        with self._write():
            self._abort_updates(update, reason)

    def updates(self) -> list[Update]:
        """Every update, oldest first."""
        rows = self._rows("SELECT * FROM updates ORDER BY id")
        return [Update(**{**dict(row), "stats": json.loads(row["stats"])}) for row in rows]

    def publish(
        self,
        update: int | None,
        *,
        parent: int,
        kind: str,
        write: Callable[[Path], None],
        uses: Iterable[tuple[int, str]] = (),
        groups_learned: Iterable[str] = (),
        stats: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Version:
        """A new version, whole or not at all: `write(folder)` fills it, then one transaction makes it current and ends the update.

        uses: (act, objective) that it learned from; groups_learned: ids, rated or not; update: None for a rollback;
        notes: see `note`. RunError if the update is not running. The files do not hold up ratings: only the transaction does.
        """
        with self._publishing:
            number = self._value("SELECT max(number) + 1 FROM versions")
            sha256 = publish_folder(self._folder(number), write)
            with self._write():
                self._insert("versions", number=number, parent=parent, kind=kind, created=time.time(), sha256=sha256)
                self._insert_uses(number, set(uses))
                for group_id in set(groups_learned):
                    self._insert("learned", group_id=group_id, version=number)
                self._db.execute("UPDATE versions SET ratings = ? WHERE number = ?", (self._images_behind(number), number))
                if update is not None:
                    self._commit_update(update, number, stats or {})
                self._keep_pending()
                self._insert_notes(notes)
            return self.version(number)

    def versions(self) -> list[Version]:
        """Every version that is not known to be damaged, oldest first; the first is 0, the base."""
        return self._versions("SELECT * FROM versions WHERE NOT broken ORDER BY number")

    def version(self, number: int) -> Version:
        """UnknownVersion if there is none, or its files are damaged."""
        possible = type(number) is int and 0 <= number < 2**63
        found = self._versions("SELECT * FROM versions WHERE NOT broken AND number = ?", number) if possible else []
        if not found:
            newest = self.current_version().number
            raise UnknownVersion(f"There is no version {reprlib.repr(number)} in the run '{self.name}': choose one from 0 to {newest}.")
        return found[0]

    def current_version(self) -> Version:
        """The newest version."""
        return self._versions("SELECT * FROM versions WHERE NOT broken ORDER BY number DESC LIMIT 1")[0]

    def version_path(self, number: int) -> Path:
        """The folder of a version, checksums verified. UnknownVersion if they fail, and for 0, which has no files."""
        if not self._verifies(self.version(number)):
            raise UnknownVersion(f"Version {number} of the run '{self.name}' has no files, or they are damaged: choose another version.")
        return self._folder(number)

    def prune_training_state(self, keep: int = 3) -> None:
        """Frees the optimizer and RNG state of all but the `keep` newest versions; their adapters stay."""
        for version in self.versions()[: -keep or None]:
            for pattern in TRAINING_STATE:
                for file in self._folder(version.number).glob(pattern):
                    file.unlink()

    def _insert_uses(self, version: int, uses: set[tuple[int, str]]) -> None:
        """Acts that their rater had deleted while the version learned from them are left out."""
        sql = """SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM acts)
            AND value <= (SELECT max(last_act) FROM forgotten)"""
        forgotten = {row["value"] for row in self._rows(sql, json.dumps([act for act, _ in uses]))}
        for act, objective in uses:
            if act not in forgotten:
                self._insert("uses", act_id=act, version=version, objective=objective)

    def _commit_update(self, update: int, version: int, stats: Mapping[str, Any]) -> None:
        sql = "UPDATE updates SET status = 'committed', version = ?, finished = ?, stats = ? WHERE id = ? AND status = 'running'"
        if self._db.execute(sql, (version, time.time(), to_json(stats), update)).rowcount != 1:
            raise RunError(f"Update {update} of the run '{self.name}' is not running: its result was thrown away. Begin a new one.")

    def _abort_updates(self, update: int | None, reason: str) -> int:
        """How many were running; None = all."""
        sql = "UPDATE updates SET status = 'aborted', finished = ?, reason = ? WHERE status = 'running' AND id = coalesce(?, id)"
        return self._db.execute(sql, (time.time(), reason, update)).rowcount

    def _images_behind(self, version: int) -> int:
        """How many rated images this version and its ancestors learned from."""
        sql = """WITH RECURSIVE line (number) AS (
                SELECT ? UNION SELECT v.parent FROM versions v JOIN line ON v.number = line.number WHERE v.parent IS NOT NULL)
            SELECT count(*) FROM (SELECT DISTINCT a.group_id, r.position FROM line JOIN uses u ON u.version = line.number
                JOIN acts a ON a.id = u.act_id JOIN ratings r ON r.act_id = a.id)"""
        return int(self._value(sql, version))

    def _mark_broken_versions(self) -> list[int]:
        """From the newest down to the first that verifies; older ones are verified when they are asked for."""
        broken = [v.number for v in itertools.takewhile(lambda v: v.number > 0 and not self._verifies(v), reversed(self.versions()))]
        for number in broken:
            self._db.execute("UPDATE versions SET broken = 1 WHERE number = ?", (number,))
        return broken

    def _remove_orphaned_versions(self) -> None:
        """Folders without a row: a kill came before the transaction."""
        numbers = {str(row["number"]) for row in self._rows("SELECT number FROM versions")}
        for folder in (self.path / "versions").iterdir():
            if folder.name.startswith(STAGING) or (folder.name.isdigit() and folder.name not in numbers):
                shutil.rmtree(folder)

    def _verifies(self, version: Version) -> bool:
        return is_whole(self._folder(version.number), version.sha256, may_miss=TRAINING_STATE)

    def _folder(self, number: int) -> Path:
        return self.path / "versions" / str(number)

    def _versions(self, sql: str, *values: Any) -> list[Version]:
        rows = self._rows(sql, *values)
        return [Version(row["number"], row["parent"], row["kind"], row["created"], row["ratings"], row["sha256"]) for row in rows]
