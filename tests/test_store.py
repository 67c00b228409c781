"""What the run folder promises: a rating that was answered is there after any kill, a version is whole or absent, a run reopens as it stopped.

Kills are real: a forked child works on the run and gets SIGKILL, at a random moment or at a chosen line. That synced bytes survive a power
cut cannot be shown by killing a process (the kernel keeps its cache), so the syncs themselves are watched.
"""

import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loophil.errors import InvalidInput, KeyConflict, RunError, UnknownGroup, UnknownVersion
from loophil.store import Store, connection, files, list_runs, open_run, schema
from loophil.types import Act, DrawSettings, Group, Receipt, UpdateStats, Version

NAN = math.nan
BASE = "embedded"
SETTINGS = DrawSettings(num_inference_steps=12, guidance_scale=3.5, eta=0.75, negative_prompt="blur")
UNKNOWN = "0" * 32
ROOT = Path(__file__).resolve().parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")


def reopen(runs: Path, name: str | None = None) -> Store:
    return open_run(runs, name, base_model=BASE, revision="r1")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Group]]:
    """For what is refused: one run with one group and one version, which no test changes."""
    with reopen(tmp_path_factory.mktemp("untouched")) as opened:
        publish(opened)
        yield opened, draw(opened)


@pytest.fixture
def store(runs: Path) -> Iterator[Store]:
    with reopen(runs) as opened:
        yield opened


def transitions(path: Path) -> None:
    path.write_bytes(b"transitions")


def draw(store: Store, prompt: str = "a red circle", **given: Any) -> Group:
    """A group of four."""
    seeds = given.pop("seeds", (11, 12, 13, 14))
    known: dict[str, Any] = {
        "policy_version": 0,
        "write_transitions": transitions,
        "scheduler": "DDIM",
        "images": [b"png %d" % seed for seed in seeds],
    }
    return store.add_group(prompt, SETTINGS, seeds=seeds, **known | given)


def stars(group: Group, *values: float | None, rater: str = "ann", **given: Any) -> Act:
    return Act(group.id, rater, values, **given)


def undo(group: Group, rater: str = "ann", key: str = "") -> Act:
    return Act(group.id, rater, (), "undo", key=key)


def adapter(number: int, size: int = 64) -> Callable[[Path], None]:
    """Files that all carry this number, so that a mixture shows."""

    def write(folder: Path) -> None:
        for name in ("lora.safetensors", "optimizer.safetensors", "rng.json"):
            (folder / name).write_bytes(b"%d " % number * size)

    return write


def publish(store: Store, number: int = 1, **given: Any) -> Version:
    known: dict[str, Any] = {"update": None, "parent": 0, "kind": "update", "write": adapter(number)}
    return store.publish(**known | given)


def current(store: Store, group: Group) -> dict[str, list[float]]:
    """{rater: stars} that count now."""
    return {rater: values.tolist() for taught in store.learnable_groups() if taught.group == group for rater, values in taught.ratings.items()}


