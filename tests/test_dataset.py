"""The feedback as a dataset: what leaves comes back the same and teaches the taste alone; pairs say what was rated; what is wrong changes nothing."""

import base64
import io
import json
import logging
import os
import sqlite3
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from loophil.dataset import FORMATS, IMAGES, KINDS, Imported, export_dataset, formats, import_dataset, pictures
from loophil.errors import InvalidInput, UnknownGroup
from loophil.session import Session
from loophil.store import Store, open_run, schema
from loophil.types import Act, Group
from loophil.understanding import EVERYBODY, Understanding
from tests.fake_engine import FakeEngine, fake_session
from tests.test_store import draw, publish, reopen, sql, stars, undo

Row = dict[str, Any]
TABLES = ("groups", "images", "acts", "ratings", "pending", *schema.ONLY_GROW_3)
POOL = pa.proxy_memory_pool(pa.default_memory_pool())  # counts anew; it must outlive all that was read with it
QUERY = np.random.default_rng(7).normal(size=(5, 3))


def png(seed: int, size: int = 8) -> bytes:
    """A picture of one colour, that of its seed."""
    data = io.BytesIO()
    Image.new("RGB", (size, size), tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))).save(data, "png")
    return data.getvalue()


@pytest.fixture
def store(runs: Path) -> Iterator[Store]:
    with reopen(runs, "old") as opened:
        yield opened


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Store]:
    """Another run, of another base."""
    with open_run(tmp_path / "others", "new", base_model="other", revision=None) as opened:
        yield opened


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """For what is refused: an empty run, which no test changes."""
    with open_run(tmp_path_factory.mktemp("untouched"), "new", base_model="other", revision=None) as opened:
        yield opened


def add(store: Store, seed: int = 1, prompt: str = "a red circle", **given: Any) -> Group:
    seeds = tuple(range(seed, seed + given.pop("k", 4)))
    return draw(store, prompt, seeds=seeds, images=[png(each) for each in seeds], **given)


def rate_some(store: Store, groups: int = 3) -> list[Group]:
    """Groups rated by two people in every way there is, one rated again, one taken back, one half rated, one skipped; the last is not answered."""
    publish(store)
    made = [add(store, 10 * n, f"picture {n} ✓", policy_version=n % 2, k=3 + n % 2) for n in range(groups + 1)]
    for n, group in enumerate(made[:-1]):
        k = len(group.images)
        order = np.random.default_rng(n).permutation(k)
        store.rate(stars(group, *(float(1 + place) for place in order), order=tuple(map(int, order)), milliseconds=1500 + n, key=f"key {n}"), 1)
        store.rate(Act(group.id, "bob", (5.0, *(3.0,) * (k - 2), 1.0), "best", 0, k - 1), 0)
    first, second = made[0], made[1]
    store.rate(stars(first, 2.5, None, 4.0, rater="bob"), 1)
    store.rate(stars(second, 1, 1, 5, 5, rater="carl"), 1)
    store.rate(undo(second, "carl"), 1)
    store.rate(Act(second.id, "dora", (None,) * 4, "skip"), 1)
    store.add_scores(first.id, "jpeg", [0.5, float("nan"), -3.0])
    return made


def content(store: Store) -> tuple[Any, ...]:
    """All rows that an import may touch, and the files."""
    rows = {table: sorted(sql(store, f"SELECT * FROM {table}"), key=repr) for table in TABLES}  # noqa: S608
    return rows, sorted(file.name for file in store.images.iterdir())


def told(store: Store) -> list[Row]:
    """The groups with their acts and the bytes of their pictures, as they are exported, save what an import does not keep."""
    folder = store.path / "told"
    file = export_dataset(store, folder, format="jsonl")
    return [{name: value for name, value in json.loads(line).items() if name != "scores"} for line in file.read_text().splitlines()]


