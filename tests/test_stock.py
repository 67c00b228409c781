"""The stock: who is offered what, in which order, and what goes stale."""

import math

import pytest

from loophil.stock import Stock, prefetch_target
from loophil.types import DrawSettings, Group

SETTINGS = DrawSettings(num_inference_steps=2, guidance_scale=3.0, eta=1.0)


def group(name: str, version: int = 0) -> Group:
    return Group(name, "a cat", SETTINGS, version, ())


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def stocked(*names: str, clock: Clock | None = None) -> Stock:
    stock = Stock(clock or Clock())
    for name in names:
        stock.add(group(name))
    return stock


def names(stock: Stock, rater: str = "ann", limit: int = 9, page: str = "") -> list[str]:
    return [group.id for group in stock.offer(rater, limit, page=page)]


@pytest.mark.parametrize(("pace", "depth"), [(0.01, 4), (1.0, 4), (2.5, 3), (4.9, 3), (5.0, 2), (10.0, 2), (math.inf, 1)])
def test_prefetch_is_deep_for_a_fast_rater_and_shallow_for_a_slow_one(pace: float, depth: int) -> None:
    """5 s of work for a group: 1 + ceil(5 / pace), within 1..4."""
    assert prefetch_target(4, 5.0, pace) == depth


def test_people_are_counted_not_their_pages() -> None:
    clock = Clock()
    stock = stocked("a", clock=clock)
    for rater, page in (("ann", "1"), ("ann", "2"), ("bob", "3")):
        names(stock, rater, page=page)
    assert (stock.pages, stock.raters) == (3, 2)
    clock.now += 20
    names(stock, "bob", page="3")
    clock.now += 20
    assert (stock.pages, stock.raters) == (1, 1)


def test_oldest_are_offered_first_and_stay_until_they_are_rated() -> None:
    stock = stocked("a", "b", "c")
    assert names(stock) == names(stock) == ["a", "b", "c"]
    assert names(stock, limit=2) == ["a", "b"]
    stock.remove("b")
    stock.remove("b")
    assert (names(stock), len(stock)) == (["a", "c"], 2)


def test_two_pages_never_have_the_same_group_and_share_what_there_is() -> None:
    """Four groups, two pages: whoever was first has all of them until they ask again, then 4 / 2 each."""
    stock = stocked("a", "b", "c", "d")
    assert names(stock, "ann") == ["a", "b", "c", "d"]
    assert names(stock, "bob") == []
    assert names(stock, "ann") == ["a", "b"]
    assert names(stock, "bob") == ["c", "d"]
    assert stock.pages == 2
    stock.remove("c")
    stock.add(group("e"))
    assert (names(stock, "bob"), names(stock, "ann")) == (["d", "e"], ["a", "b"])


def test_two_tabs_of_one_rater_are_two_pages() -> None:
    stock = stocked("a", "b", "c", "d")
    names(stock, page="tab 1")
    names(stock, page="tab 2")
    assert (names(stock, page="tab 1"), names(stock, page="tab 2")) == (["a", "b"], ["c", "d"])


def test_page_that_was_closed_loses_its_groups_and_one_that_asks_keeps_them() -> None:
    clock = Clock()
    stock = stocked("a", "b", clock=clock)
    assert names(stock, "ann") == ["a", "b"]
    clock.now = 29
    assert (names(stock, "ann", limit=1), names(stock, "bob")) == (["a"], ["b"])
    clock.now = 58  # 29 s after ann asked last
    assert names(stock, "bob") == ["b"]
    clock.now = 60
    assert (names(stock, "bob"), stock.pages) == (["b", "a"], 1)


def test_what_a_page_holds_is_not_taken_from_under_it() -> None:
    stock = stocked("a", "b")
    assert names(stock, "ann", limit=1) == ["a"]
    assert [stock.take("bob"), stock.take("bob")] == [group("b"), None]
    assert names(stock, "ann") == ["a"]


def test_who_only_looks_keeps_nothing_from_others() -> None:
    stock = stocked("a", "b")
    stock.add(group("undone"), rater="ann")
    assert stock.show(1) == [group("a")]
    assert stock.show(9) == [group("a"), group("b")]
    assert (names(stock, "bob"), stock.show(1), stock.pages) == (["a", "b"], [group("a")], 1)


def test_more_pages_want_more_ahead() -> None:
    """One for each page and one more, also where `prefetch` says less; a single page gets what its pace asks for."""
    assert [prefetch_target(2, 5.0, 10.0, pages) for pages in (0, 1, 2, 5, 15, 4000)] == [2, 2, 3, 6, 16, 16]


def test_what_was_asked_for_comes_first() -> None:
    stock = stocked("a", "b")
    stock.add(group("wish"), wanted=True)
    assert names(stock) == ["wish", "a", "b"]


def test_group_of_one_rater_is_not_for_others_nor_counted_for_them() -> None:
    stock = stocked("a")
    stock.add(group("undone"), wanted=True, rater="ann")
    assert (names(stock, "bob"), len(stock)) == (["a"], 1)
    assert [stock.take("bob"), stock.take("ann"), stock.take("ann")] == [None, group("undone"), None]


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