def sql(store: Store, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Straight to the database, past all checks in Python."""
    return [tuple(row) for row in store._db.execute(statement, values)]


def killed_child(work: Callable[[Callable[[object], None]], None], kill_after: int | None = None) -> list[str]:
    """Runs `work(say)` in a forked child that is killed once it has said so many things, or kills itself; all that it said."""
    ear, mouth = os.pipe()

    def say(word: object) -> None:
        os.write(mouth, f"{word}\n".encode())

    child = os.fork()
    if child == 0:
        try:
            work(say)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(mouth)
    said = []
    with open(ear, encoding="utf-8") as lines:
        for line in lines:
            said.append(line.strip())
            if len(said) == kill_after:
                os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), "the child ended by itself: see its traceback"
    return said


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
    def deadly(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        die()

    return deadly


# opening


def test_run_opened_last_is_the_default_and_the_first_is_called_first(runs: Path) -> None:
    for name, opened in ((None, "first"), ("second", "second"), (None, "second"), ("first", "first"), (None, "first")):
        with reopen(runs, name) as store:
            assert store.name == opened
            assert store.path == runs / opened
    assert list_runs(runs) == ["first", "second"]


def test_last_run_that_was_deleted_is_not_asked_for_again(runs: Path) -> None:
    reopen(runs, "gone").close()
    shutil.rmtree(runs / "gone")
    with reopen(runs) as store:
        assert store.name == "first"


def test_no_runs_in_a_folder_that_is_not_there(runs: Path) -> None:
    assert list_runs(runs) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "Run", "-a", "a\n", "a b", "é", "a" * 65, "../x"])
def test_other_names_than_run_names_are_refused(runs: Path, name: str) -> None:
    with pytest.raises(RunError, match="not a run name"):
        reopen(runs, name)
    assert not runs.exists()


def test_second_process_is_refused_and_told_which_run(runs: Path, store: Store) -> None:
    code = f"""from pathlib import Path
from loophil.errors import RunError
from loophil.store import open_run
try:
    open_run(Path({str(runs)!r}), None, base_model={BASE!r}, revision="r1")
except RunError as error:
    print(error)"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.stdout == "The run 'first' is open in another process: close that one, or choose another run with --run NAME.\n", answer.stderr
    assert draw(store).prompt == "a red circle"


@needs_fork
def test_run_of_a_killed_process_can_be_opened(runs: Path) -> None:
    def hold(say: Callable[[object], None]) -> None:
        held = reopen(runs)
        say(held.name)
        signal.pause()

    assert killed_child(hold, kill_after=1) == ["first"]
    reopen(runs).close()


def test_second_store_in_the_same_process_is_refused_until_the_first_is_closed(runs: Path, store: Store) -> None:
    with pytest.raises(RunError, match="open in another process"):
        reopen(runs)
    store.close()
    reopen(runs).close()


@pytest.mark.parametrize(("base_model", "revision"), [("other", "r1"), (BASE, "r2"), (BASE, None)])
def test_another_base_model_is_refused_and_the_run_stays_free(runs: Path, base_model: str, revision: str | None) -> None:
    with reopen(runs) as store:
        draw(store)
    with pytest.raises(RunError, match=r"belongs to embedded \(revision r1\), not to .* --run NAME"):
        open_run(runs, "first", base_model=base_model, revision=revision)
    reopen(runs).close()


def test_a_run_with_nothing_in_it_takes_another_base_model(runs: Path) -> None:
    open_run(runs, "first", base_model="stabilty/sdxl", revision=None).close()  # a name that is mistyped, which no Hub knows
    with reopen(runs) as store:
        assert store.revision() == "r1"
        draw(store)
    with pytest.raises(RunError, match=r"belongs to embedded \(revision r1\), not to stabilty/sdxl"):
        open_run(runs, "first", base_model="stabilty/sdxl", revision=None)


def test_a_pinned_run_opens_by_its_commit_or_by_what_was_asked_for_and_by_nothing_else(runs: Path) -> None:
    with reopen(runs) as store:
        store.pin("c0ffee")
        store.pin("c0ffee")
    for revision in ("r1", "c0ffee"):
        with open_run(runs, "first", base_model=BASE, revision=revision) as store:
            assert store.revision() == "c0ffee"
    for other in (None, "main"):
        with pytest.raises(RunError, match=r"belongs to embedded \(revision c0ffee\), not to"):
            open_run(runs, "first", base_model=BASE, revision=other)


def test_runs_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another with --runs"):
        reopen(tmp_path / "file")


def test_file_that_is_no_database_is_refused_and_kept(runs: Path) -> None:
    (runs / "first").mkdir(parents=True)
    (runs / "first" / "run.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(RunError, match="cannot be read"):
        reopen(runs)
    assert (runs / "first" / "run.sqlite").read_bytes() == b"no database" * 500


def test_unsound_database_is_refused(runs: Path) -> None:
    with reopen(runs) as store:
        store.note("a", 1)
        sql(store, "PRAGMA writable_schema = 1")
        sql(store, "UPDATE sqlite_schema SET sql = replace(sql, 'value TEXT NOT NULL', 'value INTEGER CHECK (value > 1)') WHERE name = 'notes'")
    with pytest.raises(RunError, match=r"is damaged \(.*notes"):
        reopen(runs)


def test_newer_schema_is_refused(runs: Path) -> None:
    with reopen(runs) as store:
        sql(store, f"PRAGMA user_version = {schema.SCHEMA + 1}")
    with pytest.raises(RunError, match="newer LoopHIL"):
        reopen(runs)


def test_pragma_that_does_not_hold_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.PRAGMAS, "page_size", 12345)
    with pytest.raises(RunError, match=r"page_size is \(4096,\), not 12345"):
        reopen(runs)


def test_commits_wait_for_the_disk(store: Store) -> None:
    held = {pragma: sql(store, f"PRAGMA {pragma}")[0][0] for pragma in ("journal_mode", "synchronous", "foreign_keys")}
    assert held == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@needs_fork
def test_kill_while_the_tables_are_made_leaves_a_run_that_opens(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tables: tuple[str, ...] = schema.TABLES) -> Iterator[str]:
        yield from tables[:5]
        die()

    def create(_: object) -> None:
        monkeypatch.setattr(schema, "TABLES", half())
        reopen(runs)

    killed_child(create)
    with reopen(runs) as store:
        assert store.counts().groups == 0


def test_closing_twice_is_closing_once(runs: Path, store: Store) -> None:
    draw(store)
    store.close()
    store.close()
    wal = runs / "first" / "run.sqlite-wal"
    assert not wal.exists() or wal.stat().st_size == 0


def test_closed_run_says_so(store: Store) -> None:
    group = draw(store)
    store.close()
    with pytest.raises(RunError, match="is closed"):
        store.note("a", 1)
    with pytest.raises(RunError, match="is closed"):
        store.rate(stars(group, 1, 2, 3, 4), 0)


def test_each_opening_is_on_record_with_its_settings(runs: Path) -> None:
    for seed in (1, 2):
        open_run(runs, None, base_model=BASE, revision="r1", settings_json=json.dumps({"seed": seed})).close()
    with reopen(runs) as store:
        assert [json.loads(row[0]) for row in sql(store, "SELECT settings FROM openings ORDER BY id")] == [{"seed": 1}, {"seed": 2}, {}]


# groups


def test_everything_about_an_image_is_known_after_reopening(runs: Path) -> None:
    with reopen(runs) as store:
        publish(store)
        group = draw(store, policy_version=1, seeds=(0, 1, 2, 2**53 - 1))
    with reopen(runs) as store:
        assert store.group(group.id) == group
        assert (group.settings, group.policy_version, group.kind) == (SETTINGS, 1, "person")
        assert [image.seed for image in group.images] == [0, 1, 2, 2**53 - 1]
        assert [(store.images / image.file).read_bytes() for image in group.images] == [b"png 0", b"png 1", b"png 2", b"png %d" % (2**53 - 1)]
        assert store.transitions_path(group.id).read_bytes() == b"transitions"
        assert sql(store, "SELECT base_model, revision, scheduler FROM run, groups") == [(BASE, "r1", "DDIM")]


@pytest.mark.parametrize("group", [UNKNOWN, "", "../../run", "\ud800", 7, None])
def test_unknown_group_is_named(untouched: tuple[Store, Group], group: Any) -> None:
    store, _ = untouched
    for ask in (store.group, store.acts, store.scores, store.transitions_path, store.drop_group):
        with pytest.raises(UnknownGroup, match=r"There is no group .* in the run 'first'"):
            ask(group)
    with pytest.raises(UnknownGroup):
        store.rate(Act(group, "ann", (1, 2, 3, 4)), 0)


def test_files_are_synced_before_the_row_that_names_them(runs: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(f"file:{runs}/first/run.sqlite?mode=ro", uri=True)
    synced: dict[int, int] = {}
    sync = os.fsync

    def watch(descriptor: int) -> None:
        sync(descriptor)
        synced[os.fstat(descriptor).st_ino] = other.execute("SELECT (SELECT count(*) FROM groups) + (SELECT max(number) FROM versions)").fetchone()[0]

    monkeypatch.setattr(os, "fsync", watch)
    group = draw(store)
    inodes = [
        path.stat().st_ino for path in (*store.images.iterdir(), store.images, store.transitions_path(group.id), runs / "first" / "transitions")
    ]
    assert [synced.get(inode) for inode in inodes] == [0] * 7
    synced.clear()
    publish(store)
    folder = store.version_path(1)
    assert [synced.get(path.stat().st_ino) for path in (*folder.iterdir(), folder, folder.parent)] == [1] * 6
    other.close()


def test_group_whose_files_fail_leaves_nothing(store: Store) -> None:
    def fail(path: Path) -> None:
        transitions(path)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        draw(store, write_transitions=fail, notes={"prompt": 1})
    with pytest.raises(ValueError, match="zip"):
        draw(store, images=[b"png"] * 3)
    with pytest.raises(sqlite3.IntegrityError, match="eta"):
        store.add_group(
            "p", replace(SETTINGS, eta=NAN), policy_version=0, seeds=[1], images=[b"png"], write_transitions=transitions, scheduler="DDIM"
        )
    assert store.counts().groups == 0
    assert store.noted("prompt") is None
    assert [*store.images.iterdir(), *(store.path / "transitions").iterdir()] == []


def test_unrated_groups_are_those_that_this_rater_has_not_answered(store: Store) -> None:
    publish(store)
    rated, skipped, undone, dropped, old = (draw(store) for _ in range(5))
    draw(store, kind="auto")
    new = draw(store, policy_version=1)
    store.rate(stars(rated, 1, 2, 3, 4), 1)
    store.rate(stars(skipped, None, None, None, None, kind="skip"), 1)
    store.rate(stars(undone, 1, 2, 3, 4), 1)
    store.rate(undo(undone), 1)
    store.drop_group(dropped.id)
    assert store.unrated_groups("ann") == [undone, old, new]
    assert store.unrated_groups("bob") == [rated, skipped, undone, old, new]
    assert store.unrated_groups(None) == [undone, old, new]
    assert store.unrated_groups("ann", newest=2) == [old, new]
    assert store.unrated_groups("ann", min_version=1) == [new]


def test_reopening_gives_the_same_unrated_groups(runs: Path) -> None:
    with reopen(runs) as store:
        groups = [draw(store) for _ in range(4)]
        store.rate(stars(groups[1], 5, 4, 3, 2), 0)
        before = store.unrated_groups("ann")
    with reopen(runs) as store:
        assert store.unrated_groups("ann") == before == [groups[0], groups[2], groups[3]]


def test_dropped_group_loses_its_files_and_cannot_be_rated(store: Store) -> None:
    group = draw(store)
    assert store.drop_group(group.id)
    assert store.drop_group(group.id)
    assert [*store.images.iterdir(), *(store.path / "transitions").iterdir()] == []
    with pytest.raises(UnknownGroup, match="was dropped"):
        store.rate(stars(group, 1, 2, 3, 4), 0)
    assert store.group(group.id) == group
    assert store.counts().groups == 0


def test_answered_group_is_not_dropped(store: Store) -> None:
    group = draw(store)
    store.rate(stars(group, 1, 2, 3, 4), 0)
    assert not store.drop_group(group.id)
    assert store.transitions_path(group.id).exists()
    assert current(store, group) == {"ann": [1, 2, 3, 4]}


def test_dropped_transitions_free_their_space_only(store: Store) -> None:
    group, other = draw(store), draw(store)
    store.drop_transitions([group.id])
    store.drop_transitions([group.id])
    assert not store.transitions_path(group.id).exists()
    assert store.transitions_path(other.id).exists()
    assert len(list(store.images.iterdir())) == 8


@needs_fork
def test_kill_while_drawing_leaves_whole_groups_and_no_orphans(runs: Path) -> None:
    def work(say: Callable[[object], None]) -> None:
        store = reopen(runs)
        (store.images / "strip.png").write_bytes(b"not the store's")
        while True:
            say(draw(store, images=[b"x" * 100_000] * 4).id)

    said = [name for kill in (1, 3, 6) for name in killed_child(work, kill)]
    with reopen(runs) as store:
        groups = store.unrated_groups("ann")
        assert {group.id for group in groups} >= set(said)
        assert {(store.images / image.file).stat().st_size for group in groups for image in group.images} == {100_000}
        assert {file.name for file in store.images.iterdir()} == {image.file for group in groups for image in group.images} | {"strip.png"}
        assert {file.stem for file in (store.path / "transitions").iterdir()} == {group.id for group in groups}


# ratings


def test_rating_is_filed_whole_and_durable_when_answered(runs: Path, store: Store) -> None:
    group = draw(store)
    act = stars(group, 1, 2.5, None, 5, kind="best", best=3, worst=0, order=(3, 1, 0, 2), milliseconds=1234, key="k1")
    assert store.rate(act, 0) == Receipt(act=1, rated=3, policy_version=0, pending=1)
    other = sqlite3.connect(f"file:{runs}/first/run.sqlite?mode=ro", uri=True)
    assert other.execute("SELECT position, stars FROM ratings").fetchall() == [(0, 1.0), (1, 2.5), (3, 5.0)]
    other.close()
    filed = store.acts(group.id)
    assert [(record.id, record.act, record.policy_version, record.undone) for record in filed] == [(1, act, 0, False)]
    assert filed[0].created >= group.created


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stars": (1, 2, 3)}, "has 4 images, but 3 ratings came"),
        ({"stars": (1, 2, 3, 4, 5)}, "has 4 images, but 5 ratings came"),
        ({"stars": ()}, "has 4 images, but 0 ratings came"),
        *(
            ({"stars": (1, value, 3, 4)}, "number from 1 to 5")
            for value in (NAN, math.inf, -math.inf, 0, 6, 0.999, 5.001, "4", "", True, [4], 10**30)
        ),
        ({"kind": "skip"}, "'skip' carries no ratings"),
        ({"kind": "undo"}, "'undo' carries no ratings"),
        ({"kind": "undo", "stars": ()}, "nothing to undo"),
        ({"kind": "love"}, "Unknown kind of rating 'love'. Choose from: stars, best,"),
        ({"best": 1, "worst": 1}, "both the best and the worst"),
        *(({"best": value}, "whole number from 0 to 3") for value in (4, -1, 1.0, "1", True)),
        ({"worst": 4}, "whole number from 0 to 3"),
        *(({"order": value}, "each image from 0 to 3 once") for value in ((0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 4), ("a", 1, 2, 3), (False, 1, 2, 3))),
        *(({"milliseconds": value}, "milliseconds") for value in (-1, 1.5, NAN, 2**53)),
        *(({"rater": value}, "rater") for value in ("", "x" * 201, "a\nb", "\ud800", 3, None)),
        *(({"key": value}, "key") for value in ("x" * 201, "\x00", 3, None)),
    ],
)
def test_impossible_act_gets_one_sentence_and_changes_nothing(untouched: tuple[Store, Group], given: dict[str, Any], words: str) -> None:
    store, group = untouched
    with pytest.raises(InvalidInput, match=words) as refused:
        store.rate(replace(stars(group, 1, 2, 3, 4), **given), 0)
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 200
    assert store.acts(group.id) == []
    assert store.counts().pending == 0


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, 0, 6, None, "abc"])
def test_database_itself_refuses_impossible_stars(untouched: tuple[Store, Group], value: Any) -> None:
    store, group = untouched
    act = "INSERT INTO acts (group_id, rater, kind, shown_order, rated, policy_version, created) VALUES (?, 'ann', 'stars', '[]', 1, 0, 0)"
    sql(store, "BEGIN")
    sql(store, act, group.id)
    with pytest.raises(sqlite3.IntegrityError, match=r"stars"):
        sql(store, "INSERT INTO ratings VALUES (1, 1, ?)", value)
    sql(store, "INSERT INTO ratings VALUES (1, 1, 5)")
    sql(store, "ROLLBACK")


