"""The one connection to run.sqlite: what a transaction is, and that it is durable. Not what is kept: see the other modules.

One connection does all reading and writing behind a lock, because SQLite before 3.51.3 can damage a WAL that two
connections check-point at the same time. A commit waits for the disk (synchronous = FULL): a rating is safe before the
page says so.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from loophil import __version__
from loophil.errors import RunError
from loophil.store.schema import MIGRATIONS, SCHEMA

# Set and read back at every opening. synchronous 2 = FULL, temp_store 2 = memory, busy_timeout in milliseconds; secure_delete
# 1 = what is deleted is overwritten with zeros.
PRAGMAS: dict[str, str | int] = {
    "journal_mode": "wal",
    "synchronous": 2,
    "fullfsync": 1,
    "foreign_keys": 1,
    "busy_timeout": 5000,
    "trusted_schema": 0,
    "mmap_size": 0,
    "temp_store": 2,
    "secure_delete": 1,
    "wal_autocheckpoint": 1000,
}
REMEDY = "restore run.sqlite from a copy, or start another run with --run NAME"


class Connection:
    """Transactions, queries and notes on one run's database, from any thread."""

    def __init__(self, path: Path) -> None:
        """RunError where the database is damaged, newer than this code, or cannot be kept safely."""
        self.path = path
        self.name = path.name
        self._lock = threading.RLock()
        self._closed = False
        self._db = _connect(path / "run.sqlite", path.name)

    def close(self) -> None:
        """Moves the WAL into the database. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._db.close()

    def note(self, key: str, value: Any) -> None:
        """Keeps one JSON value of the loop's under this name, in place of the one before."""
        with self._write():
            self._insert_notes({key: value})

    def noted(self, key: str, default: Any = None) -> Any:
        """The value noted last under this name."""
        rows = self._rows("SELECT value FROM notes WHERE key = ?", key)
        return json.loads(rows[0]["value"]) if rows else default

    def _insert_notes(self, notes: Mapping[str, Any] | None) -> None:
        for key, value in (notes or {}).items():
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (key, to_json(value), time.time()))

    def _keep_pending(self, group_id: str | None = None) -> int:
        """Brings the table `pending` up to date for a group, None = all; how many are pending now."""
        if group_id is None:
            self._db.execute("DELETE FROM pending")
            self._db.execute("INSERT INTO pending SELECT group_id FROM pending_groups")
        else:
            self._db.execute("DELETE FROM pending WHERE group_id = ?", (group_id,))
            self._db.execute("INSERT INTO pending SELECT group_id FROM pending_groups WHERE group_id = ?", (group_id,))
        return int(self._value("SELECT count(*) FROM pending"))

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        """One transaction, durable at the end of the block; an exception leaves no trace of it."""
        with self._lock:
            self._check_open()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    self._db.rollback()
                    raise
            except sqlite3.OperationalError as error:
                raise RunError(f"The run '{self.name}' cannot be written ({error}): nothing was saved. Free the disk and try again.") from error

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            self._check_open()
            return self._db.execute(sql, values).fetchall()

    def _value(self, sql: str, *values: Any) -> Any:
        return self._rows(sql, *values)[0][0]

    def _insert(self, table: str, **columns: Any) -> int:
        """The row number. Every name is a literal of this package."""
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
        return int(self._db.execute(sql, tuple(columns.values())).lastrowid or 0)

    def _check_open(self) -> None:
        if self._closed:
            raise RunError(f"The run '{self.name}' is closed: nothing was saved. Open it again.")


def to_json(value: Any) -> str:
    """JSON has no NaN and no infinity: null stands for both."""

    def finite(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: finite(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple):
            return [finite(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False)


def _connect(file: Path, name: str) -> Database:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    try:
        db = Database(connection, execute_plugins=False)
        _prepare(db, name)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise RunError(f"The database of the run '{name}' cannot be read ({error}): {REMEDY}.") from error
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return db


def _prepare(db: Database, name: str) -> None:
    """Every PRAGMA in force, the database sound, the schema ours."""
    for pragma, value in PRAGMAS.items():
        db.execute(f"PRAGMA {pragma} = {value}")
        if (found := db.execute(f"PRAGMA {pragma}").fetchone()) != (value,):
            raise RunError(f"The run '{name}' cannot be kept safely here ({pragma} is {found}, not {value}): put --runs on a local disk.")
    if (fault := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise RunError(f"The database of the run '{name}' is damaged ({fault}): {REMEDY}.")
    if db.execute("PRAGMA user_version").fetchone()[0] > SCHEMA:
        raise RunError(f"The run '{name}' was written by a newer LoopHIL than {__version__}: update LoopHIL, or start another run with --run NAME.")
    MIGRATIONS.apply(db)
