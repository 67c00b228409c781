"""The blind test: fair, secret until somebody has chosen, and filed once."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loophil.blind import OPEN, BlindTest
from loophil.errors import InvalidInput, LoopHILError
from loophil.store import Store, open_run
from loophil.types import Look, Tally

PROMPTS = ("a {cat|cat}", "a dog", "a fish")


@pytest.fixture
def store(runs: Path) -> Iterator[Store]:
    with closing(open_run(runs, None, base_model="fake", revision=None)) as opened:
        yield opened


def publish(store: Store) -> int:
    update = store.begin_update(store.current_version().number)
    return store.publish(update, parent=store.current_version().number, kind="update", write=lambda folder: None).number


def draw(prompt: str, seed: int, looks: Sequence[Look]) -> list[Image.Image]:
    """Red is the version."""
    return [Image.new("RGB", (4, 4), (look.version, 0, 0)) for look in looks]


def made_by(image: Image.Image) -> int:
    pixel: Any = image.getpixel((0, 0))
    return int(pixel[0])


def test_before_anything_was_learned_there_is_no_test(store: Store) -> None:
    with pytest.raises(InvalidInput, match="Nothing was learned yet"):
        BlindTest(store, draw, PROMPTS).ask("ann")


def test_each_question_shows_base_and_the_version_in_use_in_a_random_order(store: Store) -> None:
    publish(store)
    blind = BlindTest(store, draw, PROMPTS)
    questions = [blind.ask("ann") for _ in range(60)]
    orders = [(made_by(q.left), made_by(q.right)) for q in questions]
    assert set(orders) == {(0, 1), (1, 0)}
    assert 10 < orders.count((1, 0)) < 50
    assert {q.prompt for q in questions} == {"a cat", "a dog", "a fish"}
    assert [q.prompt for q in questions[:3]] == [q.prompt for q in questions[3:6]]
    assert len({q.id for q in questions}) == 60


@pytest.mark.parametrize("choice", ["left", "right", "tie"])
def test_an_answer_is_filed_for_the_side_that_was_chosen_once(store: Store, choice: str) -> None:
    """The version that was asked about counts, also when another has come since."""
    version = publish(store)
    blind = BlindTest(store, draw, PROMPTS)
    question = blind.ask("ann")
    publish(store)
    left_is_tuned = made_by(question.left) == version
    pair = blind.answer(question.id, choice, "ann", 900)
    assert blind.answer(question.id, choice, "ann", 900) == pair
    side = "tie" if choice == "tie" else "tuned" if (choice == "left") == left_is_tuned else "base"
    assert (pair.choice, pair.version, pair.against, pair.left_is_tuned, pair.milliseconds) == (side, version, 0, left_is_tuned, 900)
    assert store.tallies() == [Tally(version, side == "tuned", side == "base", side == "tie")]


def test_a_test_stays_with_its_version_though_another_has_come(store: Store) -> None:
    first = publish(store)
    blind = BlindTest(store, draw, PROMPTS)
    assert blind.ask("ann").version == first
    second = publish(store)
    question = blind.ask("ann", first)
    assert (question.version, {made_by(question.left), made_by(question.right)}) == (first, {0, first})
    assert blind.ask("ann").version == second
    for version in (0, 99):
        with pytest.raises(LoopHILError):
            blind.ask("ann", version)


def test_what_is_not_asked_is_not_answered(store: Store) -> None:
    publish(store)
    blind = BlindTest(store, draw, PROMPTS)
    question = blind.ask("ann")
    for id_, choice, rater in ((question.id, "tuned", "ann"), ("other", "left", "ann"), (question.id, "left", "bob")):
        with pytest.raises(InvalidInput):
            blind.answer(id_, choice, rater)
    assert store.tallies() == []


def test_old_questions_are_forgotten(store: Store) -> None:
    publish(store)
    blind = BlindTest(store, draw, PROMPTS)
    first = blind.ask("ann")
    questions = [blind.ask("ann") for _ in range(OPEN)]
    with pytest.raises(InvalidInput, match="no longer open"):
        blind.answer(first.id, "left", "ann")
    blind.answer(questions[0].id, "left", "ann")
