"""The stock: who is offered what, in which order, and what goes stale."""

import math

import pytest

from loophil.stock import Stock, prefetch_target
from loophil.types import DrawSettings, Group

SETTINGS = DrawSettings(num_inference_steps=2, guidance_scale=3.0, eta=1.0)


def group(name: str, version: int = 0) -> Group:
    return Group(name, "a cat", SETTINGS, version, ())


def stocked(*names: str) -> Stock:
    stock = Stock()
    for name in names:
        stock.add(group(name))
    return stock


def names(stock: Stock, rater: str = "ann", limit: int = 9) -> list[str]:
    return [group.id for group in stock.offer(rater, limit)]


@pytest.mark.parametrize(("pace", "depth"), [(0.01, 4), (1.0, 4), (2.5, 3), (4.9, 3), (5.0, 2), (10.0, 2), (math.inf, 1)])
def test_prefetch_is_deep_for_a_fast_rater_and_shallow_for_a_slow_one(pace: float, depth: int) -> None:
    """5 s of work for a group: 1 + ceil(5 / pace), within 1..4."""
    assert prefetch_target(4, 5.0, pace) == depth


def test_oldest_are_offered_first_and_stay_until_they_are_rated() -> None:
    stock = stocked("a", "b", "c")
    assert names(stock) == names(stock, "bob") == ["a", "b", "c"]
    assert names(stock, limit=2) == ["a", "b"]
    stock.remove("b")
    stock.remove("b")
    assert (names(stock), len(stock)) == (["a", "c"], 2)


def test_what_was_asked_for_comes_first() -> None:
    stock = stocked("a", "b")
    stock.add(group("wish"), wanted=True)
    assert names(stock) == ["wish", "a", "b"]


def test_group_of_one_rater_is_not_for_others_nor_counted_for_them() -> None:
    stock = stocked("a")
    stock.add(group("undone"), wanted=True, rater="ann")
    assert (names(stock), names(stock, "bob"), len(stock)) == (["undone", "a"], ["a"], 1)
    assert [stock.take("bob"), stock.take("bob")] == [group("a"), None]
    assert stock.take("ann") == group("undone")


def test_stale_groups_go_unless_seen_asked_for_or_undone() -> None:
    stock = stocked("seen", "next", "unseen")
    stock.add(group("young", version=3))
    assert names(stock) == ["seen", "next", "unseen", "young"]
    stock.add(group("wish"), wanted=True)
    stock.add(group("undone"), rater="ann")
    assert stock.withdraw(oldest=3) == ["unseen"]
    assert stock.withdraw(oldest=3) == []
    assert names(stock) == ["wish", "seen", "next", "young", "undone"]


def test_group_that_was_rated_is_forgotten() -> None:
    stock = stocked("a")
    names(stock)
    stock.remove("a")
    stock.add(group("a"))
    assert stock.withdraw(oldest=1) == ["a"]
