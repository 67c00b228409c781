"""History, blind pairs, names and files of ratings: what they show is what was filed. What a person deletes is gone, and nothing else is."""

import csv
import io
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database

from loophil.errors import InvalidInput, KeyConflict, RunError, UnknownVersion
from loophil.store import Store, files, schema, to_csv, to_jsonl
from loophil.store.ratings_file import COLUMNS
from loophil.types import Act, Entry, Group, Pair, Tally
from tests.test_store import NAN, UNKNOWN, adapter, current, die, draw, killed_child, needs_fork, publish, reopen, sql, stars, undo

GROUP = "1" * 32
PAIR = Pair("a red circle", 7, 1, 0, "ann", "tuned", True, 1500, "k1")
TABLES_1 = ("run", "versions", *schema.ONLY_GROW, "updates", "pending", "notes")


@pytest.fixture
def store(runs: Path) -> Iterator[Store]:
    """A run with the versions 0, 1 and 2."""
    with reopen(runs) as opened:
        publish(opened, 1)
        publish(opened, 2, parent=1)
        yield opened


def content(store: Store, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    return {table: sorted(sql(store, f"SELECT * FROM {table}"), key=repr) for table in tables}  # noqa: S608


def triggers(store: Store) -> list[tuple[Any, ...]]:
    return sql(store, "SELECT name, tbl_name, sql FROM sqlite_schema WHERE type = 'trigger' ORDER BY name")


def skip(group: Group, rater: str = "ann") -> Act:
    return Act(group.id, rater, (None,) * 4, "skip")


# the second schema


def schema_1(runs: Path) -> dict[str, list[tuple[Any, ...]]]:
    """A run as the first schema left it, a row or more in every table; what is in it."""
    folder = runs / "first"
    for part in ("images", "transitions", "versions"):
        (folder / part).mkdir(parents=True)
    sha256 = files.publish_folder(folder / "versions" / "1", adapter(1))
    with closing(sqlite3.connect(folder / "run.sqlite", isolation_level=None)) as connection:
        db = Database(connection, execute_plugins=False)
        schema.MIGRATIONS.apply(db, stop_before="002_records")
        for table, *rows in (
            ("run", (1, "first", "embedded", "r1", 1.5)),
            ("openings", (1, 2.5, "0.1", "{}")),
            ("versions", (0, None, "base", 3.5, 0, "", 0), (1, 0, "update", 4.5, 4, sha256, 0)),
            ("groups", *((n, one, "person", "p", "", 0, "DDIM", 12, 3.5, 1, 5.5) for n, one in ((1, GROUP), (2, UNKNOWN)))),
            ("images", ("i0", GROUP, 0, 8, "i0.png"), ("i1", GROUP, 1, 9, "i1.png")),
            ("dropped", (UNKNOWN, 6.5)),
            ("acts", (1, GROUP, "ann", "stars", None, None, "[1, 0]", None, "k", None, 2, 0, 7.5)),
            ("acts", (2, GROUP, "bob", "stars", None, None, "[]", None, None, None, 1, 0, 8.5)),
            ("acts", (3, GROUP, "bob", "undo", None, None, "[]", None, None, 2, 0, 0, 9.5)),
            ("ratings", (1, 0, 5), (1, 1, 2.5), (2, 0, 1)),
            ("receipts", (1, 1), (2, 1), (3, 1)),
            ("scores", (1, GROUP, "jpeg", 0, 0.5, "", 10.5)),
            ("updates", (1, 0, "committed", 1, 11.5, 12.5, "{}", "")),
            ("uses", (1, 1, "loop")),
            ("learned", (GROUP, 1)),
            ("notes", ("groups.drawn", "2", 13.5)),
        ):
            for row in rows:
                db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        return {table: sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in TABLES_1}  # noqa: S608


def test_run_of_the_first_schema_is_upgraded_and_loses_nothing(runs: Path) -> None:
    before = schema_1(runs)
    assert {table for table, rows in before.items() if not rows} == {"pending"}
    with reopen(runs) as store:
        assert sql(store, "PRAGMA user_version") == [(schema.SCHEMA,)]
        after = content(store, *TABLES_1)
        assert after.pop("openings")[:1] == before.pop("openings")
        assert after == before
        assert store.recovered == ()
        assert store.history() == [Entry(store.group(GROUP), Act(GROUP, "ann", (5, 2.5), order=(1, 0), key="k"), 7.5, 1, (1,))]
        assert store.add_pair(PAIR) == 1
        assert store.rate(Act(GROUP, "ann", (1, 2)), 1).act == 4
        assert store.forget_rater("ann") == 2
    with reopen(runs) as store:
        assert sql(store, "PRAGMA user_version") == [(schema.SCHEMA,)]


@needs_fork
def test_kill_while_the_second_schema_is_made_leaves_the_first_which_opens(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema_1(runs)

    def half(tables: tuple[str, ...] = schema.TABLES_2) -> Iterator[str]:
        yield from tables[:2]
        die()

    def upgrade(_: object) -> None:
        monkeypatch.setattr(schema, "TABLES_2", half())
        reopen(runs)

    killed_child(upgrade)
    with closing(sqlite3.connect(runs / "first" / "run.sqlite")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'pairs'").fetchone() == (0,)
    with reopen(runs) as store:
        assert content(store, "acts", "ratings") == {table: before[table] for table in ("acts", "ratings")}


@pytest.mark.parametrize("table", schema.ONLY_GROW_2)
def test_what_the_tabs_keep_cannot_be_rewritten(store: Store, table: str) -> None:
    store.add_pair(PAIR)
    store.name_version(1, "warm")
    store.rate(stars(draw(store), 1, 2, 3, 4, rater="bob"), 0)
    store.forget_rater("bob")
    for statement in (f"UPDATE {table} SET created = created", f"DELETE FROM {table}"):  # noqa: S608
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} only grows"):
            sql(store, statement)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *(("pairs", "seed", value) for value in (-1, 2**53, None, "x", NAN)),
        *(("pairs", "version", value) for value in (0, 99, None)),
        *(("pairs", "against", value) for value in (1, 99, None)),
        *(("pairs", "left_is_tuned", value) for value in (2, -1, None)),
        *(("pairs", "choice", value) for value in ("love", "", None)),
        *(("pairs", column, "") for column in ("rater", "prompt", "key")),
        ("pairs", "milliseconds", -1),
        *(("pairs", "created", value) for value in (-1, NAN)),
        *(("names", "version", value) for value in (99, None)),
        *(("names", "name", value) for value in ("x" * 81, None)),
        *(("names", "created", value) for value in (-1, NAN)),
        *(("forgotten", "last_act", value) for value in (0, None)),
        *(("forgotten", "created", value) for value in (-1, NAN)),
    ],
)
def test_database_itself_refuses_impossible_records(store: Store, table: str, column: str, value: Any) -> None:
    possible = {
        "pairs": {**vars(PAIR), "against": 2, "created": 1.5},
        "names": {"version": 1, "name": "warm", "created": 1.5},
        "forgotten": {"last_act": 1, "created": 1.5},
    }[table]

    def insert(row: dict[str, Any]) -> None:
        sql(store, f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", *row.values())  # noqa: S608

    with pytest.raises(sqlite3.IntegrityError):
        insert({**possible, column: value})
    insert(possible)


# blind pairs


def test_pair_is_filed_whole_and_durable_when_answered(runs: Path, store: Store) -> None:
    assert store.add_pair(PAIR) == 1
    with closing(sqlite3.connect(f"file:{runs}/first/run.sqlite?mode=ro", uri=True)) as other:
        filed = other.execute("SELECT prompt, seed, version, against, rater, choice, left_is_tuned, milliseconds, key FROM pairs").fetchall()
        created, published = other.execute("SELECT (SELECT created FROM pairs), max(created) FROM versions").fetchone()
    assert filed == [("a red circle", 7, 1, 0, "ann", "tuned", 1, 1500, "k1")]
    assert created >= published


def test_same_key_of_a_pair_gets_the_first_answer_again(runs: Path, store: Store) -> None:
    assert [store.add_pair(PAIR), store.add_pair(replace(PAIR, key="k2")), store.add_pair(PAIR)] == [1, 2, 1]
    store.close()
    with reopen(runs) as again:
        assert again.add_pair(PAIR) == 1
        assert sql(again, "SELECT count(*) FROM pairs") == [(2,)]


def test_pair_without_a_key_is_another_each_time(store: Store) -> None:
    one = replace(PAIR, key="", milliseconds=None)
    assert [store.add_pair(one), store.add_pair(one)] == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue circle"},
        {"seed": 8},
        {"version": 2},
        {"against": 2},
        {"rater": "bob"},
        {"choice": "tie"},
        {"left_is_tuned": False},
        {"milliseconds": None},
    ],
)
def test_key_of_a_pair_with_other_content_is_refused(store: Store, change: dict[str, Any]) -> None:
    store.add_pair(PAIR)
    with pytest.raises(KeyConflict, match="'k1' was used before"):
        store.add_pair(replace(PAIR, **change))
    assert store.tallies() == [Tally(1, 1, 0, 0)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(({"choice": value}, r"Unknown choice .* Choose from: tuned, base, tie\.") for value in ("left", "", None, [1])),
        *(({"seed": value}, r"from 0 to 2\^53 - 1, not ") for value in (-1, 2**53, 1.0, "1", True, None)),
        *(({"rater": value}, "rater") for value in ("", "x" * 201, "a\nb", "\ud800", 3, None)),
        *(({"prompt": value}, "prompt") for value in ("", " ", "x" * 1001, "a\nb", "a\u2028b", "\ud800", 3, None)),
        *(({"milliseconds": value}, "milliseconds") for value in (-1, 1.5, NAN, 2**53)),
        *(({"left_is_tuned": value}, "send true or false") for value in (0, 1, "true", None)),
        *(({"key": value}, "key") for value in ("x" * 201, "\x00", 3, None)),
        *(({"version": value, "against": 1}, "cannot be the tuned side") for value in (0, 1)),
    ],
)
def test_impossible_pair_gets_one_sentence_and_changes_nothing(store: Store, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        store.add_pair(replace(PAIR, **given))
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 200
    assert sql(store, "SELECT * FROM pairs") == []


@pytest.mark.parametrize("change", [{name: value} for name in ("version", "against") for value in (3, -1, 2**63, "1", True, None)])
def test_pair_of_an_unknown_version_is_refused(store: Store, change: dict[str, Any]) -> None:
    with pytest.raises(UnknownVersion, match=r"There is no version .* from 0 to 2"):
        store.add_pair(replace(PAIR, **{"version": 2} | change))
    assert sql(store, "SELECT * FROM pairs") == []


def test_pair_sent_again_after_its_version_was_damaged_gets_its_answer(store: Store) -> None:
    store.add_pair(PAIR)
    sql(store, "UPDATE versions SET broken = 1 WHERE number = 1")
    assert store.add_pair(PAIR) == 1
    with pytest.raises(UnknownVersion):
        store.add_pair(replace(PAIR, key="k2"))


def test_tallies_count_the_answers_of_each_version_against_the_base(store: Store) -> None:
    assert store.tallies() == []
    for version, against, choices in ((2, 0, ("tuned", "tie", "tuned")), (1, 0, ("base",)), (2, 1, ("base", "base"))):
        for number, choice in enumerate(choices):
            store.add_pair(replace(PAIR, version=version, against=against, choice=choice, rater=f"rater {number}", key=""))
    # Version 1 lost its one comparison with the base; version 2 won two and tied one. Its two with version 1 are no matter of the base.
    assert store.tallies() == [Tally(1, 0, 1, 0), Tally(2, 2, 0, 1)]


@pytest.mark.parametrize(
    ("tally", "n", "share"),
    [
        (Tally(1, 0, 0, 0), 0, None),
        (Tally(1, 0, 3, 0), 3, 0.0),
        (Tally(1, 13, 7, 0), 20, 0.65),
        (Tally(1, 2, 1, 1), 4, 0.625),  # (2 + 1/2) / 4
        (Tally(1, 0, 0, 3), 3, 0.5),
    ],
)
def test_share_of_a_tally_counts_a_tie_half(tally: Tally, n: int, share: float | None) -> None:
    assert (tally.n, tally.share) == (n, share)


# names


def test_newest_name_of_a_version_counts_and_an_empty_one_takes_it_away(runs: Path, store: Store) -> None:
    assert store.version_names() == {}
    for number, name in ((2, "loud"), (1, "warm"), (2, " softer "), (0, "as it came"), (0, "")):
        store.name_version(number, name)
    assert list(store.version_names().items()) == [(1, "warm"), (2, "softer")]
    store.name_version(1, "  ")
    store.close()
    with reopen(runs) as again:
        assert again.version_names() == {2: "softer"}
        assert len(sql(again, "SELECT * FROM names")) == 6


@pytest.mark.parametrize("name", ["x" * 80, "👩\u200d🎨", "Ölfarbe, warm", "='; DROP TABLE names; --", "<b>", "۱۲"])
def test_name_may_be_any_line_of_text(store: Store, name: str) -> None:
    store.name_version(1, name)
    assert store.version_names() == {1: name}


@pytest.mark.parametrize("name", ["x" * 81, "a\nb", "a\x00", "a\x7fb", "a\u2029b", "\ud800", 3, None, ["a"]])
def test_impossible_name_is_refused(store: Store, name: Any) -> None:
    with pytest.raises(InvalidInput, match=r"The name .* is not possible: send 0 to 80 characters in one line"):
        store.name_version(1, name)
    assert store.version_names() == {}


@pytest.mark.parametrize("number", [3, -1, 2**63, "1", True, None])
def test_unknown_version_gets_no_name(store: Store, number: Any) -> None:
    with pytest.raises(UnknownVersion):
        store.name_version(number, "warm")
    assert sql(store, "SELECT * FROM names") == []


# history


def test_history_is_the_acts_that_count_newest_first(store: Store) -> None:
    first, second = draw(store), draw(store, policy_version=1)
    rated = stars(first, 1, 2.5, None, 5, kind="best", best=3, worst=0, order=(3, 1, 0, 2), milliseconds=1234, key="k")
    assert store.history() == []
    store.rate(stars(first, 3, 3, 3, 3), 0)  # 1: superseded by 2
    store.rate(rated, 0)  # 2
    store.rate(stars(second, 1, 1, 1, 1), 1)  # 3: taken back by 4
    store.rate(undo(second), 1)  # 4
    store.rate(skip(second, "bob"), 1)  # 5
    store.rate(stars(first, 5, 5, 5, 5), 1)  # 6: taken back by 7, so that 2 counts again
    store.rate(undo(first), 1)  # 7
    skipped, best = store.history()
    assert best == Entry(first, rated, store.acts(first.id)[1].created, 2, ())
    assert (skipped.group, skipped.act, skipped.act_id) == (second, skip(second, "bob"), 5)


def test_filters_of_the_history_combine(store: Store) -> None:
    groups = [draw(store, policy_version=version) for version in (0, 1)]
    for group in groups:  # 1 to 3, 4 to 6
        for act in (stars(group, 1, 2, 3, 4), stars(group, 1, 2, 3, 4, rater="bob"), skip(group, "bob")):
            store.rate(act, 0)
    # 1 ann v0, 2 bob v0 (superseded by 3), 3 bob v0 skip; 4 ann v1, 5 bob v1 (superseded by 6), 6 bob v1 skip

    def ids(**wanted: Any) -> list[int]:
        return [entry.act_id for entry in store.history(**wanted)]

    assert ids() == [6, 4, 3, 1]
    assert ids(rater="ann") == [4, 1]
    assert ids(version=0) == [3, 1]
    assert ids(kind="skip") == [6, 3]
    assert ids(kind="skip", version=1) == [6]
    assert ids(rater="ann", kind="skip") == ids(rater="carl") == ids(version=9) == ids(kind="undo") == []
    assert ids(rater="bob", before=6) == [3]
    assert ids(before=4, limit=1) == [3]
    assert ids(limit=0) == ids(before=0) == []


def test_pages_of_the_history_show_every_act_once(store: Store) -> None:
    for _ in range(3):
        group = draw(store)
        for rater in ("ann", "bob", "carl"):
            store.rate(stars(group, 1, 2, 3, 4, rater=rater), 0)
    seen: list[int] = []
    while page := store.history(limit=4, before=seen[-1] if seen else None):
        seen += [entry.act_id for entry in page]
    assert seen == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_history_says_which_versions_a_rating_taught(store: Store) -> None:
    group = draw(store)
    for rater in ("ann", "bob", "carl"):
        store.rate(stars(group, 1, 2, 3, 4, rater=rater), 0)
    publish(store, 3, uses=[(1, "loop"), (1, "forward"), (2, "loop")])
    publish(store, 4, uses=[(2, "loop"), (1, "loop")])
    publish(store, 5, uses=[(1, "forward")])
    sql(store, "UPDATE versions SET broken = 1 WHERE number = 4")
    assert [entry.taught for entry in store.history()] == [(), (3,), (3, 5)]


def test_history_asks_no_more_often_for_more_entries(store: Store) -> None:
    def asked() -> int:
        statements: list[str] = []
        store._db.conn.set_trace_callback(statements.append)
        store.history()
        store._db.conn.set_trace_callback(None)
        return len(statements)

    store.rate(stars(draw(store), 1, 2, 3, 4), 0)
    few = asked()
    for _ in range(9):
        store.rate(stars(draw(store), 1, 2, 3, 4), 0)
    assert len(store.history()) == 10
    assert asked() == few <= 3


@pytest.mark.parametrize(
    "wanted",
    [
        {"kind": "love"},
        *({"rater": value} for value in ("", "\ud800", 3)),
        *({name: value} for name in ("version", "before", "limit") for value in (-1, 2**53, 1.0, "1", True)),
    ],
)
def test_impossible_filter_gets_one_sentence(store: Store, wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"\.$"):
        store.history(**wanted)


# ratings to take away


def test_ratings_rows_hold_everything_of_every_act(store: Store) -> None:
    group = draw(store, "a cat", seeds=(21, 22), policy_version=1)
    store.rate(Act(group.id, "ann", (4, None)), 1)
    store.rate(Act(group.id, "ann", (1, 5), "best", 1, 0, (1, 0), 900, "k"), 2)
    store.rate(Act(group.id, "bob", (None, None), "skip"), 2)
    store.rate(Act(group.id, "bob", (), "undo"), 2)
    created = [record.created for record in store.acts(group.id)]
    images = [
        {
            "group": group.id,
            "image": ref.id,
            "file": f"{ref.id}.png",
            "position": position,
            "prompt": "a cat",
            "negative_prompt": "blur",
            "seed": 21 + position,
            "policy_version": 1,
            "scheduler": "DDIM",
            "num_inference_steps": 12,
            "guidance_scale": 3.5,
            "eta": 0.75,
        }
        for position, ref in enumerate(group.images)
    ]
    silent: dict[str, Any] = {"best": None, "worst": None, "shown_order": [], "milliseconds": None}
    acts: list[tuple[dict[str, Any], tuple[float | None, float | None]]] = [
        ({"act": 1, "rater": "ann", "kind": "stars", "rated_version": 1, "current": 0, "undone": 0, "undoes": None, **silent}, (4, None)),
        (
            {"act": 2, "rater": "ann", "kind": "best", "rated_version": 2, "current": 1, "undone": 0, "undoes": None}
            | {"best": 1, "worst": 0, "shown_order": [1, 0], "milliseconds": 900},
            (1, 5),
        ),
        ({"act": 3, "rater": "bob", "kind": "skip", "rated_version": 2, "current": 0, "undone": 1, "undoes": None, **silent}, (None, None)),
        ({"act": 4, "rater": "bob", "kind": "undo", "rated_version": 2, "current": 0, "undone": 0, "undoes": 3, **silent}, (None, None)),
    ]
    rows = store.ratings_rows()
    assert rows == [
        {**images[position], **act, "stars": given[position], "created": created[act["act"] - 1]} for act, given in acts for position in (0, 1)
    ]
    assert {tuple(row) for row in rows} == {COLUMNS}


text = st.text(st.characters(exclude_categories=()))  # with halves of characters too
rows = st.lists(st.dictionaries(text, st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text | st.lists(st.integers())))


@given(rows)
def test_jsonl_reads_back_as_the_very_rows(rows: list[dict[str, Any]]) -> None:
    lines = to_jsonl(rows).encode("utf-8").decode("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_jsonl_of_a_run_reads_back_as_its_rows(store: Store) -> None:
    store.rate(stars(draw(store, "a red\u2028circle, 円"), 0.1 + 1.2, None, 3, 4, order=(3, 2, 1, 0)), 0)
    assert [json.loads(line) for line in to_jsonl(store.ratings_rows()).splitlines()] == store.ratings_rows()


def parsed(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_csv_has_a_header_also_when_nothing_was_rated(store: Store) -> None:
    assert to_csv(store.ratings_rows()) == ",".join(COLUMNS) + "\r\n"


def test_csv_of_a_run_has_a_line_for_each_row(store: Store) -> None:
    store.rate(stars(draw(store, 'say "cheese", 円'), 1, 2.5, None, 4, order=(3, 1, 0, 2), best=3), 0)
    header, *lines = parsed(to_csv(store.ratings_rows()))
    assert header == list(COLUMNS)
    assert [dict(zip(header, line, strict=True)) for line in lines] == [
        {column: json.dumps(value) if isinstance(value, list) else "" if value is None else str(value) for column, value in row.items()}
        for row in store.ratings_rows()
    ]
    assert [dict(zip(header, line, strict=True))["stars"] for line in lines] == ["1.0", "2.5", "", "4.0"]
    assert '"say ""cheese"", 円"' in to_csv(store.ratings_rows())


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "-"])
def test_csv_cell_is_never_a_formula(value: str) -> None:
    assert parsed(to_csv([{"prompt": value}]))[1][COLUMNS.index("prompt")] == "'" + value


@pytest.mark.parametrize(("value", "cell"), [(-1, "-1"), (-0.5, "-0.5"), (2**53 - 1, "9007199254740991"), ("a=b", "a=b"), (" =1", " =1"), ("'", "'")])
def test_csv_leaves_numbers_and_harmless_text_as_they_are(value: Any, cell: str) -> None:
    assert parsed(to_csv([{"seed": value}]))[1][COLUMNS.index("seed")] == cell


# deleting one person's ratings


def test_forgotten_rater_is_gone_and_nothing_else_is(store: Store) -> None:
    first, second = draw(store), draw(store)
    store.add_scores(first.id, "jpeg", [1, 2, 3, 4])
    store.rate(stars(first, 1, 2, 3, 4, key="k1"), 0)  # 1
    store.rate(stars(first, 4, 3, 2, 1, rater="bob", key="k2"), 0)  # 2
    store.rate(stars(second, 1, 1, 1, 1), 0)  # 3: taken back by 4
    store.rate(undo(second), 0)  # 4
    store.rate(stars(second, 5, 5, 5, 5), 0)  # 5
    store.rate(skip(second, "bob"), 0)  # 6
    publish(store, 3, uses=[(1, "loop"), (2, "loop"), (5, "forward")], groups_learned=[first.id])
    store.add_pair(PAIR)
    store.add_pair(replace(PAIR, rater="bob", key="k2"))
    store.name_version(1, "warm")
    tables = ("acts", "ratings", "receipts", "uses", "pairs")
    others = tuple(name for (name,) in sql(store, "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'"))
    untouched = tuple(table for table in others if table not in (*tables, "pending", "forgotten"))
    before, kept, guards = content(store, *tables), content(store, *untouched), triggers(store)
    assert store.forget_rater("ann") == 4
    bobs = {"acts": {2, 6}, "ratings": {2}, "receipts": {2, 6}, "uses": {2}, "pairs": {2}}  # the first column: act or row
    assert content(store, *tables) == {table: [row for row in before[table] if row[0] in bobs[table]] for table in tables}
    assert content(store, *untouched) == kept
    assert triggers(store) == guards
    assert [entry.act_id for entry in store.history()] == [6, 2]
    assert {row["rater"] for row in store.ratings_rows()} == {"bob"}
    assert store.tallies() == [Tally(1, 1, 0, 0)]
    assert store.unrated_groups("ann") == [first, second]
    assert sql(store, "PRAGMA foreign_key_check") == []
    assert store.forget_rater("ann") == 0


def test_forgetting_a_stranger_changes_nothing(store: Store) -> None:
    store.rate(stars(draw(store), 1, 2, 3, 4), 0)
    before = content(store, *TABLES_1, *schema.ONLY_GROW_2)
    assert store.forget_rater("Ann") == 0
    assert content(store, *TABLES_1, *schema.ONLY_GROW_2) == before
    with pytest.raises(InvalidInput, match="rater"):
        store.forget_rater("")


def test_forgetting_brings_pending_up_to_date(store: Store) -> None:
    first, second, third = (draw(store) for _ in range(3))
    for group in (first, second, third):
        store.rate(stars(group, 1, 2, 3, 4), 0)  # 1 to 3
    store.rate(stars(second, 1, 2, 3, 4, rater="bob"), 0)  # 4
    taught = store.rate(stars(third, 1, 2, 3, 4, rater="bob"), 0)  # 5
    publish(store, 3, uses=[(taught.act, "loop")])
    assert store.counts().pending == 3
    store.forget_rater("ann")
    # The first has no rating any more, bob's in the third has taught version 3: only the second waits.
    assert sql(store, "SELECT group_id FROM pending") == [(second.id,)]
    assert (store.counts().ratings, store.counts().rated_groups) == (8, 2)
    assert [one.group for one in store.learnable_groups()] == [second, third]


@pytest.mark.parametrize("table", schema.ONLY_GROW)
def test_history_is_closed_again_after_forgetting(runs: Path, store: Store, table: str) -> None:
    group = draw(store)
    store.rate(stars(group, 1, 2, 3, 4, rater="bob"), 0)
    store.rate(stars(group, 1, 2, 3, 4), 0)
    store.drop_group(draw(store).id)
    store.add_scores(group.id, "jpeg", [1, 2, 3, 4])
    publish(store, 3, uses=[(2, "loop")], groups_learned=[group.id])
    store.forget_rater("bob")
    with pytest.raises(sqlite3.IntegrityError, match=f"{table} only grows"):
        sql(store, f"DELETE FROM {table}")  # noqa: S608


def fail(*_: object) -> Any:
    raise OSError("no space")


@pytest.mark.parametrize(
    ("method", "broken", "error"),
    [
        ("_keep_pending", fail, OSError),
        ("_guards", lambda guards: lambda self, tables, seen=[]: [] if seen else seen.append(1) or guards(self, tables), RunError),
    ],
)
def test_forgetting_that_fails_leaves_everything(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, broken: Callable[..., Any], error: type[Exception]
) -> None:
    store.rate(stars(draw(store), 1, 2, 3, 4), 0)
    store.add_pair(PAIR)
    before, guards = content(store, *TABLES_1, *schema.ONLY_GROW_2), triggers(store)
    with monkeypatch.context() as patch:
        patch.setattr(Store, method, broken(getattr(Store, method)) if error is RunError else broken)
        with pytest.raises(error, match=r"no space|could not be closed again: nothing was deleted"):
            store.forget_rater("ann")
    assert content(store, *TABLES_1, *schema.ONLY_GROW_2) == before
    assert triggers(store) == guards


@needs_fork
def test_kill_while_forgetting_deletes_nothing_and_the_history_stays_closed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with reopen(runs) as store:
        group = draw(store)
        store.rate(stars(group, 1, 2, 3, 4), 0)
        guards = triggers(store)

    def work(_: object) -> None:
        store = reopen(runs)
        monkeypatch.setattr(Store, "_keep_pending", die)
        store.forget_rater("ann")

    killed_child(work)
    with reopen(runs) as store:
        assert current(store, group) == {"ann": [1, 2, 3, 4]}
        assert triggers(store) == guards


def test_no_trace_of_a_forgotten_rater_is_left_in_the_files(runs: Path, store: Store) -> None:
    """Names of all lengths in random order: pages fill, split and are balanced, which leaves copies that only rewriting removes."""
    chance = random.Random(0)
    groups = [draw(store).id for _ in range(60)]
    acts = "INSERT INTO acts (group_id, rater, kind, shown_order, key, rated, policy_version, created) VALUES (?, ?, 'skip', '[]', ?, 0, 0, 0)"
    sql(store, "BEGIN")
    for number in range(3000):
        rater = chance.choice(("annabella", "bob" + "x" * chance.randrange(150), "carl"))
        sql(store, acts, chance.choice(groups), rater, f"{rater} {number}")
    sql(store, "COMMIT")
    store.add_pair(replace(PAIR, rater="annabella"))
    publish(store, 3, update=store.begin_update(0), stats={"shares": {"human:annabella": 0.25, "human:bob": 0.5, "jpeg": 0.25}})

    def traces() -> int:
        return sum(file.read_bytes().count(b"annabella") for file in (runs / "first").glob("run.sqlite*"))

    assert traces() > 1000
    assert store.forget_rater("annabella") > 900
    assert traces() == 0
    assert store.updates()[-1].stats == {"shares": {"human:(deleted)": 0.25, "human:bob": 0.5, "jpeg": 0.25}}
    assert sql(store, "PRAGMA integrity_check") == [("ok",)]


def test_deleted_is_overwritten_from_the_first_moment(store: Store) -> None:
    assert sql(store, "PRAGMA secure_delete") == [(1,)]


def test_shares_of_two_forgotten_raters_are_one(store: Store) -> None:
    update = store.begin_update(0)
    publish(store, 3, update=update, stats={"shares": {"human:ann": 0.25, "human:bob": 0.5, "jpeg": 0.25}, "kept": 1.0})
    for rater in ("ann", "bob"):
        store.forget_rater(rater)
    assert store.updates()[-1].stats == {"shares": {"human:(deleted)": 0.75, "jpeg": 0.25}, "kept": 1.0}


def test_traces_that_another_program_keeps_are_said_and_the_next_time_removes_them(runs: Path, store: Store) -> None:
    store.rate(stars(draw(store), 1, 2, 3, 4), 0)
    sql(store, "PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(runs / "first" / "run.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM acts").fetchone()
        with pytest.raises(RunError, match=r"are deleted from the run 'first', but traces .* \(another program reads the database\)"):
            store.forget_rater("ann")
    assert store.history() == []
    assert store.forget_rater("ann") == 0


def test_database_that_cannot_be_rewritten_is_said_and_the_next_time_removes_the_traces(store: Store) -> None:
    store.rate(stars(draw(store), 1, 2, 3, 4), 0)
    unfinished = store._db.execute("SELECT number FROM versions")
    unfinished.fetchone()
    with pytest.raises(RunError, match=r"are deleted from the run 'first', but traces .* \(cannot VACUUM"):
        store.forget_rater("ann")
    unfinished.close()
    assert store.history() == []
    assert store.forget_rater("ann") == 0


def test_number_of_a_deleted_act_is_not_given_again(runs: Path, store: Store) -> None:
    group = draw(store)
    for rater in ("bob", "ann", "carl"):
        store.rate(stars(group, 1, 2, 3, 4, rater=rater), 0)
    store.forget_rater("carl")
    assert store.rate(stars(group, 1, 2, 3, 4, rater="dora"), 0).act == 4
    store.forget_rater("bob")
    store.close()
    with reopen(runs) as again:
        for rater in ("ann", "dora"):
            again.forget_rater(rater)
        assert again.rate(stars(group, 1, 2, 3, 4), 0).act == 5


def test_act_deleted_while_a_version_learned_from_it_is_not_named(store: Store) -> None:
    group = draw(store)
    for rater in ("ann", "bob"):
        store.rate(stars(group, 1, 2, 3, 4, rater=rater), 0)

    def write(folder: Path) -> None:
        adapter(3)(folder)
        store.forget_rater("ann")
        store.rate(stars(group, 1, 2, 3, 4, rater="carl"), 0)  # 3

    assert publish(store, 3, write=write, uses=[(1, "loop"), (2, "loop")]).ratings == 4
    assert sql(store, "SELECT act_id, version FROM uses") == [(2, 3)]
    assert store.counts().pending == 1
    with pytest.raises(sqlite3.IntegrityError):
        publish(store, 4, uses=[(9, "loop")])


def test_forgotten_rater_may_come_back(store: Store) -> None:
    group = draw(store)
    act = stars(group, 1, 2, 3, 4, key="k")
    store.rate(act, 0)
    store.add_pair(PAIR)
    store.forget_rater("ann")
    assert store.rate(act, 0).act == 2
    assert store.add_pair(PAIR) == 1
    assert current(store, group) == {"ann": [1, 2, 3, 4]}
