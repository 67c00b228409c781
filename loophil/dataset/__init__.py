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
from collections import Counter
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

Content = tuple[tuple[str, str], tuple[str | None, ...], str]  # of a group: its prompts, its pictures and all else; see _content


@dataclass(frozen=True)
class Imported:
    """What came of an import: groups and acts that are new, and what was passed over.

    known       groups that were there already, the very same
    changed     groups that were there already, rated otherwise: they were kept as they were
    unlabelled  pairs that nobody compared
    """

    groups: int
    acts: int
    known: int
    changed: int = 0
    unlabelled: int = 0

    @property
    def passed_over(self) -> str:
        """The same in words."""
        counts = ((self.known, "there already"), (self.changed, "changed since, kept as before"), (self.unlabelled, "without a label"))
        return ", ".join(f"{n} {what}" for n, what in counts if n)


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

    A group that is there already is passed over, also where it was rated anew since: acts are not added to it, since what somebody had deleted
    would come back. references: pictures may be files beside it, named by relative paths.
    """
    file = _file(source)
    beside = file.parent if references else None
    new: dict[str, Content] = {}
    images: set[str] = set()
    acts, passed = 0, Counter[str]()
    with store.importing() as add:
        for number, row in formats.read(file):
            try:
                if reading.is_unlabelled(row):
                    passed["unlabelled"] += 1
                    continue
                rated, pictures = reading.read_group(row, beside)
                content = _content(rated, pictures)
                if (there := new.get(rated.group.id) or _there(store, rated.group.id)) is not None:
                    passed[_compared(rated, content, there)] += 1
                    continue
                _check_images(store, rated, images)
            except InvalidInput as error:
                raise InvalidInput(f"Row {number} of {file.name}: {error} Nothing was imported.") from error
            add(rated, pictures)
            new[rated.group.id] = content
            acts += len(rated.acts)
    return Imported(len(new), acts, passed["known"], passed["changed"], passed["unlabelled"])


def look(source: Path) -> None:
    """InvalidInput where an import would find no file, or none whose first row can be read."""
    next(formats.read(_file(source)), None)


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


def _there(store: Store, identity: str) -> Content | None:
    """Of the group that the run has under this id."""
    if (there := store.rated_group(identity)) is None:
        return None
    files = [store.images / ref.file for ref in there.group.images]
    return _content(there, [file.read_bytes() if file.exists() else None for file in files])


def _compared(rated: RatedGroup, content: Content, there: Content) -> str:
    """How a group is there already: "known", the very same, or "changed". InvalidInput where it is another one of the same id."""
    same = len(content[1]) == len(there[1]) and all(None in both or len(set(both)) == 1 for both in zip(content[1], there[1], strict=True))
    if content[0] != there[0] or not same:
        raise InvalidInput(f"Group {rated.group.id} is there already with another prompt or other pictures.")
    return "known" if content[2] == there[2] else "changed"


def _check_images(store: Store, rated: RatedGroup, images: set[str]) -> None:
    for ref in rated.group.images:
        if ref.id in images or store.has_image(ref.id):
            raise InvalidInput(f"Image {ref.id} belongs to another group already.")
        images.add(ref.id)


def _content(rated: RatedGroup, pictures: Sequence[bytes | None]) -> Content:
    """All that an import keeps of a group, as digests save for the prompts; None = a lost picture, which may have been any."""
    (row,) = rows.group_rows(rated, [b""] * len(pictures), embed=True)
    rest = {name: value for name, value in row.items() if name not in ("images", "scores")}
    rest["acts"] = [{name: value for name, value in act.items() if name != "current"} for act in row["acts"]]
    shown = tuple(None if picture is None else hashlib.sha256(picture).hexdigest() for picture in pictures)
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return (rated.group.prompt, rated.group.settings.negative_prompt), shown, digest