@pytest.mark.parametrize("table", schema.ONLY_GROW)
def test_history_cannot_be_rewritten(store: Store, table: str) -> None:
    group, dropped = draw(store), draw(store)
    store.drop_group(dropped.id)
    receipt = store.rate(stars(group, 1, 2, 3, 4), 0)
    store.add_scores(group.id, "jpeg", [1, 2, 3, 4])
    publish(store, uses=[(receipt.act, "loop")], groups_learned=[group.id])
    column = sql(store, "SELECT name FROM pragma_table_info(?)", table)[-1][0]
    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):  # noqa: S608
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} only grows"):
            sql(store, statement)


@pytest.mark.parametrize("kind", ["stars", "skip"])
def test_rating_no_image_counts_as_an_answer_of_nothing(store: Store, kind: str) -> None:
    group = draw(store)
    assert store.rate(stars(group, None, None, None, None, kind=kind), 0) == Receipt(act=1, rated=0, policy_version=0, pending=0)
    assert store.unrated_groups("ann") == []
    assert store.learnable_groups() == []


def test_newest_act_of_a_rater_counts_and_history_is_kept(store: Store) -> None:
    group = draw(store)
    store.rate(stars(group, 1, 1, 1, 1), 0)
    store.rate(stars(group, 5, 4, 3, 2, rater="bob"), 0)
    assert store.rate(stars(group, 2, 3, 4, 5), 0).pending == 1
    assert current(store, group) == {"ann": [2, 3, 4, 5], "bob": [5, 4, 3, 2]}
    assert [record.act.stars for record in store.acts(group.id)] == [(1, 1, 1, 1), (5, 4, 3, 2), (2, 3, 4, 5)]


