"""The run folder: all that outlives the process, and the only SQL.

    <runs>/<name>/run.sqlite                  groups, acts, scores, updates, versions and what each rating taught
                  images/<id>.png             the only folder that the page serves
                  transitions/<group>.safetensors
                  versions/<n>/               an adapter, its training state, manifest.json with a checksum per file
                  .lock                       held by one process; the kernel frees it on any kill
    <runs>/.last                              the name of the run opened last

It knows no tensors and decides nothing: callers hand in bytes, or a callback that writes to the path it is given. Three
rules make a kill harmless: a file is on disk before the row that names it; what belongs together is one transaction;
what happened is never changed, only followed by something newer, and what holds now is a view of it.

    run.py          open_run and Store, the one class with everything: opening, repair, counters, notes
    groups.py       drawn images        ratings.py   what people did     lessons.py   scores, and all that can teach
    imports.py      groups of other runs, for the taste model alone
    versions.py     updates, versions   records.py   history, blind pairs, names, deletion   ratings_file.py   CSV and JSONL
    schema.py       tables and views    connection.py, files.py   what durable means
"""

from loophil.store.imports import RatedGroup, taken_back
from loophil.store.lessons import Taught
from loophil.store.ratings import ActRecord, check_act
from loophil.store.ratings_file import to_csv, to_jsonl
from loophil.store.run import SET_ON_PAGE, Counts, RunInfo, Store, describe_runs, hold, last_opened, list_runs, open_run
from loophil.store.versions import Update

__all__ = [
    "SET_ON_PAGE",
    "ActRecord",
    "Counts",
    "RatedGroup",
    "RunInfo",
    "Store",
    "Taught",
    "Update",
    "check_act",
    "describe_runs",
    "hold",
    "last_opened",
    "list_runs",
    "open_run",
    "taken_back",
    "to_csv",
    "to_jsonl",
]
