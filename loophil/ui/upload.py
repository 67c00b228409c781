"""A file that the page sends in parts, because no body may be larger than the server's LARGEST_BODY and its door has no way for uploads.

Parts come as a component's events, so that each is checked for who sends it. What is in the file is the session's to say.
"""

import base64
import binascii
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loophil.errors import InvalidInput
from loophil.ui import parse

LARGEST_PART = 1_000_000  # characters of base64
LARGEST = 2 << 30  # bytes
SUFFIXES = (".parquet", ".jsonl")


class Upload:
    """One file at a time: who begins another takes the place of who was at it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key, self._parts, self._file = "", 0, Path()

    def take(self, sent: Mapping[str, Any]) -> tuple[str, int]:
        """Adds a part, the first under key "": the file's key, and how many parts are there. InvalidInput ends the upload."""
        key, part, data = parse.text(sent.get("key"), "key"), parse.whole_number(sent.get("part"), "part"), _bytes(sent.get("data"))
        with self._lock:
            if part == 0:
                self._begin(parse.text(sent.get("file"), "file"))
            elif key != self._key or part != self._parts:
                raise InvalidInput("Another file was begun meanwhile, or a part was lost: bring the file again.")
            if self._file.stat().st_size + len(data) > LARGEST:
                self._end()
                raise InvalidInput(f"A file of more than {LARGEST:,} bytes is imported on the command line: python -m loophil dataset import.")
            with self._file.open("ab") as file:
                file.write(data)
            self._parts += 1
            return self._key, self._parts

    @contextmanager
    def whole(self, key: str) -> Iterator[Path]:
        """The file of that key, which is gone at the end of the block."""
        with self._lock:
            if not key or key != self._key:
                raise InvalidInput("Another file was begun meanwhile: bring the file again.")
            try:
                yield self._file
            finally:
                self._end()

    def _begin(self, name: str) -> None:
        if Path(name).suffix not in SUFFIXES:
            raise InvalidInput(f"{parse.shown(name)} is no dataset: bring a file that ends with {' or '.join(SUFFIXES)}.")
        self._end()
        self._key, self._parts = secrets.token_hex(16), 0
        self._file = Path(tempfile.mkdtemp(prefix="loophil-upload-")) / f"dataset{Path(name).suffix}"
        self._file.touch()

    def _end(self) -> None:
        if self._key:
            shutil.rmtree(self._file.parent, ignore_errors=True)
        self._key = ""


def _bytes(data: Any) -> bytes:
    if not isinstance(data, str) or len(data) > LARGEST_PART:
        raise InvalidInput(f"A part of a file is base64 of at most {LARGEST_PART:,} characters.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("A part of a file is base64, but this one is not.") from None
