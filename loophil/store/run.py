"""One run: opened by one process at a time, repaired from whatever the last one left, counted. Not the parts: see their modules."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import reprlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from loophil import __version__
from loophil.config import RUN_NAME
from loophil.errors import RunError
from loophil.store.connection import to_json
from loophil.store.files import replace_file
from loophil.store.records import Records

log = logging.getLogger(__name__)

LAST = ".last"
SET_ON_PAGE = "page.settings"  # the note that holds what was changed on the page
ASKED = "revision.asked"  # the note of the branch or tag that was asked for, None = the newest, where the run's revision is the commit that it meant


@dataclass(frozen=True)
class Counts:
    """`ratings`: images with a current rating, counted per rater; `groups`: drawn and not dropped; `no_signal`: summed over committed updates."""

    ratings: int
    groups: int
    rated_groups: int
    updates: int
    pending: int
    no_signal: int


def list_runs(runs: Path) -> list[str]:
    """The names of all runs in this folder, in alphabetical order."""
    return sorted(file.parent.name for file in runs.glob("*/run.sqlite") if re.fullmatch(RUN_NAME, file.parent.name))


@dataclass(frozen=True)
class RunInfo:
    """A run as it lies on the disk: its base model, how far it is, when it was used last (Unix seconds).

    settings: those of its last opening;  changed: {knob: value} of what was changed on the page
    """

    name: str
    base_model: str
    ratings: int
    version: int
    used: float
    settings: dict[str, Any]
    changed: dict[str, Any]


def describe_runs(runs: Path) -> list[RunInfo]:
    """Every run that can be read, the one used last first; nothing is changed, and a run that is open elsewhere is described too."""
    found = []
    for name in list_runs(runs):
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect((runs / name / "run.sqlite").absolute().as_uri() + "?mode=ro", uri=True)) as db,
        ):
            row = db.execute(
                """SELECT base_model, (SELECT coalesce(sum(rated), 0) FROM current_acts), (SELECT max(number) FROM versions WHERE NOT broken),
                max(created, coalesce((SELECT max(created) FROM openings), 0), coalesce((SELECT max(created) FROM acts), 0)),
                (SELECT settings FROM openings ORDER BY id DESC LIMIT 1), (SELECT value FROM notes WHERE key = ?) FROM run""",
                (SET_ON_PAGE,),
            ).fetchone()
            if row:
                base_model, ratings, version, used, settings, changed = row
                found.append(RunInfo(name, base_model, ratings, version, used, json.loads(settings or "{}"), json.loads(changed or "{}")))
    return sorted(found, key=lambda info: -info.used)


@contextlib.contextmanager
def hold(runs: Path, name: str) -> Iterator[Path]:
    """A run's folder while no process has it open; RunError where one has. The folder may be gone or moved at the end."""
    folder = runs.absolute() / name
    lock = _lock(folder)
    try:
        yield folder
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"The run '{folder.name}' is open in another process: close that one, or choose another run with --run NAME.") from None
    return lock


