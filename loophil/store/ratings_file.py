"""Ratings as a file to take away: JSONL, which loses nothing, and CSV, which a spreadsheet opens safely. Not what is in it: see records.

A spreadsheet runs a cell that begins like a formula, and prompts and names are what people typed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

# Positions (`position`, `best`, `worst`, `shown_order`) count from 0. `policy_version` drew the image, `rated_version` was current when it was
# rated; `current` = the act counts now, `undone` = taken back, `undoes` = the act that an undo took back; `created` in Unix seconds.
COLUMNS = (
    *("act", "group", "image", "file", "position"),
    *("prompt", "negative_prompt", "seed", "policy_version", "scheduler", "num_inference_steps", "guidance_scale", "eta"),
    *("rater", "kind", "stars", "best", "worst", "shown_order", "milliseconds", "created", "rated_version", "current", "undone", "undoes"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line, in ASCII; read back with `json.loads` each line is the very row."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """RFC 4180 with a header; nothing = an empty cell, a list = JSON. Text that begins like a formula gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({column: _cell(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return json.dumps(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
