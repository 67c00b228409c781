"""Snapshots: whole copies of a run, kept elsewhere while it goes on and brought back where the run is gone. For disks that forget, as a Space's does.

    <place>/<run>/files/<2 hex>/<sha256>.png   pictures, transitions, versions: each is sent once and never changed
                  sets/<set>.sqlite            the run's database
                  sets/<set>.json              {file of the run: [sha256, bytes]}: what belongs together, sent last

A set is complete if every file that it names is there and has its checksum; any other is passed over, whatever cut it off. Sending is done by a
thread of its own that looks at the loop's status now and then: ratings, drawings and updates never wait for it, and what fails becomes `note` and is
tried again. Not a backup of what was deleted: a rater's deletion takes the older sets with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from loophil.config import Settings
from loophil.errors import LoopHILError, RunError
from loophil.snapshots.places import Place, place_of
from loophil.store import Store, hold, last_opened, list_runs
from loophil.types import Status

log = logging.getLogger(__name__)

EVERY_RATINGS = 40  # rated images, so 10 groups of 4
LOOK_SECONDS = 5.0
PAUSE_SECONDS = 60.0  # from one attempt to the next; versions that come faster share a snapshot, and the Hub counts commits
CLOSING = 4.0  # seconds that the last snapshot gets when the run is closed
KEPT = 3  # newest sets of a run
# What of a run's folder belongs to it, beside the database. Staging folders begin with a dot, pictures that are being written end in .tmp.
PART = re.compile(r"((images|transitions|versions)/([\w-][\w.-]*/)*[\w-][\w.-]*(?<!\.tmp)|prompts\.txt)", re.ASCII)
SET = re.compile(r"(?P<run>[a-z0-9][a-z0-9_-]{0,63})/sets/(?P<taken>\d+)-(?P<begun>\d+)-(?P<deletions>\d+)\.json")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Incomplete(Exception):
    """A set that something is missing of, or that was not kept by LoopHIL."""


class NoSnapshots:
    """Where no place is configured."""

    note = ""

    def start(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Snapshots:
    """Of one open run. `note`: why the last snapshot could not be kept, "" = it was, or none was due yet."""

    def __init__(self, place: Place, store: Store, status: Callable[[], Status], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`status` gives the loop's snapshot of the moment; `clock` monotonic seconds."""
        self.note = ""
        self._place, self._store, self._status, self._clock = place, store, status, clock
        self._kept = (0, 0)  # version and ratings of the newest set
        self._not_before = -math.inf
        self._taken = 0
        self._there: dict[str, int] = {}  # what the place has of this run
        self._listed = -math.inf  # when it was asked
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}  # file -> (size and time of change, sha256)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loophil-snapshots", daemon=True)

    def start(self) -> None:
        """Begins to look, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """A last snapshot, if there is news, for as long as CLOSING; one that is cut off counts as none. May be called again."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSING)

    def look(self, *, last: bool = False) -> None:
        """Takes a snapshot if one is due. Never raises."""
        status = self._status()
        reached = status.policy_version, status.ratings
        if not self._due(reached, last=last):
            return
        self._not_before = self._clock() + PAUSE_SECONDS
        try:
            self._take()
        except Exception as error:
            self._listed = -math.inf
            reason = str(error) if isinstance(error, LoopHILError) else f"{type(error).__name__}."
            self.note = f"The run could not be kept elsewhere: {reason} It is tried again every minute."
            log.warning("Snapshot of the run '%s': %s", self._store.name, reason)
        else:
            self._kept, self.note = reached, ""

    def _work(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            self.look()
        self.look(last=True)

    def _due(self, reached: tuple[int, int], *, last: bool) -> bool:
        """After each version, after so many ratings, and after a deletion of ratings; at the end after any news."""
        if last:
            return reached != self._kept
        news = reached[1] - self._kept[1]
        return (reached[0] != self._kept[0] or news < 0 or news >= EVERY_RATINGS) and self._clock() >= self._not_before

    def _take(self) -> None:
        """Sends one set: the database first, then the files, since a file is on disk before the row that names it."""
        name, staging = self._store.name, self._store.path / ".snapshot"
        if (now := self._clock()) - self._listed >= self._place.lasts:  # what has gone from there is sent again
            self._there, self._listed = self._place.listed(name), now
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            begun, deletions = self._store.copy_database(staging / "run.sqlite")
            self._taken = max(self._taken + 1, time.time_ns() // 1_000_000)
            stem = f"{name}/sets/{self._taken}-{begun}-{deletions}"
            new, files = self._files(staging)
            seal = staging / "set.json"
            seal.write_text(json.dumps({"database": _fingerprint(staging / "run.sqlite"), "files": files}), "utf-8")
            gone = list(self._outdated(begun, deletions))
            sent = {**new, f"{stem}.sqlite": staging / "run.sqlite"}
            self._place.send(sent, (f"{stem}.json", seal), gone)
            self._there |= {file: path.stat().st_size for file, path in (*sent.items(), (f"{stem}.json", seal))}
            for file in gone:
                self._there.pop(file, None)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _files(self, staging: Path) -> tuple[dict[str, Path], dict[str, tuple[str, int]]]:
        """({name at the place: staged file} of what it lacks, {file of the run: (sha256, bytes)} of everything)."""
        new: dict[str, Path] = {}
        files: dict[str, tuple[str, int]] = {}
        for part in _parts(self._store.path):
            with suppress(FileNotFoundError):  # given up by the loop meanwhile
                staged = staging / str(len(files))
                digest, size = self._staged(part, staged)
                files[part] = digest, size
                at = _name(self._store.name, part, digest)
                if self._there.get(at) != size:
                    new[at] = staged
                else:
                    staged.unlink()
        return new, files

    def _staged(self, part: str, staged: Path) -> tuple[str, int]:
        """(sha256, bytes) of a file of the run, which has a second name in the staging folder now, so that it cannot go while it is sent."""
        try:
            os.link(self._store.path / part, staged)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            shutil.copy2(self._store.path / part, staged)
        stat = staged.stat()
        state = stat.st_size, stat.st_mtime_ns
        known, digest = self._digests.get(part, (None, ""))
        if known != state:
            digest = _fingerprint(staged)[0]
            self._digests[part] = state, digest
        return digest, stat.st_size

    def _outdated(self, begun: int, deletions: int) -> Iterator[str]:
        """The sets of this run that go: all but the newest, and those that still hold what a rater has deleted since."""
        sets = [found for found in map(SET.fullmatch, self._there) if found and int(found["begun"]) == begun]
        sets.sort(key=lambda found: int(found["taken"]), reverse=True)
        for place, found in enumerate(sets):
            if place >= KEPT - 1 or int(found["deletions"]) != deletions:
                yield from (found.string, found.string.removesuffix("json") + "sqlite")


def bring_back(settings: Settings) -> Settings:
    """Brings the run that is to be opened back from its newest snapshot, where the runs folder has no such run; the settings that open it.

    ConfigError for a place that cannot be one. RunError where it cannot be read: a run begun in place of the one that is there would hide it.
    """
    if not settings.snapshots:
        return settings
    place = place_of(settings.snapshots)
    if (settings.run or last_opened(settings.runs)) in list_runs(settings.runs):
        return settings
    try:
        name = restore(place, settings.runs, settings.run)
    except RunError:
        raise
    except LoopHILError as error:
        raise RunError(f"The snapshots cannot be read, so no run was opened: {error} Start again later, or without --snapshots.") from None
    except OSError as error:
        raise RunError(f"The snapshot cannot be brought back to {settings.runs} ({error.strerror}): free the disk or give --runs.") from error
    return settings.model_copy(update={"run": name}) if name else settings


def restore(place: Place, runs: Path, name: str | None = None) -> str | None:
    """Puts the newest complete set of this run (None = of the run that was kept last) into the runs folder; its name, None = there is no set.

    RunError where there are sets and none is complete.
    """
    listed = place.listed(name or "")
    sets = [found for found in map(SET.fullmatch, listed) if found and name in (None, found["run"])]
    for found in sorted(sets, key=lambda found: int(found["taken"]), reverse=True):
        run: str = found["run"]
        if run in list_runs(runs):
            return run
        (runs / run).mkdir(parents=True, exist_ok=True)
        with hold(runs, run) as folder:
            staging = folder / ".restoring"
            shutil.rmtree(staging, ignore_errors=True)
            try:
                files = _fetched(place, listed, found.string, staging)
                _put(files, folder)
            except Incomplete as error:
                log.warning("The snapshot %s is passed over: %s", found.string, error)
                continue
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        log.warning("The run '%s' was brought back from the snapshot %s, %d files.", run, found.string, len(files))
        return run
    if not sets:
        return None
    names = " and ".join(sorted({f"'{found['run']}'" for found in sets}))
    raise RunError(f"No snapshot of the run {names} is complete, so no run was opened: name another run with --run, or empty that place.")


def _fetched(place: Place, listed: Mapping[str, int], seal: str, staging: Path) -> dict[str, Path]:
    """{file of the run: where its copy lies, checked} of a set. Incomplete where anything is missing or not as it was."""
    run = seal.partition("/")[0]
    place.fetch([seal], staging)
    wanted: dict[str, tuple[str, str, int]] = {}  # file of the run -> its name at the place, sha256, bytes
    try:
        said = json.loads((staging / seal).read_bytes())
        for part, (digest, size) in {**said["files"], "run.sqlite": said["database"]}.items():
            database = part == "run.sqlite"
            if not DIGEST.fullmatch(digest) or not (database or PART.fullmatch(part)):
                raise Incomplete(f"{part!r} cannot be a file of a run.")
            wanted[part] = seal.removesuffix("json") + "sqlite" if database else _name(run, part, digest), digest, size
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Incomplete("its list of files cannot be read.") from None
    if missing := sorted(part for part, (at, _, size) in wanted.items() if listed.get(at) != size):
        raise Incomplete(f"{missing[0]} is not there, or not all of it.")
    place.fetch(sorted({at for at, _, _ in wanted.values()}), staging)
    for part, (at, digest, size) in wanted.items():
        if not (staging / at).is_file() or _fingerprint(staging / at) != (digest, size):
            raise Incomplete(f"{part} is damaged.")
    return {part: staging / at for part, (at, _, _) in wanted.items()}


def _put(files: Mapping[str, Path], folder: Path) -> None:
    """The files into the run's folder. The database comes last: without it the folder is no run, and what is there may be written over."""
    for part, file in files.items():
        if part != "run.sqlite":
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / part)
    files["run.sqlite"].replace(folder / "run.sqlite")


def _parts(folder: Path) -> list[str]:
    """The files of a run that belong into a snapshot, beside the database."""
    files = (file for top in ("images", "transitions", "versions", "prompts.txt") for file in (folder / top, *(folder / top).rglob("*")))
    names = (file.relative_to(folder).as_posix() for file in files if file.is_file())
    return sorted(name for name in names if PART.fullmatch(name))


def _name(run: str, part: str, digest: str) -> str:
    return f"{run}/files/{digest[:2]}/{digest}{Path(part).suffix}"


def _fingerprint(file: Path) -> tuple[str, int]:
    """(sha256, bytes)."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest(), file.stat().st_size
