"""What a client may send, turned into Python values or refused with one sentence.

Types only: whether a group exists or five stars are allowed is the session's to say. Gradio's own components check next to nothing of this
(NaN passes a Slider, `max_length` holds in the browser only, JSON passes everything), so each value is parsed here, from Python's own JSON types.
"""

import json
from typing import Any

from loophil.errors import InvalidInput
from loophil.types import MAX_SEED

MAX_NAME = 200


def shown(value: object) -> str:
    """`value` as it may stand in a sentence: short, on one line, and writable as UTF-8 (a lone surrogate would cut the event stream)."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def text(value: Any, name: str) -> str:
    """A short string such as an id, a rater or a key; None is the empty one. (Prompts have a door of their own in the session.)"""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be text, not {shown(value)}.")
    if len(value) > MAX_NAME:
        raise InvalidInput(f"{name} has {len(value):,} characters; at most {MAX_NAME} are taken.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"{name} holds half a character (a lone surrogate), which cannot be stored: send whole Unicode text.")
    return value


def whole_number(value: Any, name: str, *, below: int = MAX_SEED) -> int:
    """An integer in 0..below-1. 7.0 is one too (some clients have no integers); True, "7" and NaN are not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below or value != int(value):
        raise InvalidInput(f"{name} must be a whole number from 0 to {below - 1}, not {shown(value)}.")
    return int(value)


def number(value: Any, name: str) -> float:
    """A finite number; True, "7" and NaN are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_SEED:
        raise InvalidInput(f"{name} must be a number, not {shown(value)}.")
    return float(value)


def ratings(value: Any) -> tuple[float | None, ...]:
    """A list of numbers and nulls, also as JSON text. How many and how large they may be is the session's to say."""
    entries = _from_json(value) if isinstance(value, str) else value
    if not isinstance(entries, list):
        raise InvalidInput(f"ratings must be a list such as [5, 3, null, 1], not {shown(value)}.")
    return tuple(None if entry is None else _star(entry) for entry in entries)


def _from_json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _star(entry: Any) -> float:
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not abs(entry) < MAX_SEED:
        raise InvalidInput(f"A rating must be a number from 1 to 5, or null, not {shown(entry)}.")
    return float(entry)
