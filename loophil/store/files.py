"""Files that are whole and on disk, or absent: whatever power cut or kill -9 comes in between.

Not an archive: nothing here knows what the files mean. Staging is always beside the target, because a rename is atomic
on one file system only.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

MANIFEST = "manifest.json"
STAGING = ".staging-"


def sync(file: Path) -> None:
    """The file's bytes are on disk when this returns."""
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """The folder's names are on disk when this returns; Windows has no such call and journals them itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(file: Path, data: bytes) -> None:
    """A new file, its bytes on disk; its name is, once its folder is synced."""
    with file.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def replace_file(file: Path, data: bytes) -> None:
    """The old content or the new one, never a part."""
    staged = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    write_file(staged, data)
    staged.replace(file)
    sync_folder(file.parent)


def publish_folder(target: Path, write: Callable[[Path], None]) -> str:
    """`write` fills a folder beside the target, which then takes the target's place at once; the sha256 of its manifest."""
    staging = target.with_name(STAGING + target.name)
    for leftover in (staging, target):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    try:
        write(staging)
        sha256 = _seal(staging)
        staging.rename(target)
    except Exception:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return sha256


def is_whole(folder: Path, sha256: str, may_miss: Sequence[str] = ()) -> bool:
    """Whether the manifest is the one sealed and every file is as it says, or absent if its name fits a pattern of `may_miss`."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != sha256:
            return False
        for name, digest in json.loads(manifest)["files"].items():
            pruned = not (folder / name).exists() and any(fnmatch(name, pattern) for pattern in may_miss)
            if not pruned and _digest(folder / name) != digest:
                return False
    except OSError:
        return False
    return True


def _seal(folder: Path) -> str:
    """Syncs all files, writes their checksums into a manifest, syncs the folders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        sync(file)
    manifest = json.dumps({"files": {file.relative_to(folder).as_posix(): _digest(file) for file in files}}, indent=1).encode()
    write_file(folder / MANIFEST, manifest)
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_folder(inner)
    return hashlib.sha256(manifest).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
