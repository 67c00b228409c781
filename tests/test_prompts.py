"""Prompts: one door that lets text in, lists that say what is wrong with them, and an order that a run can resume."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.scenes import parse
from loophil import prompts
from loophil.errors import ConfigError, InvalidInput
from loophil.prompts import LISTS, PromptSource, clean_prompt, expand, held_out, known_lists, load_prompts
from loophil.types import MAX_PROMPT

# ---- the door ----


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("a red star", "a red star"),
        ("  a star \n", "a star"),
        ("", ""),
        ("   ", ""),
        ("cafe\u0301", "café"),  # e and an accent become one character
        ("👩‍👩‍👧 ürün 猫", "👩‍👩‍👧 ürün 猫"),  # joiners between emoji stay
        ("${1+1} {{value}} <b>", "${1+1} {{value}} <b>"),  # escaping is for whoever shows it
        ("x" * MAX_PROMPT, "x" * MAX_PROMPT),
    ],
)
def test_text_comes_through_trimmed_and_composed(given: str, cleaned: str) -> None:
    assert clean_prompt(given) == cleaned


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "A prompt must be text, not NoneType."),
        (b"a star", "A prompt must be text, not bytes."),
        (["a star"], "A prompt must be text, not list."),
        (5, "A prompt must be text, not int."),
        ("x" * (MAX_PROMPT + 1), "The prompt has 1001 characters; 1000 is the most."),
        ("a" * 100_000, "The prompt has 100000 characters"),
        ("\u0958" * MAX_PROMPT, "The prompt has 2000 characters"),  # NFC takes this letter apart
        ("a \ud83d star", r"half of a character \(U\+D83D\) at position 3"),
        ("a\x00star", r"a control character \(U\+0000\) at position 2"),
        ("a\nstar", r"a control character \(U\+000A\) at position 2"),
        ("a\x9bstar", r"\(U\+009B\)"),
        ("a\u2028star", r"\(U\+2028\)"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_sentence(given: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        clean_prompt(given)
    assert str(caught.value).isascii()
    assert str(caught.value).endswith(".")


@given(st.text(max_size=40))
def test_a_clean_prompt_is_clean_and_can_be_sent(text: str) -> None:
    try:
        cleaned = clean_prompt(text)
    except InvalidInput:
        return
    assert clean_prompt(cleaned) == cleaned == unicodedata.normalize("NFC", text.strip())
    cleaned.encode("utf-8")


# ---- lists ----


def test_unknown_list_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no prompt list 'word'\. Choose from: counts, pairs, single, templates, world; or give a"):
        load_prompts("word")


@pytest.mark.parametrize("name", ["", "~nobody/list.txt", "x" * 5000, "a\0b", "."])
def test_a_name_that_can_be_no_file_is_an_unknown_list(name: str) -> None:
    with pytest.raises(ConfigError, match="There is no prompt list"):
        load_prompts(name)


def test_a_list_is_one_prompt_a_line_without_comments_blanks_and_repeats(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeff# mine\n a cat \n\na {red|blue} dog\r\na cat\n  # later\n100% wool #1\n".encode())
    assert load_prompts(str(file)) == ["a cat", "a {red|blue} dog", "100% wool #1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# only this\n\n", "is empty: write one prompt a line"),
        (b"a \xff cat\n", "cannot be read as UTF-8 text"),
        (b"a cat\na\x07bell\n", r"Line 2 of the prompt list .*mine.txt: The prompt has a control character"),
        (b"a cat\n\na __colour__ dog\n", r"Line 3 of the prompt list .*: Unknown wildcard __colour__. Known are: background, color, shape"),
    ],
)
def test_a_broken_list_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_prompts(str(tmp_path / "mine.txt"))


@pytest.mark.parametrize("name", ["world", "single", "pairs", "counts", "templates"])
def test_the_picture_world_can_be_asked_for_everything_in_its_lists(name: str) -> None:
    assert name in known_lists()
    for seed in range(3):
        for prompt in load_prompts(name):
            assert parse(expand(prompt, seed=seed)), prompt


def test_world_has_one_thing_two_and_counts_and_mostly_leaves_the_background_unsaid() -> None:
    scenes = [scene for scene in map(parse, load_prompts("world")) if scene]
    pairs, counts = sum(len(s.things) == 2 for s in scenes), sum(s.things[0].count > 1 for s in scenes)
    assert (len(scenes), pairs, counts) == (96, 32, 24)
    assert 0.25 <= sum(s.background is not None for s in scenes) / 96 <= 0.4
    assert {thing.shape for s in scenes for thing in s.things} == set(prompts.wildcards()["shape"])
    assert {thing.color for s in scenes for thing in s.things if thing.color} == set(prompts.wildcards()["color"])


def test_world_is_the_three_lists_of_its_kinds_together() -> None:
    assert sorted(load_prompts("world")) == sorted(load_prompts("single") + load_prompts("pairs") + load_prompts("counts"))


# ---- wildcards ----


@pytest.mark.parametrize("prompt", ["100% wool, 5$ #1", "a star :: (red:1.2) [x|y]", "a } b | c", "snake_case", "$", "50%"])
def test_a_prompt_without_wildcards_is_taken_as_it_is(prompt: str) -> None:
    assert expand(prompt, seed=0) == prompt


def test_wildcards_are_filled_in_the_same_for_the_same_seed() -> None:
    template = "a {red|blue} __shape__"
    made = [expand(template, seed=seed) for seed in range(40)]
    assert made == [expand(template, seed=seed) for seed in range(40)]
    assert {text.split()[1] for text in made} == {"red", "blue"}
    assert {text.split()[2] for text in made} <= set(prompts.wildcards()["shape"])
    assert len({text.split()[2] for text in made}) > 4


def test_signs_beside_wildcards_stay() -> None:
    assert expand("{red|red} #1, 100% of 5$ wool", seed=0) == "red #1, 100% of 5$ wool"
    assert sorted(expand("{2$$a|b}", seed=1).split(",")) == ["a", "b"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a { star", "The wildcards in 'a { star' end at column 3: close each { and each __"),
        ("a __shape star", "The wildcards in 'a __shape star' end at column 3"),
        ("a __nope__ and __never__ star", "Unknown wildcard __never__, __nope__. Known are: background, color, shape."),
        ("a {star|__nope__}", "Unknown wildcard __nope__"),
        ("a __../world__ star", "Unknown wildcard __../world__"),
        ("a ${x} star", "cannot be filled in: .*x is not defined"),
        ("${x=${x}}${x}", "contain themselves"),
        ("{" * 900, "The wildcards in"),
        ("{" * 300 + "a" + "}" * 300, "The wildcards in"),
    ],
)
def test_wildcards_that_cannot_be_filled_in_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        expand(prompt, seed=0)


@pytest.mark.parametrize(("line", "message"), [("__again__", "contain themselves"), ("__lost__", "Unknown wildcard __lost__")])
def test_a_wildcard_whose_lines_lead_nowhere_is_refused(line: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "wildcards", lambda: {"again": [line]})
    with pytest.raises(InvalidInput, match=message):
        expand("a __again__", seed=0)


def test_what_wildcards_make_is_a_clean_prompt_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "wildcards", lambda: {"long": ["x" * 600]})
    with pytest.raises(InvalidInput, match="The prompt has 1201 characters"):
        expand("__long__ __long__", seed=0)


# ---- the run's prompts ----


def test_24_prompts_of_the_world_are_held_out_and_always_the_same() -> None:
    world = load_prompts("world")
    ours, measured = held_out(world)
    assert len(measured) == 24
    assert sorted(ours + measured) == sorted(world)
    assert held_out(world) == (ours, measured)
    assert held_out(world, seed=1)[1] != measured


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (3, 3), (4, 1), (40, 10), (96, 24), (1000, 24)])
def test_at_most_a_quarter_is_held_out(n: int, kept: int) -> None:
    """1 and 3 cannot spare any: all of them are measured."""
    ours, measured = held_out([str(i) for i in range(n)])
    assert len(measured) == kept
    assert len(ours) == (n if n < 4 else n - kept)


def test_each_round_gives_every_prompt_once_in_another_order() -> None:
    source = PromptSource(list("abcdefgh"), seed=3)
    rounds = [[source.next() for _ in range(8)] for _ in range(3)]
    assert all(sorted(r) == list("abcdefgh") for r in rounds)
    assert len({tuple(r) for r in rounds}) == 3


def test_prompts_follow_from_seed_and_position() -> None:
    templates = ["a {1|2|3|4|5|6|7|8|9} star", "b", "c"]
    source = PromptSource(templates, seed=5)
    given = [source.next() for _ in range(10)]
    assert source.position == 10
    resumed = PromptSource(templates, seed=5, position=4)
    assert [resumed.next() for _ in range(6)] == given[4:]
    assert [PromptSource(templates, seed=6, position=i).next() for i in range(10)] != given
    assert len({text for text in given if text.startswith("a")}) > 1


def test_a_run_needs_a_prompt() -> None:
    with pytest.raises(ConfigError, match="at least one prompt"):
        PromptSource([], seed=0)


def test_lists_lie_beside_the_world() -> None:
    assert LISTS.parts[-2:] == ("data", "prompts")
