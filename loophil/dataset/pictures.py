"""Pictures in the rows of a dataset: their bytes, or the name of a file beside it, as `datasets` has them. Not what is shown or drawn."""

from __future__ import annotations

import base64
import binascii
import io
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from loophil.errors import InvalidInput
from loophil.store import RatedGroup
from loophil.types import ImageRef

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
LARGEST_FILE = 64 << 20  # bytes of one picture
LARGEST_AREA = 4096 * 4096  # pixels
LARGEST_RATIO = 16  # of the sides: scaled by its shorter side, a strip of that area would take all memory


def path_of(ref: ImageRef, embed: bool) -> str:
    """What a picture is called in a row: the file beside the dataset, or only a name."""
    name = f"{ref.id}{Path(ref.file).suffix}"
    return name if embed else f"images/{name}"


def write_pictures(rated: RatedGroup, pictures: Sequence[bytes], folder: Path) -> None:
    """Puts a group's pictures where their references lead."""
    (folder / "images").mkdir(exist_ok=True)
    for ref, picture in zip(rated.group.images, pictures, strict=True):
        (folder / path_of(ref, embed=False)).write_bytes(picture)


def read_picture(value: Any, beside: Path | None) -> tuple[bytes, str]:
    """The bytes of a picture in a row, and the ending of its file. InvalidInput for what is none, is too large or lies elsewhere.

    value    bytes, in JSON as base64; or {"bytes": ..., "path": ...}, of which the bytes come first; or the path of a file in the folder `beside`
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else _bytes(value["bytes"])
    picture = value if isinstance(value, bytes) else _referred(value, beside)
    if len(picture) > LARGEST_FILE:
        raise InvalidInput(f"A picture has {len(picture):,} bytes; at most {LARGEST_FILE:,} are taken.")
    return picture, _suffix(picture)


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"A picture's bytes are bytes, in JSON base64, not {type(value).__name__}.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("A picture's bytes are not base64.") from None


def _referred(value: Any, beside: Path | None) -> bytes:
    """The file that a relative path leads to; it may not lead out of the folder, by no link either."""
    if not isinstance(value, str) or not value:
        raise InvalidInput("A picture is missing.")
    if beside is None:
        raise InvalidInput("The pictures are not in the file: bring one with the images embedded.")
    try:
        file = (beside / value).resolve()
        inside = file.is_relative_to(beside.resolve())
        if inside:
            return _read(file, value[:80])
    except (OSError, ValueError):
        raise InvalidInput(f"The picture {value[:80]!r} is not there, or cannot be read.") from None
    raise InvalidInput(f"The path {value[:80]!r} leads out of the dataset's folder.")


def _read(file: Path, name: str) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
        raise InvalidInput(f"The picture {name!r} is no plain file.")
    if status.st_size > LARGEST_FILE:
        raise InvalidInput(f"The picture {name!r} has {status.st_size:,} bytes; at most {LARGEST_FILE:,} are taken.")
    return file.read_bytes()


def _suffix(picture: bytes) -> str:
    try:
        with Image.open(io.BytesIO(picture), formats=tuple(SUFFIXES)) as image:
            if image.width * image.height > LARGEST_AREA:
                raise InvalidInput(f"A picture has {image.width} x {image.height} pixels; at most {LARGEST_AREA:,} in all are taken.")
            if max(image.size) > LARGEST_RATIO * min(image.size):
                most = f"one side may be at most {LARGEST_RATIO} times as long as the other"
                raise InvalidInput(f"A picture has {image.width} x {image.height} pixels; {most}.")
            suffix = SUFFIXES[str(image.format)]
            image.load()
            return suffix
    except InvalidInput:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"A picture cannot be read ({str(error)[:80] or type(error).__name__}): PNG, JPEG and WebP are taken.") from None
