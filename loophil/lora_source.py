"""Where a LoRA that somebody brings lies: a file, a folder or a zip -> the bytes of its one .safetensors, and of the config beside it.

Nobody vouches for it. Nothing is unpacked to the disk, and no size is believed that was not checked: what is read at one go has a limit. What the
bytes say is lora_file.py's to read.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

MOST_BYTES, MOST_HEADER, MOST_ENTRIES = 512 << 20, 4 << 20, 1000
MOST_PACKED = 50  # times that an entry of a zip may grow; weights hardly shrink at all
SIP = 1 << 20  # bytes that are read of a zip at one go
MOST_QUOTED = 200  # characters
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
KNOWN = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers' and peft's own names
CONFIG = "adapter_config.json"


class Refused(Exception):
    """What is wrong with a LoRA, to be said after the name of its file."""


def quoted(said: Any) -> str:
    """What a file says, shortened: a sentence that quotes it stays one."""
    return shortened(repr(said))


def shortened(text: str) -> str:
    half = MOST_QUOTED // 2
    return text if len(text) <= MOST_QUOTED else f"{text[:half]}...{text[-half:]}"


def read_source(path: Path) -> tuple[bytes, bytes | None]:
    """The bytes of the one .safetensors, and of the adapter_config.json beside it; Refused says what is wrong."""
    if path.is_dir():
        path = path / _only([file.name for file in path.iterdir() if file.is_file()])
    if not path.exists():
        raise Refused("it is not there. Give a file that is by --lora FILE.")
    if not path.is_file():
        raise Refused("it is neither a file nor a folder.")
    with path.open("rb") as file:
        magic = file.read(9)
    if magic.startswith(b"PK\x03\x04"):
        return _unzip(path)
    if path.suffix.lower() in PICKLES or (magic[:1] == b"\x80" and magic[8:] != b"{"):
        raise Refused(_pickle(path.name))
    beside = path.with_name(CONFIG)
    return _bounded(path, MOST_BYTES), _bounded(beside, MOST_HEADER) if beside.is_file() else None


def _bounded(path: Path, most: int) -> bytes:
    size = path.stat().st_size
    _check_size(path.name, size, most)
    with path.open("rb") as file:
        return file.read(size)


def _check_size(name: str, size: int, most: int) -> None:
    if size > most:
        raise Refused(f"{name} is larger than {most >> 20} MB, which no LoRA is.")


def _pickle(name: str) -> str:
    return f"{quoted(name)} is a pickle, which can run programs: save it as .safetensors."


def _only(names: Sequence[str]) -> str:
    """The one .safetensors among them."""
    found = [name for name in names if name.endswith(".safetensors")]
    found = [name for name in found if PurePosixPath(name).name in KNOWN] if len(found) > 1 else found
    if len(found) == 1:
        return found[0]
    if found or any(name.endswith(".safetensors") for name in names):
        raise Refused("it holds several .safetensors files: name the one that is meant.")
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    raise Refused(_pickle(pickles[0]) if pickles else "it holds no .safetensors file.")


# ---- zips ----


class _Sips(io.BufferedReader):
    """A zip that is read a little at a time: zipfile takes the directory at one go, as large as it says it is, and makes an object of every file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > SIP:
            raise Refused(f"its directory is larger than {SIP >> 20} MB, which no LoRA's is.")
        return super().read(size)


def _unzip(path: Path) -> tuple[bytes, bytes | None]:
    size = path.stat().st_size
    _check_size(path.name, size, MOST_BYTES)
    try:
        with _Sips(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if (count := len(archive.infolist())) > MOST_ENTRIES:
                raise Refused(f"it holds {count} files, more than {MOST_ENTRIES}.")
            for entry in archive.infolist():
                _check_entry(entry, size)
            if len(entries) != count:
                raise Refused("it holds two files of one name.")
            chosen = _only([name for name in entries if not name.endswith("/")])
            beside = entries.get(str(PurePosixPath(chosen).with_name(CONFIG)))
            return _unpack(archive, entries[chosen], MOST_BYTES), _unpack(archive, beside, MOST_HEADER) if beside else None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise Refused(f"it is a damaged zip ({shortened(str(error))}).") from None


def _check_entry(entry: zipfile.ZipInfo, size: int) -> None:
    """Nothing is unpacked to the disk; an entry that means to leave the folder is still no LoRA's. size: bytes of the zip, which hold it."""
    name, told = entry.filename, f"the zip's entry {quoted(entry.filename)}"
    if name.startswith(("/", "\\")) or "\\" in entry.orig_filename or ":" in name or ".." in PurePosixPath(name).parts:
        raise Refused(f"{told} leads out of its folder.")
    if entry.flag_bits & 1:
        raise Refused(f"{told} is encrypted.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise Refused(f"{told} is a link.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"{told} is not packed as zips usually are: pack it by deflate, or not at all.")
    if entry.file_size > MOST_BYTES or entry.file_size > MOST_PACKED * max(min(entry.compress_size, size), 1 << 20):
        raise Refused(f"{told} grows to {entry.file_size:,} bytes, which no LoRA does.")


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """An entry, by pieces: asked for all of it at once, zlib gives whatever is in it, and not what it says."""
    _check_size(quoted(entry.filename), entry.file_size, most)
    with archive.open(entry) as file:
        return b"".join(iter(lambda: file.read(SIP), b""))
