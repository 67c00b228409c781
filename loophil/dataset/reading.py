"""A row that somebody brings -> a group with its acts and pictures, or one sentence on what is wrong with it. Nothing is kept here.

Rows of groups come back as they left. Rows of pairs become groups of two; what they do not say of a picture stays unknown. Columns that are not
known here are passed over.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loophil.dataset.pictures import read_picture
from loophil.errors import InvalidInput
from loophil.store import ActRecord, RatedGroup, check_act, taken_back
from loophil.types import MAX_SEED, Act, DrawSettings, Group, ImageRef

ID = re.compile(r"[0-9a-f]{32}")
FEWEST, MOST = 2, 8  # images of a group, as when one is drawn
MOST_ACTS = 10_000
LONGEST_TEXT = 10_000  # characters
LATEST = 1e11  # Unix seconds
NAMELESS = "imported"  # the rater of pairs that do not say whose they are
LABELS = {1.0: (5.0, 1.0), 0.5: (3.0, 3.0), 0.0: (1.0, 5.0)}

Row = Mapping[str, Any]


def read_group(row: Row, beside: Path | None) -> tuple[RatedGroup, list[bytes]]:
    """The group in a row of groups, pairs or dpo, and its pictures. InvalidInput; beside: the folder of files that are named, None = none may be."""
    if "images" in row:
        return _group(row, beside)
    if "label_0" in row:
        first, second = (_shown(row, side, beside) for side in "01")
        label = _number(row, "label_0", 1)
        if label not in LABELS or ("label_1" in row and _number(row, "label_1", 1) != 1 - label):
            raise InvalidInput(f"'label_0' is 1, 0 or 0.5, and 'label_1' the rest of 1, not {reprlib.repr(row['label_0'])}.")
        return _pair(row, _text(row, "caption"), [first, second], label)
    if "chosen" in row:
        return _pair(row, _text(row, "prompt"), [read_picture(row[side], beside) for side in ("chosen", "rejected") if side in row], 1.0)
    raise InvalidInput("It has none of the columns 'images' (groups), 'label_0' (pairs) and 'chosen' (dpo).")


def is_unlabelled(row: Row) -> bool:
    """Whether it is a pair that nobody compared, whatever stands in its labels: Pick-a-Pic's `has_label`."""
    return "images" not in row and row.get("has_label") == 0


def _group(row: Row, beside: Path | None) -> tuple[RatedGroup, list[bytes]]:
    shown = _list(row, "images", MOST)
    if len(shown) < FEWEST:
        raise InvalidInput(f"A group has {FEWEST} to {MOST} images, not {len(shown)}.")
    identity, ids, seeds = _id(row.get("id")), _list(row, "image_ids", MOST), _list(row, "seeds", MOST)
    if not len(ids) == len(seeds) == len(shown) or len(set(map(str, ids))) < len(ids):
        raise InvalidInput("'image_ids' and 'seeds' have one entry for each image, no id twice.")
    pictures = [read_picture(picture, beside) for picture in shown]
    refs = tuple(ImageRef(name := _id(each), _seed(seed), name + suffix) for each, seed, (_, suffix) in zip(ids, seeds, pictures, strict=True))
    version, created = _whole(row, "policy_version", MAX_SEED), _number(row, "created", LATEST)
    group = Group(identity, _text(row, "prompt"), _settings(row), version, refs, created=created)
    acts = tuple(_act(act, group) for act in _list(row, "acts", MOST_ACTS))
    taken_back([record.act for record in acts])
    revision = None if row.get("revision") is None else _text(row, "revision")
    return RatedGroup(group, _text(row, "base_model"), revision, _text(row, "scheduler"), acts), [picture for picture, _ in pictures]


def _settings(row: Row) -> DrawSettings:
    negative = _text(row, "negative_prompt")
    if row.get("num_inference_steps") is None:
        return DrawSettings(0, 0.0, 0.0, negative)
    return DrawSettings(_whole(row, "num_inference_steps", 10_000), _number(row, "guidance_scale", 1000), _number(row, "eta", 1), negative)


def _act(given: Any, group: Group) -> ActRecord:
    if not isinstance(given, dict):
        raise InvalidInput(f"An act is an object with rater, kind and stars, not {reprlib.repr(given)}.")
    stars, order = _list(given, "stars", MOST), _list(given, "order", MOST)
    best, worst, milliseconds = (given.get(name) for name in ("best", "worst", "milliseconds"))
    version, created = _whole(given, "policy_version", MAX_SEED), _number(given, "created", LATEST)
    # What is not of the right type here, check_act refuses.
    act = Act(group.id, given.get("rater"), tuple(stars), given.get("kind"), best, worst, tuple(order), milliseconds)  # type: ignore[arg-type]
    try:
        return ActRecord(0, check_act(act, len(group.images)), version, created, undone=False)
    except OverflowError:
        raise InvalidInput("A rating is a number from 1 to 5, not one with hundreds of digits.") from None


def _pair(row: Row, prompt: str, pictures: Sequence[tuple[bytes, str]], label: float) -> tuple[RatedGroup, list[bytes]]:
    """A group of two, whose ids follow from what is in it: the same pair is the same group."""
    if len(pictures) < FEWEST:
        raise InvalidInput("A picture is missing.")
    rater = str(user) if (user := row.get("user_id")) is not None else NAMELESS
    digests = [hashlib.sha256(picture).hexdigest() for picture, _ in pictures]
    content = json.dumps([prompt, *digests, label, rater, str(row.get("ranking_id"))])
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    refs = [ImageRef(key := hashlib.sha256(f"{name} {n}".encode()).hexdigest()[:32], -1, key + suffix) for n, (_, suffix) in enumerate(pictures)]
    group = Group(name, prompt, DrawSettings(0, 0.0, 0.0), 0, tuple(refs))
    act = Act(name, rater, LABELS[label], "tie")
    if label != 0.5:
        act = replace(act, kind="best", best=int(1 - label), worst=int(label))
    model = row.get("model_0")
    known = model if isinstance(model, str) and len(model) <= LONGEST_TEXT else ""
    return RatedGroup(group, known, None, "", (ActRecord(0, check_act(act, 2), 0, 0.0, undone=False),)), [picture for picture, _ in pictures]


def _shown(row: Row, side: str, beside: Path | None) -> tuple[bytes, str]:
    value = row.get(f"jpg_{side}")
    return read_picture({"bytes": value} if isinstance(value, bytes | str) else value or row.get(f"image_{side}"), beside)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"'{name}' must be whole text of at most {LONGEST_TEXT:,} characters, not {reprlib.repr(value)}.")
    return value


def _id(value: Any) -> str:
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise InvalidInput(f"An id is 32 of 0-9 and a-f, not {reprlib.repr(value)}.")
    return value


def _list(row: Row, name: str, most: int) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise InvalidInput(f"'{name}' must be a list of at most {most:,}, not {reprlib.repr(value)}.")
    return value


def _whole(row: Row, name: str, end: int) -> int:
    value = row.get(name)
    if type(value) is not int or not 0 <= value < end:
        raise InvalidInput(f"'{name}' must be a whole number from 0 to {end - 1}, not {reprlib.repr(value)}.")
    return value


def _number(row: Row, name: str, most: float) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InvalidInput(f"'{name}' must be a number from 0 to {most:g}, not {reprlib.repr(value)}.")
    return float(value)


def _seed(value: Any) -> int:
    return -1 if value is None else _whole({"seeds": value}, "seeds", MAX_SEED)