def test_undo_brings_back_what_counted_before(store: Store) -> None:
    group = draw(store)
    store.rate(stars(group, 1, 1, 1, 1), 0)
    with pytest.raises(InvalidInput, match="bob has nothing to undo"):
        store.rate(undo(group, "bob"), 0)
    store.rate(stars(group, 5, 5, 5, 5, rater="bob"), 0)
    store.rate(stars(group, 2, 2, 2, 2), 0)
    assert store.rate(undo(group), 0) == Receipt(act=4, rated=0, policy_version=0, pending=1)
    assert current(store, group)["ann"] == [1, 1, 1, 1]
    store.rate(undo(group), 0)
    assert list(current(store, group)) == ["bob"]
    with pytest.raises(InvalidInput, match="ann has nothing to undo"):
        store.rate(undo(group), 0)
    store.rate(stars(group, 3, 3, 3, 3), 0)
    assert current(store, group)["ann"] == [3, 3, 3, 3]
    assert [record.undone for record in store.acts(group.id)] == [True, False, True, False, False, False]


def test_last_act_is_the_newest_that_stands(store: Store) -> None:
    first, second = draw(store), draw(store)
    assert store.last_act("ann") is None
    acts = [stars(first, 1, 2, 3, 4), stars(second, None, None, None, None, kind="skip")]
    for act in acts:
        store.rate(act, 0)
    store.rate(stars(first, 1, 2, 3, 4, rater="bob"), 0)
    for expected in reversed(acts):
        last = store.last_act("ann")
        assert last is not None
        assert last.act == expected
        store.rate(undo(store.group(last.act.group)), 0)
    assert store.last_act("ann") is None


def test_undone_act_with_the_same_key_is_undone_once(store: Store) -> None:
    group = draw(store)
    store.rate(stars(group, 1, 1, 1, 1), 0)
    store.rate(stars(group, 2, 2, 2, 2), 0)
    assert store.rate(undo(group, key="u"), 0) == store.rate(undo(group, key="u"), 0)
    assert current(store, group)["ann"] == [1, 1, 1, 1]