def rows_of(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else pq.read_table(file).to_pylist()


def colours(store: Store) -> Callable[[Group], list[np.ndarray[Any, Any]]]:
    return lambda group: [np.array([np.asarray(Image.open(store.images / ref.file), dtype=float).mean(axis=(0, 1)) for ref in group.images]) / 255]


def understood(store: Store) -> Understanding:
    understanding = Understanding(store)
    understanding.look(colours(store))
    return understanding


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A run with three imported groups, which no test changes."""
    folder = tmp_path_factory.mktemp("filled")
    with reopen(folder / "old") as old, open_run(folder / "new", "new", base_model="other", revision=None) as opened:
        rate_some(old)
        import_dataset(opened, export_dataset(old, folder))
        yield opened


# there and back


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("format", FORMATS)
def test_groups_come_back_as_they_left(store: Store, new: Store, tmp_path: Path, format: str, images: str) -> None:
    made = rate_some(store)
    file = export_dataset(store, tmp_path / "out", format=format, images=images)
    assert import_dataset(new, tmp_path / "out" if images == "embed" else file) == Imported(3, 10, 0)
    before, after = told(store), told(new)
    assert [row["id"] for row in after] == [group.id for group in made[:3]]
    assert after == before
    with closing(sqlite3.connect(new.path / "run.sqlite")) as db:
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    assert [record.undone for record in next(iter(list(new.rated_groups())[1:])).acts] == [False, False, True, False, False]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([file.name, *["images"] * (images == "reference")])


@pytest.mark.parametrize("format", FORMATS)
def test_everything_of_a_group_stands_in_its_row(store: Store, tmp_path: Path, format: str) -> None:
    group = rate_some(store)[0]
    row = rows_of(export_dataset(store, tmp_path, format=format))[0]
    acts = row.pop("acts")
    assert [picture["path"] for picture in row.pop("images")] == [f"{ref.id}.png" for ref in group.images]
    assert row.pop("created") == group.created
    assert row == {
        "id": group.id,
        "prompt": "picture 0 ✓",
        "negative_prompt": "blur",
        "image_ids": [ref.id for ref in group.images],
        "seeds": [0, 1, 2],
        "base_model": "embedded",
        "revision": "r1",
        "policy_version": 0,
        "scheduler": "DDIM",
        "num_inference_steps": 12,
        "guidance_scale": 3.5,
        "eta": 0.75,
        "scores": [{"reward": "jpeg", "values": [0.5, None, -3.0]}],
    }
    assert [(act["rater"], act["kind"], act["policy_version"], act["current"]) for act in acts] == [
        ("ann", "stars", 1, True),
        ("bob", "best", 0, False),
        ("bob", "stars", 1, True),
    ]
    assert acts[1] | {"created": 0} == {
        "rater": "bob",
        "kind": "best",
        "stars": [5.0, 3.0, 1.0],
        "best": 0,
        "worst": 2,
        "order": [],
        "milliseconds": None,
        "policy_version": 0,
        "created": 0,
        "current": False,
    }
    assert (acts[2]["stars"], acts[0]["milliseconds"], sorted(acts[0]["order"])) == ([2.5, None, 4.0], 1500, [0, 1, 2])


def test_taste_is_the_same_after_the_import(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store, 12)
    import_dataset(new, export_dataset(store, tmp_path))
    original, copy = understood(store), understood(new)
    for ours, theirs in zip(original._tastes[EVERYBODY].score(QUERY), copy._tastes[EVERYBODY].score(QUERY), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.ptp(original._tastes[EVERYBODY].score(QUERY)[0]) > 0.01
    assert original.of("ann") == copy.of("ann") is not None
    assert original.between == copy.between


def test_taste_learns_anew_from_what_is_imported_later_and_own_ratings_are_the_newest(
    store: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_some(store)
    understanding = Understanding(new)
    new.rate(stars(add(new, 90), 1, 2, 3, 4, rater="eve"), 0)
    understanding.look(colours(new))
    alone = understanding._tastes[EVERYBODY]
    import_dataset(new, export_dataset(store, tmp_path))
    understanding.look(colours(new))
    together = understanding._tastes[EVERYBODY]
    assert [choice.rater for choice in alone._choices] == ["eve"]
    assert [choice.rater for choice in together._choices] == [*["ann", "bob"] * 3, "eve"]
    monkeypatch.setattr("loophil.understanding.REMEMBERED", 2)
    assert [choice.rater for choice in understood(new)._tastes[EVERYBODY]._choices] == ["ann", "bob", "eve"]


def test_imported_groups_are_nobodys_but_the_tastes(runs: Path, store: Store, new: Store, tmp_path: Path) -> None:
    rated = rate_some(store)[0]
    import_dataset(new, export_dataset(store, tmp_path))
    assert (new.unrated_groups(None), new.learnable_groups(), new.history(), new.means(), new.ratings_rows()) == ([], [], [], [], [])
    assert (new.last_act("ann"), new.acted("ann")) == (None, 0)
    counts = new.counts()
    assert (counts.ratings, counts.groups, counts.rated_groups, counts.pending) == (0, 0, 0, 0)
    with pytest.raises(UnknownGroup):
        new.rate(stars(rated, 1, 2, 3), 0)
    assert [taught.group.kind for taught in new.imported(9)] == ["imported"] * 3
    assert [taught.group.id for taught in new.imported(1)] == [list(new.rated_groups())[2].group.id]
    assert not any(taught.fresh or taught.scores for taught in new.imported(9))


def test_nothing_but_the_own_groups_trains_the_adapter(runs: Path, store: Store, tmp_path: Path) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path)
    fake = FakeEngine()
    with closing(fake_session(tmp_path / "fake", fake, threaded=False)) as session:
        assert session.import_dataset(file) == Imported(3, 10, 0)
        assert (fake.updates, session.status().policy_version, session.status().ratings) == ([], 0, 0)
        assert session.status().agreement is not None  # the taste was learned at once
        group = session.new_group()
        session.rate(Act(group.id, "ann", (1.0, 2.0, 3.0, 4.0)))
        assert [[lesson.group.id for lesson in lessons] for lessons in fake.updates] == [[group.id]]


def test_pictures_are_there_after_reopening(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store)
    import_dataset(new, export_dataset(store, tmp_path))
    before = told(new)
    new.close()
    with open_run(tmp_path / "others", "new", base_model="other", revision=None) as again:
        assert told(again) == before


@pytest.mark.parametrize("kind", ["groups", "pairs", "dpo"])
def test_imported_twice_is_imported_once(store: Store, new: Store, tmp_path: Path, kind: str) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path, kind=kind, format="jsonl")
    file.write_text(2 * file.read_text())  # and twice in the file
    first = import_dataset(new, file)
    assert first.groups > 0
    assert first.known >= first.groups  # equal pairs of two people are told apart by the rater, of dpo they are not
    before = content(new)
    assert import_dataset(new, file) == Imported(0, 0, first.groups + first.known)
    assert content(new) == before


def test_own_groups_that_come_back_change_nothing(store: Store, tmp_path: Path) -> None:
    made = rate_some(store)
    file = export_dataset(store, tmp_path)
    before = content(store)
    assert import_dataset(store, file) == Imported(0, 0, 3)
    store.rate(stars(made[0], 1, 2, 3), 1)
    assert import_dataset(store, file) == Imported(0, 0, 2, changed=1)
    assert before[0]["imported_groups"] == sql(store, "SELECT * FROM imported_groups") == []


def test_newer_export_brings_what_is_new_and_what_was_rated_anew_is_kept_as_it_was(store: Store, new: Store, tmp_path: Path) -> None:
    made = rate_some(store)
    import_dataset(new, export_dataset(store, tmp_path))
    before = told(new)
    store.rate(stars(made[0], 1, 2, 3), 1)
    store.rate(stars(made[3], 1, 2, 3, 4), 1)
    assert import_dataset(new, export_dataset(store, tmp_path)) == Imported(1, 1, 2, changed=1)
    assert told(new)[:3] == before
    assert told(new)[3] == told(store)[3]


@pytest.mark.parametrize("spoil", [lambda row: row.update(prompt="a dog"), lambda row: row["images"].reverse()], ids=["prompt", "pictures"])
def test_group_of_the_same_id_with_another_prompt_or_pictures_is_refused(new: Store, tmp_path: Path, spoil: Callable[[Row], Any]) -> None:
    import_dataset(new, write_lines(tmp_path / "groups.jsonl", good_rows()))
    rows = good_rows()
    spoil(rows[1])
    rows[1]["acts"] = []
    with pytest.raises(InvalidInput, match=r"^Row 2 of groups\.jsonl: Group 2{32} is there already with another prompt or other pictures\. Nothing"):
        import_dataset(new, write_lines(tmp_path / "groups.jsonl", rows))


def test_group_whose_picture_was_lost_is_still_the_same(store: Store, tmp_path: Path) -> None:
    made = rate_some(store)
    file = export_dataset(store, tmp_path)
    (store.images / made[1].images[0].file).unlink()
    assert import_dataset(store, file) == Imported(0, 0, 3)


def test_imported_groups_leave_again_before_the_own_ones(store: Store, new: Store, tmp_path: Path) -> None:
    made = rate_some(store)
    own = add(new, 90)
    new.rate(stars(own, 1, 2, 3, 4), 0)
    import_dataset(new, export_dataset(store, tmp_path))
    assert [(row["id"], row["base_model"]) for row in told(new)] == [*((group.id, "embedded") for group in made[:3]), (own.id, "other")]


def test_forgetting_deletes_imported_ratings_too(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path)
    import_dataset(new, file)
    new.rate(stars(add(new, 90), 1, 2, 3, 4, rater="bob"), 0)
    guards = sql(new, "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' ORDER BY name")
    assert new.forget_rater("bob") == 5
    assert {rater for (rater,) in sql(new, "SELECT rater FROM imported_acts")} == {"ann", "carl", "dora"}
    assert sql(new, "SELECT count(*) FROM imported_ratings WHERE act_id NOT IN (SELECT id FROM imported_acts)") == [(0,)]
    assert sql(new, "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' ORDER BY name") == guards
    assert not any(b"bob" in path.read_bytes() for path in new.path.glob("run.sqlite*"))
    assert import_dataset(new, file) == Imported(0, 0, 0, changed=3)  # what was forgotten does not come back
    assert {rater for (rater,) in sql(new, "SELECT rater FROM imported_acts")} == {"ann", "carl", "dora"}


def test_undo_is_forgotten_with_what_it_took_back(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store)
    import_dataset(new, export_dataset(store, tmp_path))
    assert new.forget_rater("carl") == 2


def test_undo_takes_back_the_newest_act_in_the_import_too(store: Store, new: Store, tmp_path: Path) -> None:
    group = add(store)
    for values in ((1, 2, 3, 4), (4, 3, 2, 1), (5, 5, 1, 1)):
        store.rate(stars(group, *values), 0)
    for _ in range(2):
        store.rate(undo(group), 0)
    import_dataset(new, export_dataset(store, tmp_path))
    assert [record.undone for record in next(new.rated_groups()).acts] == [False, True, True, False, False]
    assert new.imported(1)[0].ratings["ann"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("table", schema.ONLY_GROW_3)
def test_what_was_imported_cannot_be_rewritten(filled: Store, table: str) -> None:
    column = "stars" if table == "imported_ratings" else "group_id" if table != "imported_groups" else "id"
    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):  # noqa: S608
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} only grows"):
            sql(filled, statement)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *(("imported_groups", "num_inference_steps", value) for value in (-1, None)),
        *(("imported_groups", "guidance_scale", value) for value in (1001, float("nan"))),
        *(("imported_groups", "eta", value) for value in (1.5, float("nan"))),
        *(("imported_groups", column, -1) for column in ("policy_version", "created", "imported")),
        *(("imported_images", "seed", value) for value in (-2, 2**53, None)),
        ("imported_images", "position", -1),
        *(("imported_acts", column, -1) for column in ("best", "worst", "milliseconds", "policy_version", "created")),
        *(("imported_acts", column, "") for column in ("kind", "rater")),
        *(("imported_ratings", "stars", value) for value in (0.5, 5.5, float("nan"))),
        *((table, "id", "x") for table in ("imported_groups", "imported_images")),
    ],
)
def test_database_itself_refuses_numbers_that_cannot_be(filled: Store, table: str, column: str, value: Any) -> None:
    columns = [name for (name,) in sql(filled, f"SELECT name FROM pragma_table_info('{table}')")]  # noqa: S608
    chosen = ", ".join("?" if name == column else name for name in columns)
    with pytest.raises(sqlite3.IntegrityError, match=r"CHECK|NOT NULL"):
        sql(filled, f"INSERT INTO {table} SELECT {chosen} FROM {table} LIMIT 1", value)  # noqa: S608


# pairs


def pair_facts(rows: list[Row], group: Group) -> list[tuple[Any, ...]]:
    """(rater, position, position, label_0) of each row."""
    at = {ref.id: position for position, ref in enumerate(group.images)}
    return [(row["user_id"], at[row["image_0_uid"]], at[row["image_1_uid"]], row["label_0"]) for row in rows]


def test_pairs_are_what_a_rating_says(store: Store, tmp_path: Path) -> None:
    """By hand. Best 1, worst 3 of four says nothing of 0 against 2. Stars 4, none, 4, 2 tie 0 with 2. A superseded act says nothing."""
    group = add(store)
    store.rate(stars(group, 1, 2, 3, 4, rater="bob"), 0)
    store.rate(Act(group.id, "ann", (3.0, 5.0, 3.0, 1.0), "best", 1, 3), 0)
    store.rate(stars(group, 4, None, 4, 2, rater="bob"), 0)
    rows = rows_of(export_dataset(store, tmp_path, kind="pairs"))
    assert pair_facts(rows, group) == [
        *[("ann", 0, 1, 0.0), ("ann", 1, 2, 1.0), ("ann", 0, 3, 1.0), ("ann", 1, 3, 1.0), ("ann", 2, 3, 1.0)],
        *[("bob", 0, 2, 0.5), ("bob", 0, 3, 1.0), ("bob", 2, 3, 1.0)],
    ]
    assert [row["ranking_id"] for row in rows] == [f"{group.id}:1"] * 5 + [f"{group.id}:2"] * 3
    assert all(row["label_0"] + row["label_1"] == 1 and row["has_label"] and row["are_different"] == (row["label_0"] != 0.5) for row in rows)
    best = [row["best_image_uid"] for row in rows]
    assert best[0] == group.images[1].id
    assert best[5] is None
    first = rows[0]
    assert (first["caption"], first["model_0"], first["model_1"]) == ("a red circle", "embedded@v0", "embedded@v0")
    assert (first["jpg_0"], first["jpg_1"]) == (png(1), png(2))
    assert first["created_at"].endswith("+00:00")


@pytest.mark.parametrize(("kind", "value"), [("tie", 3.0), ("good", 5.0), ("bad", 1.0)])
def test_ties_that_were_said_are_pairs_and_no_dpo(store: Store, tmp_path: Path, kind: str, value: float) -> None:
    group = add(store, k=3)
    store.rate(Act(group.id, "ann", (value,) * 3, kind), 0)
    rows = rows_of(export_dataset(store, tmp_path, kind="pairs", format="jsonl"))
    assert pair_facts(rows, group) == [("ann", 0, 1, 0.5), ("ann", 0, 2, 0.5), ("ann", 1, 2, 0.5)]
    assert rows_of(export_dataset(store, tmp_path, kind="dpo")) == []


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("format", FORMATS)
def test_dpo_has_the_better_image_as_chosen(store: Store, tmp_path: Path, format: str, images: str) -> None:
    group = add(store, k=3)
    store.rate(stars(group, 2, 5, None), 0)
    (row,) = rows_of(export_dataset(store, tmp_path, kind="dpo", format=format, images=images))
    assert list(row) == ["prompt", "chosen", "rejected"]
    assert row["prompt"] == "a red circle"
    for side, n in (("chosen", 1), ("rejected", 0)):
        if images == "embed":
            data = row[side]["bytes"]
            assert (base64.b64decode(data) if format == "jsonl" else data) == png(1 + n)
            assert row[side]["path"] == f"{group.images[n].id}.png"
        else:
            assert row[side]["bytes"] is None
            assert (tmp_path / row[side]["path"]).read_bytes() == png(1 + n)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("format", FORMATS)
def test_pairs_come_back_as_groups_of_two(store: Store, new: Store, tmp_path: Path, format: str, images: str) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path, kind="pairs", format=format, images=images)
    rows = rows_of(file)
    assert import_dataset(new, file) == Imported(len(rows), len(rows), 0)
    again = rows_of(export_dataset(new, tmp_path / "again", kind="pairs", format=format))
    kept = ("caption", "label_0", "label_1", "user_id", "are_different", "has_label")
    assert [[row[name] for name in kept] for row in again] == [[row[name] for name in kept] for row in rows]
    sampled = next(iter(told(new)))
    assert [sampled[name] for name in ("num_inference_steps", "guidance_scale", "eta", "seeds", "revision")] == [None, None, None, [None, None], None]


def test_dpo_comes_back_under_a_name_for_nobody(store: Store, new: Store, tmp_path: Path) -> None:
    store.rate(stars(add(store, k=3), 1, 3, 5), 0)
    import_dataset(new, export_dataset(store, tmp_path, kind="dpo"))
    assert [taught.ratings["imported"].tolist() for taught in new.imported(9)] == [[5.0, 1.0]] * 3


def test_pairs_of_others_are_taken_with_whole_numbers_as_users(new: Store, tmp_path: Path) -> None:
    """As in Pick-a-Pic: more columns, users and rankings as numbers, jpeg bytes."""
    jpeg = io.BytesIO()
    Image.new("RGB", (9, 7), "blue").save(jpeg, "jpeg")
    row = {
        "caption": "a cat",
        "jpg_0": jpeg.getvalue(),
        "jpg_1": png(3),
        "label_0": 0.0,
        "label_1": 1.0,
        "user_id": 12,
        "ranking_id": 5,
        "__index": 1,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pickapic.parquet")
    assert import_dataset(new, tmp_path / "pickapic.parquet") == Imported(1, 1, 0)
    (taught,) = new.imported(9)
    assert {rater: values.tolist() for rater, values in taught.ratings.items()} == {"12": [1.0, 5.0]}
    assert [Path(ref.file).suffix for ref in taught.group.images] == [".jpg", ".png"]
    assert (new.images / taught.group.images[0].file).read_bytes() == jpeg.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_pairs_that_nobody_labelled_are_passed_over(new: Store, tmp_path: Path, format: str) -> None:
    rows = [pair(has_label=True), *(pair(caption="a dog", has_label=False, label_0=label, label_1=label) for label in (0.5, -1.0, None))]
    file = tmp_path / f"pairs.{format}"
    if format == "jsonl":
        write_lines(file, rows)
    else:
        pq.write_table(pa.Table.from_pylist([row | {f"jpg_{n}": png(n) for n in range(2)} for row in rows]), file)
    assert import_dataset(new, file) == Imported(1, 1, 0, unlabelled=3)
    assert [taught.group.prompt for taught in new.imported(9)] == ["a cat"]


# how files look


def test_parquet_tells_datasets_what_a_picture_is(store: Store, tmp_path: Path) -> None:
    rate_some(store)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    groups, pairs, dpo = (pq.read_schema(export_dataset(store, tmp_path, kind=kind)) for kind in KINDS)
    assert groups.field("images").type.value_type == image
    assert dpo.field("chosen").type == dpo.field("rejected").type == image
    assert pairs.field("jpg_0").type == pairs.field("jpg_1").type == pa.binary()
    features = [json.loads(each.metadata[b"huggingface"])["info"]["features"] for each in (groups, pairs, dpo)]
    picture = {"_type": "Image"}
    assert features == [{"images": {"_type": "Sequence", "feature": picture}}, {}, {"chosen": picture, "rejected": picture}]


def test_many_groups_are_written_in_parts_and_read_again(store: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ROWS", 2)
    rate_some(store, 5)
    file = export_dataset(store, tmp_path)
    assert pq.ParquetFile(file).num_row_groups == 3
    assert import_dataset(new, file).groups == 5
    assert told(new) == told(store)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
def test_run_without_ratings_is_an_empty_dataset(store: Store, new: Store, tmp_path: Path, format: str, kind: str) -> None:
    add(store)
    assert import_dataset(new, export_dataset(store, tmp_path, kind=kind, format=format)) == Imported(0, 0, 0)


def test_group_with_a_lost_picture_is_left_out_and_named(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = rate_some(store)
    (store.images / made[1].images[0].file).unlink()
    with caplog.at_level(logging.WARNING):
        assert [row["id"] for row in rows_of(export_dataset(store, tmp_path))] == [made[0].id, made[2].id]
    assert f"Group {made[1].id} is left out" in caplog.text


def test_export_that_fails_leaves_the_file_before(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path, format="jsonl")
    before = file.read_bytes()
    monkeypatch.setattr("loophil.dataset.rows._act", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_dataset(store, tmp_path, format="jsonl")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["groups.jsonl"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "stars"}, "Unknown kind 'stars'. Choose from: groups, pairs, dpo."),
        ({"format": "csv"}, "Unknown format 'csv'. Choose from: parquet, jsonl."),
        ({"images": "none"}, "Unknown way of images 'none'. Choose from: embed, reference."),
    ],
)
def test_what_cannot_be_exported_is_said(store: Store, tmp_path: Path, given: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        export_dataset(store, tmp_path / "out", **given)
    assert str(caught.value) == sentence
    assert not (tmp_path / "out").exists()


# what is wrong


def good_rows() -> list[Row]:
    """Two groups that can be imported, as in JSONL."""
    act: Row = {"rater": "ann", "kind": "stars", "stars": [5, None, 1.5], "best": None, "worst": None, "order": [2, 0, 1], "milliseconds": 9}
    act |= {"policy_version": 3, "created": 7.5, "current": True}
    made = []
    for n in range(2):
        shown = [{"bytes": base64.b64encode(png(10 * n + i)).decode(), "path": "x.png"} for i in range(3)]
        row: Row = {
            "id": f"{n + 1}" * 32,
            "prompt": "a cat",
            "negative_prompt": "",
            "images": shown,
            "image_ids": [f"{n + 1}{i}" * 16 for i in range(3)],
        }
        row |= {"seeds": [1, None, 3], "base_model": "b", "revision": None, "policy_version": 3, "scheduler": "DDIM", "num_inference_steps": 20}
        made.append(row | {"guidance_scale": 5, "eta": 1.0, "created": 7, "acts": [dict(act)], "scores": []})
    return made


def pair(**changes: Any) -> Row:
    shown = {f"jpg_{n}": base64.b64encode(png(n)).decode() for n in range(2)}
    return {"caption": "a cat", **shown, "label_0": 1, "label_1": 0, "user_id": "ann"} | changes


def write_lines(file: Path, rows: list[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def in_act(**changes: Any) -> Callable[[Row], Any]:
    return lambda row: row["acts"][0].update(changes)


def in_row(**changes: Any) -> Callable[[Row], Any]:
    return lambda row: row.update(changes)


def picture(value: Any) -> Callable[[Row], Any]:
    return lambda row: row["images"].__setitem__(1, value)


def test_the_good_rows_are_good(new: Store, tmp_path: Path) -> None:
    assert import_dataset(new, write_lines(tmp_path / "groups.jsonl", [*good_rows(), pair()])) == Imported(3, 3, 0)
    assert [taught.ratings["ann"].tolist()[0] for taught in new.imported(9)] == [5.0, 5.0, 5.0]


BAD: list[tuple[str, Callable[[Row], Any], str]] = [
    ("no columns", lambda row: row.pop("images"), r"none of the columns 'images' \(groups\), 'label_0' \(pairs\) and 'chosen' \(dpo\)"),
    ("no prompt", lambda row: row.pop("prompt"), "'prompt' must be whole text of at most 10,000 characters, not None"),
    ("prompt of another type", in_row(prompt=["a"]), r"'prompt' must be whole text .*, not \['a'\]"),
    ("long prompt", in_row(prompt="x" * 10_001), "'prompt' must be whole text of at most 10,000"),
    ("half a character", in_row(prompt="\ud83d"), "'prompt' must be whole text"),
    ("revision of another type", in_row(revision=5), "'revision' must be whole text"),
    ("id that is a path", in_row(id="../../../../../../etc/passwd----"), r"An id is 32 of 0-9 and a-f, not '\.\./"),
    ("id of an image that is a path", in_row(image_ids=["a" * 32, "../x", "b" * 32]), "An id is 32 of 0-9 and a-f, not '../x'"),
    ("one image", lambda row: row.update(images=row["images"][:1]), "A group has 2 to 8 images, not 1"),
    ("nine images", lambda row: row.update(images=row["images"] * 3), "'images' must be a list of at most 8"),
    ("images of another type", in_row(images="x"), "'images' must be a list of at most 8, not 'x'"),
    ("too few seeds", in_row(seeds=[1]), "'image_ids' and 'seeds' have one entry for each image, no id twice"),
    ("an image id twice", in_row(image_ids=["a" * 32] * 3), "no id twice"),
    ("seed of another type", in_row(seeds=["1", 2, 3]), r"'seeds' must be a whole number from 0 to \d+, not '1'"),
    ("negative seed", in_row(seeds=[-1, 2, 3]), r"'seeds' must be a whole number .*, not -1"),
    ("true as a version", in_row(policy_version=True), r"'policy_version' must be a whole number .*, not True"),
    ("version of another type", in_row(policy_version=1.5), r"'policy_version' must be a whole number .*, not 1\.5"),
    ("steps of another type", in_row(num_inference_steps="20"), "'num_inference_steps' must be a whole number from 0 to 9999, not '20'"),
    ("guidance out of range", in_row(guidance_scale=1001), "'guidance_scale' must be a number from 0 to 1000, not 1001"),
    ("eta out of range", in_row(eta=-0.1), r"'eta' must be a number from 0 to 1, not -0\.1"),
    ("true as a time", in_row(created=True), r"'created' must be a number from 0 to 1e\+11, not True"),
    ("a huge number", in_row(created=10**400), "'created' must be a number from 0 to"),
    ("acts of another type", in_row(acts={}), r"'acts' must be a list of at most 10,000, not \{\}"),
    ("an act of another type", in_row(acts=[5]), "An act is an object with rater, kind and stars, not 5"),
    ("stars of another type", in_act(stars=5), "'stars' must be a list of at most 8, not 5"),
    ("a star of another type", in_act(stars=["5", None, 1]), "A rating of '5' is not possible: send a number from 1 to 5"),
    ("six stars", in_act(stars=[6, None, 1]), "A rating of 6 is not possible: send a number from 1 to 5"),
    ("huge stars", in_act(stars=[10**400, None, 1]), "A rating is a number from 1 to 5, not one with hundreds of digits"),
    ("too few stars", in_act(stars=[5, 1]), "has 3 images, but 2 ratings came"),
    ("a long rater", in_act(rater="x" * 201), r"The rater 'x+\.\.\.x+' is not possible: send 1 to 200 printable characters"),
    ("a rater of another type", in_act(rater=None), "The rater None is not possible"),
    ("an unknown kind", in_act(kind="love"), "Unknown kind of rating 'love'"),
    ("an image that is best and worst", in_act(best=1, worst=1), "cannot be both the best and the worst"),
    ("a best that is not there", in_act(best=3), "best = 3 is not possible"),
    ("an order of others", in_act(order=[0, 0, 1]), r"The order \(0, 0, 1\) is not possible"),
    ("an order of another type", in_act(order=None), "'order' must be a list of at most 8, not None"),
    ("negative milliseconds", in_act(milliseconds=-1), "milliseconds = -1 is not possible"),
    ("an undo of nothing", in_act(kind="undo", stars=[]), "ann takes back an act on group 2+ that is not there"),
    ("no picture", picture(None), "A picture is missing"),
    ("a picture without bytes and path", picture({"bytes": None, "path": ""}), "A picture is missing"),
    ("a picture of another type", picture(5), "A picture is missing"),
    ("bytes of another type", picture({"bytes": 5}), "A picture's bytes are bytes, in JSON base64, not int"),
    ("bytes that are not base64", picture({"bytes": "??"}), "A picture's bytes are not base64"),
    ("bytes that are no picture", picture({"bytes": "AAAA"}), r"A picture cannot be read \(cannot identify image file"),
    ("half a picture", picture({"bytes": base64.b64encode(png(1, 64)[:90]).decode()}), r"A picture cannot be read \("),
    ("a file that is not there", picture({"path": "images/none.png"}), r"The picture 'images/none\.png' is not there, or cannot be read"),
    ("a name that cannot be", picture({"path": "a\0b"}), r"The picture 'a\\x00b' is not there"),
    ("a path out of the folder", picture("../secret.png"), r"The path '\.\./secret\.png' leads out of the dataset's folder"),
    ("an absolute path", picture({"path": "/etc/hostname"}), "The path '/etc/hostname' leads out"),
    ("a link out of the folder", picture("link.png"), r"The path 'link\.png' leads out"),
    ("an id with other content", in_row(id="1" * 32, prompt="a dog"), "Group 1{32} is there already with another prompt or other pictures"),
    ("an image of another group", in_row(image_ids=["10" * 16, "b" * 32, "c" * 32]), "Image (10){16} belongs to another group already"),
]


@pytest.mark.parametrize(("spoil", "sentence"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_wrong_in_a_row_is_said_and_nothing_is_imported(untouched: Store, tmp_path: Path, spoil: Callable[[Row], Any], sentence: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    rows = good_rows()
    spoil(rows[1])
    file = write_lines(folder / "groups.jsonl", rows)
    before = content(untouched)
    with pytest.raises(InvalidInput, match=rf"^Row 2 of groups\.jsonl: .*{sentence}.* Nothing was imported\.$") as caught:
        import_dataset(untouched, file)
    assert "\n" not in str(caught.value)
    assert content(untouched) == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_0": 0.7}, "'label_0' is 1, 0 or 0.5"),
        ({"label_1": 1}, "'label_0' is 1, 0 or 0.5, and 'label_1' the rest of 1, not 1"),
        ({"label_0": "1"}, "'label_0' must be a number from 0 to 1, not '1'"),
        ({"label_0": None}, "'label_0' must be a number"),
        ({"caption": None}, "'caption' must be whole text"),
        ({"jpg_1": None}, "A picture is missing"),
        ({"jpg_1": 5}, "A picture is missing"),
        ({"user_id": "x" * 201}, "The rater"),
    ],
)
def test_what_is_wrong_in_a_pair_is_said(untouched: Store, tmp_path: Path, changes: Row, sentence: str) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", [pair(), pair(**changes)])
    before = content(untouched)
    with pytest.raises(InvalidInput, match=r"^Row 2 of pairs\.jsonl: .* Nothing was imported\.$") as caught:
        import_dataset(untouched, file)
    assert sentence in str(caught.value)
    assert content(untouched) == before


def test_dpo_without_the_rejected_is_refused(untouched: Store, tmp_path: Path) -> None:
    row = {"prompt": "a cat", "chosen": {"bytes": base64.b64encode(png(1)).decode()}}
    with pytest.raises(InvalidInput, match="A picture is missing"):
        import_dataset(untouched, write_lines(tmp_path / "dpo.jsonl", [row]))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"id": 1', r"Row 3 of groups\.jsonl is not JSON \("),
        (b"\xff\xfe", r"Row 3 of groups\.jsonl is not JSON \("),
        (b"[" * 100_000, r"Row 3 of groups\.jsonl is not JSON \("),
        (b'{"images": NaN}', r"Row 3 of groups\.jsonl is not JSON \(NaN is no number in JSON\)"),
        (b"[1]", r"Row 3 of groups\.jsonl is not a JSON object\."),
    ],
    ids=["broken", "not text", "deep", "NaN", "list"],
)
def test_broken_line_is_named_and_nothing_is_imported(untouched: Store, tmp_path: Path, line: bytes, sentence: str) -> None:
    file = write_lines(tmp_path / "groups.jsonl", good_rows())
    file.write_bytes(file.read_bytes() + line + b"\n")
    before = content(untouched)
    with pytest.raises(InvalidInput, match=rf"^{sentence}.*Nothing was imported\.$"):
        import_dataset(untouched, file)
    assert content(untouched) == before


def test_infinite_stars_are_refused(untouched: Store, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "groups.jsonl", good_rows())
    file.write_text(file.read_text().replace("1.5", "1e999"))
    with pytest.raises(InvalidInput, match=r"Row 1 .* A rating of inf is not possible"):
        import_dataset(untouched, file)


def test_parquet_with_other_columns_is_refused(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store)
    table = pq.read_table(export_dataset(store, tmp_path))
    before = content(new)
    for name, values, sentence in (
        ("prompt", pa.array([1, 2, 3]), "Row 1 of groups.parquet: 'prompt' must be whole text .*, not 1"),
        ("seeds", pa.array([[0.5, 1, 2], [1, 2, 3, 4], [1, 2, 3]]), "Row 1 .*'seeds' must be"),
        ("policy_version", pa.array([0, None, 0]), "Row 2 of groups.parquet: 'policy_version' must be a whole number"),
        ("images", pa.array([b"x", b"y", b"z"]), "Row 1 of groups.parquet: 'images' must be a list"),
    ):
        pq.write_table(table.set_column(table.column_names.index(name), name, values), tmp_path / "groups.parquet")
        with pytest.raises(InvalidInput, match=sentence):
            import_dataset(new, tmp_path / "groups.parquet")
    assert content(new) == before


def test_file_that_is_no_parquet_is_refused(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path)
    whole = file.read_bytes()
    for data in (b"", b"PAR1", whole[:-40], whole[: len(whole) // 2]):
        file.write_bytes(data)
        with pytest.raises(InvalidInput, match=r"^groups\.parquet cannot be read as parquet \(.+\)\. Nothing was imported\.$"):
            import_dataset(new, file)
    assert content(new)[1] == []


@pytest.mark.parametrize(
    ("where", "name", "most", "format", "sentence"),
    [
        (formats, "LARGEST_FILE", 100, "jsonl", r"groups.jsonl has [\d,]+ bytes; at most 100 are taken"),
        (formats, "LARGEST_LINE", 100, "jsonl", "Row 1 of groups.jsonl has more than 100 bytes"),
        (formats, "LARGEST_LINE", 100, "parquet", "Row 1 of groups.parquet has more than 100 bytes"),
        (formats, "LARGEST_PART", 100, "parquet", r"Part 1 of groups.parquet has [\d,]+ bytes unpacked; at most 100 are taken"),
        (pictures, "LARGEST_FILE", 50, "parquet", r"Row 1 of groups.parquet: A picture has \d+ bytes; at most 50 are taken"),
        (pictures, "LARGEST_AREA", 63, "parquet", "Row 1 of groups.parquet: A picture has 8 x 8 pixels; at most 63 in all are taken"),
    ],
)
def test_what_is_absurdly_large_is_refused(
    store: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, most: int, format: str, sentence: str
) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path, format=format)
    monkeypatch.setattr(where, name, most)
    with pytest.raises(InvalidInput, match=sentence):
        import_dataset(new, file)
    assert content(new)[1] == []


def test_picture_beside_the_file_that_is_too_large_is_not_read(store: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path, images="reference")
    monkeypatch.setattr(pictures, "LARGEST_FILE", 50)
    with pytest.raises(InvalidInput, match=r"The picture 'images/\w+\.png' has \d+ bytes; at most 50 are taken"):
        import_dataset(new, file)


def packed(file: Path, picture: bytes, lengths: list[int]) -> Path:
    """Parquet with so many references to one and the same picture in each row, of which the file holds it once."""
    n = sum(lengths)
    shown = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([picture], pa.binary()))
    images = pa.StructArray.from_arrays([shown, pa.nulls(n, pa.string())], ["bytes", "path"])
    lists = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), images)
    table = pa.table({"id": ["a" * 32] * len(lengths), "images": lists})
    pq.write_table(table, file, compression="zstd", store_schema=False, dictionary_pagesize_limit=2 * len(picture) + 1000)
    return file


def test_list_that_is_too_long_is_refused_before_it_is_unpacked(untouched: Store, tmp_path: Path) -> None:
    """A hundred times four megabytes in one kilobyte: nothing of it may be in memory, neither arrow's nor ours."""
    file = packed(tmp_path / "groups.parquet", bytes(4 << 20), [100])
    before = pa.default_memory_pool()
    pa.set_memory_pool(POOL)
    tracemalloc.start()
    try:
        with pytest.raises(
            InvalidInput, match=r"^Part 1 of groups\.parquet has 100 values in 'images' for 1 rows; at most 8 a row are taken\. Nothing"
        ):
            import_dataset(untouched, file)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        assert POOL.max_memory() < 50e6
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def test_list_that_is_too_long_among_short_ones_is_refused_before_it_becomes_python(untouched: Store, tmp_path: Path) -> None:
    file = packed(tmp_path / "groups.parquet", bytes(1 << 20), [100, *[2] * 99])
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=r"^Row 1 of groups\.parquet: 'images' has 100 entries; at most 8 are taken\. Nothing was imported\.$"):
            import_dataset(untouched, file)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [9, 10_001])
