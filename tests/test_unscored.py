"""The groups whose scores are asked for: new ones first, missing ones again, each so often and no oftener."""

from dataclasses import dataclass
from typing import cast

from loophil.types import Group
from loophil.unscored import KEPT, WAITS, Question, Unscored


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Named:
    """What the queue looks at of a group."""

    id: str


def group(name: str) -> Group:
    return cast("Group", Named(name))


def taken(unscored: Unscored) -> Question:
    question = unscored.next()
    assert question is not None
    return question


def test_new_groups_come_first_and_in_order() -> None:
    clock = Clock()
    unscored = Unscored(clock)
    unscored.add(group("late"))
    unscored.asked(taken(unscored), 0.0, missing=True)
    clock.now = WAITS[0]
    for name in "ab":
        unscored.add(group(name))
    assert len(unscored) == 2
    assert [taken(unscored).group.id for _ in range(3)] == ["a", "b", "late"]
    assert unscored.next() is None


def test_a_group_comes_back_after_each_wait_and_then_no_more() -> None:
    clock = Clock()
    unscored = Unscored(clock)
    unscored.add(group("a"))
    for wait in WAITS:
        unscored.asked(taken(unscored), 0.0, missing=True)
        clock.now += wait - 1
        assert not unscored.again_due
        clock.now += 1
        assert unscored.again_due
    unscored.asked(taken(unscored), 0.0, missing=True)
    clock.now += 1e9
    assert unscored.next() is None


def test_asking_again_takes_at_most_half_of_the_time() -> None:
    clock = Clock()
    unscored = Unscored(clock)
    for name in "ab":
        unscored.add(group(name))
    for _ in "ab":
        unscored.asked(taken(unscored), 0.0, missing=True)
    clock.now = WAITS[0]
    unscored.asked(taken(unscored), 60.0, missing=True)  # a reward hung for a minute
    clock.now += 59
    assert unscored.next() is None
    clock.now += 1
    assert taken(unscored).group.id == "b"


def test_a_group_with_all_its_scores_does_not_come_back() -> None:
    clock = Clock()
    unscored = Unscored(clock)
    unscored.add(group("a"))
    unscored.asked(taken(unscored), 1.0, missing=False)
    clock.now += 1e9
    assert unscored.next() is None


def test_of_too_many_the_oldest_are_left_as_they_are() -> None:
    clock = Clock()
    unscored = Unscored(clock)
    for number in range(KEPT + 1):
        unscored.add(group(str(number)))
    for _ in range(KEPT + 1):
        unscored.asked(taken(unscored), 0.0, missing=True)
    clock.now = WAITS[0]
    assert taken(unscored).group.id == "1"


def test_all_can_be_made_due_and_a_dropped_group_is_forgotten() -> None:
    clock = Clock()
    unscored = Unscored(clock)
    for name in "abc":
        unscored.add(group(name))
    unscored.asked(taken(unscored), 0.0, missing=True)
    unscored.asked(taken(unscored), 0.0, missing=True)
    clock.now = 1.0
    unscored.hurry()
    unscored.forget("a")
    unscored.forget("c")
    assert taken(unscored).group.id == "b"
    assert unscored.next() is None