def test_same_key_gets_the_stored_answer(runs: Path) -> None:
    with reopen(runs) as store:
        group, other = draw(store), draw(store)
        act = stars(group, 1, 2.1, None, 4, key="k", order=(0, 1, 3, 2), best=3)
        first = store.rate(act, 0)
        store.rate(stars(other, 1, 2, 3, 4), 0)
        publish(store)
    with reopen(runs) as store:
        assert store.rate(act, 1) == first == Receipt(act=1, rated=3, policy_version=0, pending=1)
        same: Any = (1.0, np.float64(2.1), None, np.int64(4))
        assert store.rate(replace(act, stars=same), 1) == first
        assert len(store.acts(group.id)) == 1


@pytest.mark.parametrize(
    "change", [{"stars": (1, 2, 3, 5)}, {"stars": (1, 2, 3, None)}, {"rater": "bob"}, {"best": 3}, {"milliseconds": 5}, {"kind": "good"}]
)
def test_key_with_other_content_is_refused(store: Store, change: dict[str, Any]) -> None:
    group, other = draw(store), draw(store)
    act = stars(group, 1, 2, 3, 4, key="k")
    store.rate(act, 0)
    with pytest.raises(KeyConflict, match="'k' was used before"):
        store.rate(replace(act, **change), 0)
    with pytest.raises(KeyConflict):
        store.rate(replace(act, group=other.id), 0)
    assert current(store, group) == {"ann": [1, 2, 3, 4]}
    assert store.acts(other.id) == []


def test_twenty_threads_with_one_key_file_one_act(store: Store) -> None:
    group = draw(store)
    start = threading.Barrier(20)

    def send(_: int) -> Receipt:
        start.wait()
        return store.rate(stars(group, 1, 2, 3, 4, key="k"), 0)

    with ThreadPoolExecutor(20) as pool:
        receipts = set(pool.map(send, range(20)))
    assert receipts == {Receipt(act=1, rated=4, policy_version=0, pending=1)}
    assert len(store.acts(group.id)) == 1


def test_twenty_threads_sending_everything_twice_lose_and_double_nothing(store: Store) -> None:
    group = draw(store)

    def send(n: int) -> Receipt:
        act = stars(group, 1 + n % 5, 2, 3, 4, rater=f"rater {n}", key=f"key {n}")
        first, second = store.rate(act, 0), store.rate(act, 0)
        assert first == second
        return first

    with ThreadPoolExecutor(20) as pool:
        receipts = list(pool.map(send, range(40)))
    assert sorted(receipt.act for receipt in receipts) == list(range(1, 41))
    assert current(store, group) == {f"rater {n}": [1 + n % 5, 2, 3, 4] for n in range(40)}


@needs_fork
def test_kill_while_rating_loses_and_doubles_nothing(runs: Path) -> None:
    with reopen(runs) as store:
        group = draw(store)
    chance = random.Random(1)
    said: list[str] = []
    for life in range(6):

        def work(say: Callable[[object], None], life: int = life) -> None:
            store = reopen(runs)
            for n in range(10**6):
                key = f"{life}-{n}"
                store.rate(stars(group, 1, 2, None, 1 + n % 5, key=key, rater=f"rater {n % 3}"), 0)
                say(key)

        said += killed_child(work, chance.randrange(1, 40))
        with reopen(runs) as store:
            filed = [record.act.key for record in store.acts(group.id)]
            unanswered = set(filed) - set(said)
            assert len(filed) == len(set(filed))
            assert set(said) <= set(filed)
            assert len(unanswered) <= life + 1
            assert sql(store, "PRAGMA integrity_check") == [("ok",)]
            assert {record.act.stars[:3] for record in store.acts(group.id)} == {(1, 2, None)}
    assert len(said) > 6


