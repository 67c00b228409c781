"""The feedback as a dataset: a run's groups, ratings and pairs as a file that others read, and back. Not the ratings alone: see store/ratings_file.

    groups   a row for each group that somebody answered, with everything known of it and all acts on it; read back, nothing is lost
    pairs    a row for each two images of which a rating says which is better, or that they tie: Pick-a-Pic's columns
    dpo      prompt, chosen, rejected: the pairs without ties, as DPO trainers read them

    rows.py      what is in a row         formats.py   JSONL and parquet, row by row
    reading.py   a row that somebody brings -> a group, or a sentence on what is wrong with it
    pictures.py  pictures in rows

What is imported teaches the taste model alone: it has no trajectory and was perhaps drawn by another base (store/imports.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loophil.dataset import formats, reading, rows
from loophil.dataset.pictures import write_pictures
from loophil.errors import InvalidInput
from loophil.store import RatedGroup, Store

log = logging.getLogger(__name__)

FORMATS = ("parquet", "jsonl")
KINDS = {"groups": rows.group_rows, "pairs": rows.pair_rows, "dpo": rows.dpo_rows}
IMAGES = ("embed", "reference")


@dataclass(frozen=True)
class Imported:
    """What came of an import: groups and acts that are new, and groups that were there already."""

    groups: int
    acts: int
    known: int


def export_dataset(store: Store, folder: Path, *, kind: str = "groups", format: str = "parquet", images: str = "embed") -> Path:
    """Writes folder/KIND.FORMAT, whole or not at all, and gives its path. With images by "reference" they lie in folder/images.

    Groups with a lost picture are left out, with a warning. InvalidInput for a kind, format or way of images that there is not.
    """
    for what, given, known in (("kind", kind, KINDS), ("format", format, FORMATS), ("way of images", images, IMAGES)):
        if given not in known:
            raise InvalidInput(f"Unknown {what} {given!r}. Choose from: {', '.join(known)}.")
    folder.mkdir(parents=True, exist_ok=True)
    target, embed = folder / f"{kind}.{format}", images == "embed"

    def made() -> Iterator[rows.Row]:
        for rated, pictures in _with_pictures(store):
            if not embed:
                write_pictures(rated, pictures, folder)
            yield from KINDS[kind](rated, pictures, embed)

    staged = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    try:
        formats.write(staged, made(), kind, format, embed)
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    return target


def import_dataset(store: Store, source: Path, *, references: bool = True) -> Imported:
    """Takes in a file of groups or pairs, or a folder with one, for the taste model; all of it or, with InvalidInput, nothing.

    A group that is there already, with the same content, is passed over. references: pictures may be files beside it, named by relative paths.
    """
    file = _file(source)
    beside = file.parent if references else None
    new: dict[str, str] = {}
    images: set[str] = set()
    acts = known = 0
    with store.importing() as add:
        for number, row in formats.read(file):
            try:
                rated, pictures = reading.read_group(row, beside)
                if _is_known(store, rated, pictures, new):
                    known += 1
                    continue
                _check_images(store, rated, images)
            except InvalidInput as error:
                raise InvalidInput(f"Row {number} of {file.name}: {error} Nothing was imported.") from error
            add(rated, pictures)
            new[rated.group.id] = _digest(rated, pictures)
            acts += len(rated.acts)
    return Imported(len(new), acts, known)


def _with_pictures(store: Store) -> Iterator[tuple[RatedGroup, list[bytes]]]:
    for rated in store.rated_groups():
        try:
            yield rated, [(store.images / ref.file).read_bytes() for ref in rated.group.images]
        except OSError as error:
            log.warning("Group %s is left out: %s", rated.group.id, error)


def _file(source: Path) -> Path:
    """The dataset's file; of a folder, the only one in it."""
    if not source.is_dir():
        if source.suffix.removeprefix(".") not in FORMATS:
            raise InvalidInput(f"{source} is neither a folder nor a .jsonl or .parquet file.")
        return source
    found = [file for kind in KINDS for format in FORMATS if (file := source / f"{kind}.{format}").is_file()]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or f"none of {', '.join(f'{kind}.parquet, {kind}.jsonl' for kind in KINDS)}"
        raise InvalidInput(f"{source} must hold one dataset, but there is {names}: give the file.")
    return found[0]


def _is_known(store: Store, rated: RatedGroup, pictures: Sequence[bytes], new: dict[str, str]) -> bool:
    """Whether the very same group is there, or came before in the file; InvalidInput where it is another one of the same id."""
    there = store.rated_group(rated.group.id)
    known = new.get(rated.group.id)
    if there is not None:
        files = [store.images / ref.file for ref in there.group.images]
        known = _digest(there, [file.read_bytes() if file.exists() else b"" for file in files])
    if known is not None and known != _digest(rated, pictures):
        raise InvalidInput(f"Group {rated.group.id} is there already with other content.")
    return known is not None


def _check_images(store: Store, rated: RatedGroup, images: set[str]) -> None:
    for ref in rated.group.images:
        if ref.id in images or store.has_image(ref.id):
            raise InvalidInput(f"Image {ref.id} belongs to another group already.")
        images.add(ref.id)


def _digest(rated: RatedGroup, pictures: Sequence[bytes]) -> str:
    """Of all that an import keeps of a group."""
    (row,) = rows.group_rows(rated, [hashlib.sha256(picture).hexdigest().encode() for picture in pictures], embed=True)
    content = {name: value for name, value in row.items() if name != "scores"}
    content["acts"] = [{name: value for name, value in act.items() if name != "current"} for act in row["acts"]]
    content["images"] = [picture["bytes"].decode() for picture in row["images"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