def open_run(runs: Path, name: str | None, *, base_model: str, revision: str | None, settings_json: str = "{}") -> Store:
    """The run of that name, new or as any kill left it; None = the one opened last, else "first".

    RunError: not a run name, open elsewhere, of another base model, damaged, written by a newer LoopHIL, or no place to write.
    """
    name = (last_opened(runs) or "first") if name is None else name
    if not re.fullmatch(RUN_NAME, name):
        raise RunError(f"{reprlib.repr(name)} is not a run name: use up to 64 of a-z, 0-9, '-' and '_', a letter or digit first.")
    path = runs.absolute() / name
    try:
        for folder in ("images", "transitions", "versions"):
            (path / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The runs folder {runs} cannot be used ({error.strerror}): choose another with --runs.") from error
    with contextlib.ExitStack() as undo:
        lock = _lock(path)
        undo.callback(lock.release)
        store = Store(path, lock)
        undo.callback(store.close)
        store._enter(base_model, revision, settings_json)
        replace_file(runs / LAST, name.encode())
        undo.pop_all()
    return store


def last_opened(runs: Path) -> str | None:
    """The name of the run that was opened last, None = there is none."""
    try:
        name = (runs / LAST).read_text("utf-8", "replace")
    except OSError:
        return None
    return name if name in list_runs(runs) else None


class Store(Records):
    """One open run; made by `open_run`. Any thread may call anything.

    What a method writes is durable when it returns. RunError says that nothing was saved: disk full, database held by
    another program, or run closed. `recovered` holds a sentence for each thing that the opening put right.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(path)
        self.recovered: tuple[str, ...] = ()
        self._run_lock = lock

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Moves the WAL into the database and lets another process have the run. A second call does nothing."""
        try:
            super().close()
        finally:
            self._run_lock.release()

    def counts(self) -> Counts:
        """The numbers of the status line."""
        row = self._rows(
            """SELECT (SELECT coalesce(sum(rated), 0) FROM current_acts) AS ratings,
            (SELECT count(*) FROM groups) - (SELECT count(*) FROM dropped) AS groups,
            (SELECT count(DISTINCT group_id) FROM current_acts WHERE rated > 0) AS rated_groups,
            (SELECT count(*) FROM updates WHERE status = 'committed') AS updates,
            (SELECT count(*) FROM pending) AS pending,
            (SELECT coalesce(sum(json_extract(stats, '$.no_signal')), 0) FROM updates WHERE status = 'committed') AS no_signal"""
        )[0]
        return Counts(**dict(row))

    def copy_database(self, file: Path) -> tuple[int, int]:
        """Writes a consistent copy of the database, one file without a WAL; (when the run was begun, in ms since 1970; deletions of ratings so far).

        It is read by a connection of its own, which writes nothing, so nobody waits for it. RunError where it cannot be copied or is damaged.
        """
        address = (self.path / "run.sqlite").as_uri() + "?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True)) as source, contextlib.closing(sqlite3.connect(file)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = delete")
                if (fault := copy.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    raise RunError(f"The database of the run '{self.name}' is damaged ({fault}).")
                begun, deletions = copy.execute("SELECT created, (SELECT count(*) FROM forgotten) FROM run").fetchone()
        except sqlite3.Error as error:
            raise RunError(f"The database of the run '{self.name}' cannot be copied ({error}).") from error
        return int(begun * 1000), deletions

    def revision(self) -> str | None:
        """What pins the base: of a Hub model the commit, once one was loaded."""
        revision: str | None = self._rows("SELECT revision FROM run")[0]["revision"]
        return revision

    def pin(self, commit: str) -> None:
        """From now on the base is of this commit; what was asked for at the beginning opens the run as before."""
        with self._write():
            if (asked := self.revision()) != commit:
                self._insert_notes({ASKED: asked})
                self._db.execute("UPDATE run SET revision = ?", (commit,))

    def _enter(self, base_model: str, revision: str | None, settings_json: str) -> None:
        """Introduces a new run or recognises an old one, then puts right what a kill left behind."""
        now = time.time()
        with self._write():
            self._db.execute("INSERT INTO run VALUES (1, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (self.name, base_model, revision, now))
            self._db.execute("INSERT INTO versions (number, kind, created, sha256) VALUES (0, 'base', ?, '') ON CONFLICT DO NOTHING", (now,))
            if not self._rows("SELECT 1 FROM groups UNION ALL SELECT 1 FROM versions WHERE number > 0 LIMIT 1"):  # nothing of any base yet
                self._db.execute("UPDATE run SET base_model = ?, revision = ? WHERE base_model != ?", (base_model, revision, base_model))
            its = self._rows("SELECT base_model, revision FROM run")[0]
            if its["base_model"] != base_model or revision not in (its["revision"], self.noted(ASKED, its["revision"])):
                mine, theirs = f"{base_model} (revision {revision})", f"{its['base_model']} (revision {its['revision']})"
                raise RunError(f"The run '{self.name}' belongs to {theirs}, not to {mine}: use that model, or start another run with --run NAME.")
            self._insert("openings", created=now, code_version=__version__, settings=to_json(json.loads(settings_json)))
            broken = self._mark_broken_versions()
            self._keep_pending()
            aborted = self._abort_updates(None, "The program ended during this update.")
        self._remove_orphaned_versions()
        self._remove_orphaned_files()
        self.recovered = (
            *(f"Version {number} is damaged and was set aside; what it had learned from will be learned again." for number in broken),
            *(["An unfinished update was thrown away; its ratings are kept."] if aborted else []),
        )
        for sentence in self.recovered:
            log.warning("Run %s: %s", self.name, sentence)