def test_inner_lists_and_acts_have_their_lengths_too(untouched: Store, tmp_path: Path, length: int) -> None:
    act = {"rater": "ann", "stars": [5.0] * (9 if length == 9 else 1)}
    rows = [{"id": "a" * 32, "images": [], "acts": [act] * (1 if length == 9 else length)}, *[{"id": "b" * 32, "images": [], "acts": []}] * 9]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "groups.parquet")
    most = 8 if length == 9 else 10_000
    with pytest.raises(
        InvalidInput, match=rf"^Row 1 of groups\.parquet: '{'stars' if length == 9 else 'acts'}' has {length:,} entries; at most {most:,}"
    ):
        import_dataset(untouched, tmp_path / "groups.parquet")


def test_columns_of_others_are_not_even_read(new: Store, tmp_path: Path) -> None:
    row = pair(other=["x"] * 1000, scores=["y"] * 1000) | {f"jpg_{n}": png(n) for n in range(2)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    assert import_dataset(new, tmp_path / "pairs.parquet") == Imported(1, 1, 0)
    assert [list(read) for _, read in formats.read(tmp_path / "pairs.parquet")] == [["caption", "jpg_0", "jpg_1", "label_0", "label_1", "user_id"]]


def test_text_may_be_kept_as_categories(new: Store, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([pair() | {f"jpg_{n}": png(n) for n in range(2)}])
    at = table.column_names.index("caption")
    pq.write_table(table.set_column(at, "caption", table["caption"].dictionary_encode()), tmp_path / "pairs.parquet")
    assert import_dataset(new, tmp_path / "pairs.parquet") == Imported(1, 1, 0)


def test_column_of_a_kind_that_no_dataset_has_is_refused(untouched: Store, tmp_path: Path) -> None:
    images = pa.array([[("a", b"x")]], pa.map_(pa.string(), pa.binary()))
    pq.write_table(pa.table({"images": images}), tmp_path / "groups.parquet")
    with pytest.raises(InvalidInput, match=r"^Row 1 of groups\.parquet: 'images' is a map<string, binary.*>, which no dataset has\. Nothing"):
        import_dataset(untouched, tmp_path / "groups.parquet")


def test_line_has_room_for_the_largest_group_and_little_more() -> None:
    assert 8 * pictures.LARGEST_FILE * 4 / 3 < formats.LARGEST_LINE < 8 * pictures.LARGEST_FILE * 4 / 3 + (32 << 20)


def test_picture_that_would_unpack_to_a_bomb_is_refused(untouched: Store, tmp_path: Path) -> None:
    whole = png(1)
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + whole[24:29]
    data = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    file = write_lines(tmp_path / "pairs.jsonl", [pair(jpg_0=base64.b64encode(data).decode())])
    with pytest.raises(InvalidInput, match=r"A picture cannot be read \(Image size \(3600000000 pixels\)"):
        import_dataset(untouched, file)


def test_only_plain_files_are_read(untouched: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.jsonl")
    file = write_lines(tmp_path / "pairs.jsonl", [pair(jpg_0=None, image_0="pipe.png")])
    for source, sentence in (
        (file, r"^Row 1 of pairs\.jsonl: The picture 'pipe\.png' is no plain file"),
        (tmp_path / "pipe.jsonl", "pipe.jsonl is no plain file"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            import_dataset(untouched, source)


@pytest.mark.parametrize("size", [(129, 8), (8, 129), (4000, 1)])
def test_picture_that_is_a_strip_is_refused(untouched: Store, tmp_path: Path, size: tuple[int, int]) -> None:
    data = io.BytesIO()
    Image.new("RGB", size).save(data, "png")
    file = write_lines(tmp_path / "pairs.jsonl", [pair(jpg_1=base64.b64encode(data.getvalue()).decode())])
    with pytest.raises(InvalidInput, match=rf"A picture has {size[0]} x {size[1]} pixels; one side may be at most 16 times as long as the other"):
        import_dataset(untouched, file)


def test_picture_may_be_16_times_as_wide_as_high(new: Store, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (128, 8)).save(data, "png")
    assert import_dataset(new, write_lines(tmp_path / "pairs.jsonl", [pair(jpg_1=base64.b64encode(data.getvalue()).decode())])).groups == 1


def test_pictures_beside_the_file_can_be_forbidden(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store)
    with pytest.raises(InvalidInput, match=r"^Row 1 .*: The pictures are not in the file: bring one with the images embedded\."):
        import_dataset(new, export_dataset(store, tmp_path, images="reference"), references=False)


def test_file_is_found_in_its_folder(store: Store, new: Store, tmp_path: Path) -> None:
    rate_some(store)
    for source, sentence in (
        (tmp_path / "none.jsonl", "none.jsonl cannot be read"),
        (tmp_path / "none.csv", r"is neither a folder nor a \.jsonl or \.parquet file"),
        (tmp_path, "must hold one dataset, but there is none of groups.parquet, groups.jsonl, pairs.parquet"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            import_dataset(new, source)
    export_dataset(store, tmp_path, format="jsonl")
    assert import_dataset(new, tmp_path).groups == 3
    export_dataset(store, tmp_path, kind="dpo")
    with pytest.raises(InvalidInput, match=r"must hold one dataset, but there is groups\.jsonl, dpo\.parquet: give the file\."):
        import_dataset(new, tmp_path)


def test_transaction_that_fails_leaves_no_row_and_no_file(store: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate_some(store)
    file = export_dataset(store, tmp_path)
    before, insert = content(new), Store._insert_imported_act

    def full(self: Store, record: Any, undoes: int | None) -> int:
        if record.act.rater == "dora":
            raise sqlite3.OperationalError("disk full")
        return insert(self, record, undoes)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_insert_imported_act", full)
        with pytest.raises(Exception, match="disk full"):
            import_dataset(new, file)
    assert content(new) == before
    assert import_dataset(new, file).groups == 3


def test_session_hands_out_and_takes_in_one_file(tmp_path: Path) -> None:
    with closing(fake_session(tmp_path / "a", FakeEngine(), threaded=False)) as session:
        session.rate(Act(session.new_group().id, "ann", (1.0, 2.0, 3.0, 4.0)))
        file = session.export_dataset(tmp_path)
        assert file.name == "groups.parquet"
        with closing(fake_session(tmp_path / "b", FakeEngine(), threaded=False)) as other:
            assert isinstance(other, Session)
            assert other.import_dataset(file) == Imported(1, 1, 0)
            assert other.understanding("ann")[0] is not None