@needs_fork
def test_kill_before_the_commit_leaves_no_half_of_a_rating(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with reopen(runs) as store:
        group = draw(store)

    def in_rating(_: object) -> None:
        store = reopen(runs)
        monkeypatch.setattr(Store, "_keep_pending", die)
        store.rate(stars(group, 1, 2, 3, 4, key="k"), 0)

    def in_opening(_: object) -> None:
        monkeypatch.setattr(Store, "_keep_pending", die)
        reopen(runs)

    for life in (in_rating, in_opening):
        killed_child(life)
        with reopen(runs) as store:
            assert store.acts(group.id) == []
            assert sql(store, "SELECT * FROM ratings") == []
    with reopen(runs) as store:
        assert store.rate(stars(group, 1, 2, 3, 4, key="k"), 0).act == 1


def test_full_disk_is_said_loses_nothing_and_passes(store: Store) -> None:
    group = draw(store)
    store.rate(stars(group, 1, 2, 3, 4), 0)
    sql(store, f"PRAGMA max_page_count = {sql(store, 'PRAGMA page_count')[0][0]}")
    filed = 1

    def fill() -> None:
        nonlocal filed
        while True:
            filed = store.rate(stars(group, 1, 2, 3, 4, rater=f"rater {filed}" + "x" * 150), 0).act

    with pytest.raises(RunError, match=r"is full\): nothing was saved"):
        fill()
    assert len(store.acts(group.id)) == filed
    sql(store, "PRAGMA max_page_count = 1000000")
    assert store.rate(stars(group, 4, 3, 2, 1), 0).act == filed + 1
    assert current(store, group)["ann"] == [4, 3, 2, 1]


def test_database_held_by_another_program_is_said_and_passes(runs: Path, store: Store) -> None:
    group = draw(store)
    sql(store, "PRAGMA busy_timeout = 0")
    other = sqlite3.connect(runs / "first" / "run.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunError, match=r"locked\): nothing was saved"):
        store.rate(stars(group, 1, 2, 3, 4), 0)
    other.execute("ROLLBACK")
    other.close()
    assert store.rate(stars(group, 1, 2, 3, 4), 0).act == 1


# scores, and what can teach


def test_newest_scores_win_and_what_is_not_finite_is_missing(store: Store) -> None:
    group = draw(store)
    assert store.scores(group.id) == {}
    store.add_scores(group.id, "jpeg", [1, 2, 3, 4])
    store.add_scores(group.id, "clip_score", [0.5, NAN, math.inf, -math.inf], "no picture")
    store.add_scores(group.id, "jpeg", np.array([NAN, 20, 30, 40.5]))
    scores = store.scores(group.id)
    assert sorted(scores) == ["clip_score", "jpeg"]
    np.testing.assert_array_equal(scores["jpeg"], [NAN, 20, 30, 40.5])
    np.testing.assert_array_equal(scores["clip_score"], [0.5, NAN, NAN, NAN])
    assert sql(store, "SELECT DISTINCT reason FROM scores WHERE reward = 'clip_score'") == [("no picture",)]


def test_wrong_number_of_scores_is_refused(store: Store) -> None:
    group = draw(store)
    with pytest.raises(InvalidInput, match="has 4 images, but jpeg gave 3 scores"):
        store.add_scores(group.id, "jpeg", [1, 2, 3])
    assert store.scores(group.id) == {}


def test_database_itself_refuses_infinite_scores(store: Store) -> None:
    group = draw(store)
    with pytest.raises(sqlite3.IntegrityError):
        sql(store, "INSERT INTO scores (group_id, reward, position, value, reason, created) VALUES (?, 'jpeg', 0, ?, '', 0)", group.id, math.inf)


def test_learnable_groups_are_rated_or_answered_and_scored_or_automatic_and_scored(store: Store) -> None:
    rated, skipped, skipped_unscored, waiting, auto, auto_unscored, dropped = (
        draw(store, kind=kind) for kind in ("person", "person", "person", "person", "auto", "auto", "auto")
    )
    for group in (rated, skipped, waiting, auto, dropped):
        store.add_scores(group.id, "jpeg", [1, 2, 3, NAN])
    store.add_scores(auto_unscored.id, "jpeg", [NAN] * 4, "it failed")
    receipt = store.rate(stars(rated, 1, None, 3, 4), 0)
    for group in (skipped, skipped_unscored):
        store.rate(stars(group, None, None, None, None, kind="skip"), 0)
    store.drop_group(dropped.id)
    taught = store.learnable_groups()
    assert [one.group for one in taught] == [rated, skipped, auto]
    assert [one.acts for one in taught] == [(receipt.act,), (), ()]
    assert [sorted(one.ratings) for one in taught] == [["ann"], [], []]
    np.testing.assert_array_equal(taught[0].ratings["ann"], [1, NAN, 3, 4])
    for one in taught:
        np.testing.assert_array_equal(one.scores["jpeg"], [1, 2, 3, NAN])
    assert [one.group for one in store.learnable_groups(newest=2)] == [skipped, auto]
    assert waiting in store.unrated_groups("ann")


def test_group_is_fresh_until_a_version_has_learned_all_that_counts_in_it(store: Store) -> None:
    rated, auto = draw(store), draw(store, kind="auto")
    store.add_scores(auto.id, "jpeg", [1, 2, 3, 4])
    first = store.rate(stars(rated, 1, 2, 3, 4), 0)

    def fresh() -> list[bool]:
        return [taught.fresh for taught in store.learnable_groups()]

    assert fresh() == [True, True]
    publish(store, uses=[(first.act, "loop"), (first.act, "forward")], groups_learned=[rated.id, auto.id])
    assert fresh() == [False, False]
    assert store.counts().pending == 0
    second = store.rate(stars(rated, 4, 4, 4, 4, rater="bob"), 1)
    assert (fresh(), second.pending) == ([True, False], 1)
    assert store.rate(undo(rated, "bob"), 1).pending == 0
    third = store.rate(stars(rated, 5, 5, 5, 5), 1)
    publish(store, parent=1, uses=[(third.act, "loop")])
    assert fresh() == [False, False]
    assert store.rate(undo(rated), 2).pending == 0
    assert sql(store, "SELECT act_id, version, objective FROM uses") == [(1, 1, "forward"), (1, 1, "loop"), (4, 2, "loop")]


def test_pending_table_says_what_its_view_says_whatever_happens(store: Store) -> None:
    chance = random.Random(2)
    groups = [draw(store) for _ in range(5)]
    for step in range(120):
        group, rater = chance.choice(groups), chance.choice(("ann", "bob"))
        match chance.choice(("rate", "rate", "skip", "undo", "publish")):
            case "rate":
                store.rate(stars(group, 1, None, 3, 4, rater=rater), 0)
            case "skip":
                store.rate(stars(group, None, None, None, None, rater=rater, kind="skip"), 0)
            case "undo" if any(record.act.rater == rater and not record.undone and record.act.kind != "undo" for record in store.acts(group.id)):
                store.rate(undo(group, rater), 0)
            case "publish" if step % 3 == 0:
                publish(store, uses=[(act, "loop") for taught in store.learnable_groups() if chance.random() < 0.7 for act in taught.acts])
        kept = sql(store, "SELECT group_id FROM pending ORDER BY group_id")
        assert kept == sql(store, "SELECT group_id FROM pending_groups ORDER BY group_id")
        assert [taught.group.id for taught in store.learnable_groups() if taught.fresh] == [g.id for g in groups if (g.id,) in kept]


# updates and versions


def test_new_run_has_the_base_as_its_only_version(store: Store) -> None:
    assert [(v.number, v.parent, v.kind, v.ratings) for v in store.versions()] == [(0, None, "base", 0)]
    assert store.current_version() == store.version(0)
    with pytest.raises(UnknownVersion, match=r"Version 0 of .* has no files"):
        store.version_path(0)


def test_update_publishes_its_version_and_ends(runs: Path) -> None:
    stats = UpdateStats(0.5, NAN, 0.1, 0, 0, 0.2, 1.5, 0.75, images=8, no_signal=2, seconds=3.5, shares={"human:ann": 1.0})
    with reopen(runs) as store:
        group = draw(store)
        act = store.rate(stars(group, 1, 2, None, 4), 0).act
        update = store.begin_update(0)
        assert [(one.status, one.base_version) for one in store.updates()] == [("running", 0)]
        version = publish(store, update=update, uses=[(act, "loop")], stats=asdict(stats), notes={"prompt": 7})
        assert (version.number, version.parent, version.kind, version.ratings) == (1, 0, "update", 3)
    with reopen(runs) as store:
        assert store.current_version() == version
        assert store.recovered == ()
        done = store.updates()[0]
        assert (done.status, done.version, done.stats["ratio_mean"], done.stats["kept"]) == ("committed", 1, None, 0.75)
        assert (store.version_path(1) / "lora.safetensors").read_bytes() == b"1 " * 64
        assert store.noted("prompt") == 7
        assert asdict(store.counts()) == {"ratings": 3, "groups": 1, "rated_groups": 1, "updates": 1, "pending": 0, "no_signal": 2}


def test_version_counts_the_rated_images_behind_it_once(store: Store) -> None:
    first, second = draw(store), draw(store)
    a = store.rate(stars(first, 1, 2, None, 4), 0).act
    assert publish(store, uses=[(a, "loop")]).ratings == 3
    b = store.rate(stars(first, 1, 2, 3, None), 1).act
    c = store.rate(stars(second, 5, None, None, None), 1).act
    # first: positions 0, 1, 3 by a and 0, 1, 2 by b; second: position 0
    assert publish(store, parent=1, uses=[(a, "forward"), (b, "loop"), (c, "loop")]).ratings == 5
    assert publish(store, parent=1, kind="rollback").ratings == 3
    assert publish(store, parent=0, kind="rollback").ratings == 0
    assert [version.number for version in store.versions()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", [2, -1, 2**63, "1", True, 1.0, None])
def test_unknown_version_is_named(untouched: tuple[Store, Group], number: Any) -> None:
    store, _ = untouched
    for ask in (store.version, store.version_path):
        with pytest.raises(UnknownVersion, match=r"There is no version .* from 0 to 1"):
            ask(number)


def test_version_being_written_is_invisible_and_holds_up_no_rating(store: Store) -> None:
    group = draw(store)
    seen: list[object] = []

    def write(folder: Path) -> None:
        adapter(1)(folder)
        with ThreadPoolExecutor(1) as other:
            seen.append(other.submit(store.versions).result(timeout=20)[-1].number)
            seen.append(other.submit(store.rate, stars(group, 1, 2, 3, 4), 0).result(timeout=20).rated)
        seen.append((store.path / "versions" / "1").exists())

    publish(store, write=write)
    assert seen == [0, 4, False]


def test_two_threads_publish_two_versions(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = [future.result().number for future in [pool.submit(publish, store, n) for n in range(8)]]
    assert sorted(numbers) == list(range(1, 9))
    for number in numbers:
        assert store.version_path(number).name == str(number)


def test_failed_write_publishes_nothing_and_the_next_is_whole(store: Store) -> None:
    def fail(folder: Path) -> None:
        adapter(1)(folder)
        raise OSError("no space")

    update = store.begin_update(0)
    with pytest.raises(OSError, match="no space"):
        publish(store, update=update, write=fail)
    assert list((store.path / "versions").iterdir()) == []
    assert publish(store, 2, update=update).number == 1
    assert (store.version_path(1) / "lora.safetensors").read_bytes() == b"2 " * 64


def test_failed_transaction_publishes_nothing_and_the_next_is_whole(store: Store) -> None:
    group = draw(store)
    store.rate(stars(group, 1, 2, 3, 4), 0)
    with pytest.raises(sqlite3.IntegrityError):
        publish(store, uses=[(1, "loop"), (99, "loop")], notes={"prompt": 1})
    assert store.current_version().number == 0
    assert store.counts().pending == 1
    assert store.noted("prompt") is None
    with pytest.raises(UnknownVersion):
        store.version_path(1)
    publish(store, 2, uses=[(1, "loop")])
    assert (store.version_path(1) / "lora.safetensors").read_bytes() == b"2 " * 64


def test_update_that_has_ended_cannot_publish(store: Store) -> None:
    update = store.begin_update(0)
    store.abort_update(update, "KL cap")
    with pytest.raises(RunError, match="Update 1 of the run 'first' is not running"):
        publish(store, update=update)
    assert store.current_version().number == 0
    committed = store.begin_update(0)
    publish(store, update=committed)
    store.abort_update(committed, "too late")
    assert [(one.status, one.reason, one.version) for one in store.updates()] == [("aborted", "KL cap", None), ("committed", "", 1)]


def in_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"write": then_die(lambda folder: (folder / "lora.safetensors").write_bytes(b"half"))}


def before_rename(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(files, "_seal", then_die(files._seal))
    return {}


def after_rename(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    sync = files.sync_folder
    monkeypatch.setattr(files, "sync_folder", lambda folder: die() if folder == store.path / "versions" else sync(folder))
    return {}


def in_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Store, "_keep_pending", then_die(Store._keep_pending))
    return {}


@needs_fork
@pytest.mark.parametrize("moment", [in_write, before_rename, after_rename, in_transaction])
def test_kill_before_the_commit_leaves_the_version_before(runs: Path, monkeypatch: pytest.MonkeyPatch, moment: Callable[..., dict[str, Any]]) -> None:
    with reopen(runs) as store:
        group = draw(store)
        act = store.rate(stars(group, 1, 2, 3, 4), 0).act
        publish(store)

    def work(_: object) -> None:
        store = reopen(runs)
        publish(store, 2, update=store.begin_update(1), parent=1, uses=[(act, "loop")], **moment(store, monkeypatch))

    killed_child(work)
    with reopen(runs) as store:
        assert store.current_version().number == 1
        assert [folder.name for folder in (store.path / "versions").iterdir()] == ["1"]
        assert [(one.status, one.reason) for one in store.updates()] == [("aborted", "The program ended during this update.")]
        assert store.recovered == ("An unfinished update was thrown away; its ratings are kept.",)
        assert [taught.fresh for taught in store.learnable_groups()] == [True]
        assert publish(store, 3, parent=1, uses=[(act, "loop")]).number == 2
        assert (store.version_path(2) / "lora.safetensors").read_bytes() == b"3 " * 64


@needs_fork
def test_kill_after_the_commit_leaves_the_new_version(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_: object) -> None:
        store = reopen(runs)
        act = store.rate(stars(draw(store), 1, 2, 3, 4), 0).act
        monkeypatch.setattr(Store, "version", die)
        publish(store, update=store.begin_update(0), uses=[(act, "loop")])

    killed_child(work)
    with reopen(runs) as store:
        assert store.version_path(store.current_version().number).name == "1"
        assert (store.recovered, store.counts().pending) == ((), 0)


@needs_fork
def test_kills_while_publishing_never_leave_a_mixed_version(runs: Path) -> None:
    chance = random.Random(3)
    said: list[str] = []
    for _ in range(5):

        def work(say: Callable[[object], None]) -> None:
            store = reopen(runs)
            while True:
                parent = store.current_version().number
                say(publish(store, parent + 1, update=store.begin_update(parent), parent=parent, write=adapter(parent + 1, 20_000)).number)

        said += killed_child(work, chance.randrange(1, 6))
        with reopen(runs) as store:
            newest = store.current_version().number
            assert newest - int(said[-1]) in (0, 1)
            assert {file.read_bytes() for file in store.version_path(newest).iterdir() if file.name != "manifest.json"} == {b"%d " % newest * 20_000}
            assert sorted(int(folder.name) for folder in (store.path / "versions").iterdir()) == list(range(1, newest + 1))
            assert "running" not in {update.status for update in store.updates()}
    assert said == sorted(set(said), key=int)


@pytest.mark.parametrize("damage", ["flipped", "emptied", "no file", "no manifest", "no folder", "other manifest"])
def test_damaged_newest_version_is_set_aside_and_its_ratings_teach_again(runs: Path, damage: str) -> None:
    with reopen(runs) as store:
        act = store.rate(stars(draw(store), 1, 2, 3, 4), 0).act
        publish(store, 1)
        publish(store, 2, parent=1, uses=[(act, "loop")])
        assert store.counts().pending == 0
        folder = store.version_path(2)
    file = folder / ("manifest.json" if "manifest" in damage else "lora.safetensors")
    match damage:
        case "flipped":
            file.write_bytes(file.read_bytes()[:-1] + b"!")
        case "emptied":
            file.write_bytes(b"")
        case "no folder":
            shutil.rmtree(folder)
        case "other manifest":
            file.write_text('{"files": {}}')
        case _:
            file.unlink()
    for opening in range(2):
        with reopen(runs) as store:
            assert store.current_version().number == 1
            assert store.counts().pending == 1
            assert ("Version 2 is damaged" in " ".join(store.recovered)) == (opening == 0)
            with pytest.raises(UnknownVersion):
                store.version(2)
    with reopen(runs) as store:
        assert publish(store, 3, parent=1).number == 3


def test_damaged_older_version_is_refused_when_it_is_asked_for(runs: Path) -> None:
    with reopen(runs) as store:
        publish(store, 1)
        publish(store, 2)
        (store.version_path(1) / "lora.safetensors").write_bytes(b"!")
    with reopen(runs) as store:
        with pytest.raises(UnknownVersion, match=r"Version 1 of .* damaged"):
            store.version_path(1)
        assert store.version_path(2).exists()


def test_pruning_keeps_every_adapter_and_the_newest_training_state(store: Store) -> None:
    for number in range(1, 6):
        publish(store, number)
    store.prune_training_state(keep=2)
    names = {number: sorted(file.name for file in store.version_path(number).iterdir()) for number in range(1, 6)}
    assert names == {number: ["lora.safetensors", "manifest.json"] for number in (1, 2, 3)} | {
        number: ["lora.safetensors", "manifest.json", "optimizer.safetensors", "rng.json"] for number in (4, 5)
    }
    store.prune_training_state(keep=0)
    assert len(list(store.version_path(5).iterdir())) == 2


def test_pruning_more_than_there_is_removes_nothing(store: Store) -> None:
    publish(store, 1)
    store.prune_training_state(keep=3)
    assert (store.version_path(1) / "optimizer.safetensors").exists()


def test_folders_inside_a_version_are_checked_too(runs: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "unet").mkdir()
        (folder / "unet" / "lora.safetensors").write_bytes(b"1")

    with reopen(runs) as store:
        publish(store, write=write)
        (store.version_path(1) / "unet" / "lora.safetensors").write_bytes(b"2")
        with pytest.raises(UnknownVersion):
            store.version_path(1)


# counters and notes


def test_counts_follow_what_counts_now(store: Store) -> None:
    assert asdict(store.counts()) == {"ratings": 0, "groups": 0, "rated_groups": 0, "updates": 0, "pending": 0, "no_signal": 0}
    first, second, third = (draw(store) for _ in range(3))
    store.rate(stars(first, 1, 2, 3, 4), 0)
    store.rate(stars(first, 1, None, None, None), 0)
    store.rate(stars(first, 1, 2, 3, None, rater="bob"), 0)
    store.rate(stars(second, None, None, None, None, kind="skip"), 0)
    store.drop_group(third.id)
    publish(store, update=store.begin_update(0), stats={"no_signal": 2})
    publish(store, update=store.begin_update(0), stats={"no_signal": 3})
    store.begin_update(0)
    assert asdict(store.counts()) == {"ratings": 4, "groups": 2, "rated_groups": 1, "updates": 2, "pending": 1, "no_signal": 5}


def test_notes_outlive_the_process_and_the_newest_counts(runs: Path) -> None:
    with reopen(runs) as store:
        assert store.noted("rng", default=[0]) == [0]
        store.note("rng", {"state": [1, 2]})
        store.note("rng", {"state": [3, NAN, math.inf], "big": 2**63})
        draw(store, notes={"prompt": 5})
    with reopen(runs) as store:
        assert store.noted("rng") == {"state": [3, None, None], "big": 2**63}
        assert store.noted("prompt") == 5
