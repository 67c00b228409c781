"""Rows as JSONL or parquet, written and read a few at a time. Not what is in a row: see rows and reading.

Parquet is held to the lengths of a dataset's lists before it is unpacked and again before it becomes Python: a kilobyte can stand for gigabytes.

Parquet carries the features of Hugging Face's `datasets` for its pictures, so that `load_dataset` and the Hub's viewer show them.
"""

from __future__ import annotations

import base64
import itertools
import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loophil.dataset import pictures
from loophil.dataset.reading import MOST, MOST_ACTS
from loophil.errors import InvalidInput

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

# name:type of each column in parquet, [type] = a list; of the pairs embedded and by reference.
PAIR = """label_0:float label_1:float image_0_uid:text image_1_uid:text best_image_uid:text are_different:bool has_label:bool ranking_id:text
    user_id:text model_0:text model_1:text created_at:text"""
COLUMNS = {
    ("groups", True): """id:text prompt:text negative_prompt:text images:[image] image_ids:[text] seeds:[int] base_model:text revision:text
        policy_version:int scheduler:text num_inference_steps:int guidance_scale:float eta:float created:float acts:[act] scores:[score]""",
    ("pairs", True): f"caption:text jpg_0:bytes jpg_1:bytes {PAIR}",
    ("pairs", False): f"caption:text image_0:text image_1:text {PAIR}",
    ("dpo", True): "prompt:text chosen:image rejected:image",
}
STRUCTS = {
    "act": """rater:text kind:text stars:[float] best:int worst:int order:[int] milliseconds:int policy_version:int created:float
        current:bool""",
    "score": "reward:text values:[float]",
}

ROWS = 16  # written at once: so many groups are in memory
LARGEST_FILE = 16 << 30  # bytes
LARGEST_LINE = MOST * pictures.LARGEST_FILE * 4 // 3 + (16 << 20)  # bytes of a row: the most and largest pictures in base64, and all else
LARGEST_PART = 4 << 30  # bytes of a row group in parquet, unpacked, where what it repeats counts once


def write(file: Path, rows: Iterable[Row], kind: str, format: str, embed: bool) -> None:
    """A new file of these rows."""
    if format == "jsonl":
        with file.open("w", encoding="ascii", newline="\n") as text:
            text.writelines(json.dumps(row, default=_base64, allow_nan=False) + "\n" for row in rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, rest = _schema(kind, embed), iter(rows)
    with pq.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(rest, ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def read(file: Path) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of each row; of a JSONL file the number of its line. InvalidInput for what cannot be read or is too large."""
    try:
        status = file.stat()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"{file.name} is no plain file.")
    size = status.st_size
    if size > LARGEST_FILE:
        raise InvalidInput(f"{file.name} has {size:,} bytes; at most {LARGEST_FILE:,} are taken.")
    yield from _read_jsonl(file) if file.suffix == ".jsonl" else _read_parquet(file)


def _read_jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open("rb") as lines:
        for number in itertools.count(1):
            line = lines.readline(LARGEST_LINE + 1)
            if not line:
                return
            if len(line) > LARGEST_LINE:
                raise InvalidInput(f"Row {number} of {file.name} has more than {LARGEST_LINE:,} bytes. Nothing was imported.")
            if line.strip():
                yield number, _row(line, number, file.name)


def _row(line: bytes, number: int, name: str) -> Row:
    try:
        row = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"Row {number} of {name} is not JSON ({error}). Nothing was imported.") from None
    if not isinstance(row, dict):
        raise InvalidInput(f"Row {number} of {name} is not a JSON object. Nothing was imported.")
    return row


def _read_parquet(file: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = itertools.count(1)
    try:
        with pq.ParquetFile(file) as parts:
            columns = [name for name in parts.schema_arrow.names if name in _known_columns()]
            for part in range(parts.num_row_groups):
                _check_part(parts.metadata.row_group(part), f"Part {part + 1} of {file.name}")
                for batch in parts.iter_batches(batch_size=1, row_groups=[part], columns=columns):
                    _check_batch(batch, f"Row {(n := next(number))} of {file.name}")
                    yield from ((n, row) for row in batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{file.name} cannot be read as parquet ({' '.join(str(error).split())[:120]}). Nothing was imported.") from None


def _known_columns() -> set[str]:
    """What an import looks at: the scores of reward models are not kept."""
    return {name for columns in COLUMNS.values() for name, _ in _split(columns)} - {"scores"}


def _check_part(part: pyarrow.parquet.RowGroupMetaData, where: str) -> None:
    """By what the file says of itself, before anything is unpacked."""
    if part.total_byte_size > LARGEST_PART:
        raise InvalidInput(f"{where} has {part.total_byte_size:,} bytes unpacked; at most {LARGEST_PART:,} are taken. Nothing was imported.")
    for column in map(part.column, range(part.num_columns)):
        name = column.path_in_schema.partition(".")[0]
        most = MOST_ACTS * MOST if name == "acts" else MOST
        if name in _known_columns() and column.num_values > most * part.num_rows:
            found = f"{column.num_values:,} values in '{name}' for {part.num_rows:,} rows"
            raise InvalidInput(f"{where} has {found}; at most {most:,} a row are taken. Nothing was imported.")


def _check_batch(batch: pyarrow.RecordBatch, where: str) -> None:
    """Before it becomes Python, where each of its values takes memory of its own."""
    import pyarrow as pa

    if batch.nbytes > LARGEST_LINE:
        raise InvalidInput(f"{where} has more than {LARGEST_LINE:,} bytes. Nothing was imported.")
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):  # as pandas keeps categories
            column = column.dictionary_decode()
        if fault := _fault(column, name, MOST_ACTS if name == "acts" else MOST):
            raise InvalidInput(f"{where}: {fault}. Nothing was imported.")


def _fault(values: pyarrow.Array, name: str, most: int) -> str:
    """What is wrong with a column, or with the lists and structs in it; "" = nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(values.type):
        faults = (_fault(values.field(n), values.type.field(n).name, MOST) for n in range(values.type.num_fields))
        return next(filter(None, faults), "")
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        longest = pc.max(pc.list_value_length(values)).as_py() or 0
        return f"'{name}' has {longest:,} entries; at most {most:,} are taken" if longest > most else _fault(values.flatten(), name, MOST)
    plain = not (pa.types.is_nested(values.type) or isinstance(values.type, pa.BaseExtensionType) or pa.types.is_dictionary(values.type))
    return "" if plain else f"'{name}' is a {values.type}, which no dataset has"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _schema(kind: str, embed: bool) -> pyarrow.Schema:
    """Of the rows of this kind, with the features by which `datasets` knows pictures."""
    import pyarrow as pa

    types = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "bytes": pa.binary()}
    types["image"] = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = COLUMNS.get((kind, embed), COLUMNS[kind, True])

    def type_of(name: str) -> pyarrow.DataType:
        if name in STRUCTS:
            return pa.struct([(column, type_of(inner)) for column, inner in _split(STRUCTS[name])])
        return pa.list_(type_of(name[1:-1])) if name.startswith("[") else types[name]

    known: dict[str, Any] = {"image": {"_type": "Image"}, "[image]": {"_type": "Sequence", "feature": {"_type": "Image"}}}
    features = {column: known[name] for column, name in _split(columns) if name in known}
    schema = pa.schema([(column, type_of(name)) for column, name in _split(columns)])
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _split(columns: str) -> list[tuple[str, str]]:
    return [(name, of) for name, _, of in (column.partition(":") for column in columns.split())]
