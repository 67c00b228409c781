"""Hidden repeats: when, of what, and how agreement is counted."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loophil.repeats import BACK, EVERY, Repeats
from loophil.store import Store, open_run
from loophil.types import Act, DrawSettings, Group

SETTINGS = DrawSettings(num_inference_steps=2, guidance_scale=3.0, eta=1.0)
STARS = (1.0, 2.0, 4.0, 5.0)


@pytest.fixture
def store(runs: Path) -> Iterator[Store]:
    with closing(open_run(runs, None, base_model="fake", revision=None)) as opened:
        yield opened


def nothing(path: Path) -> None:
    path.write_bytes(b"t")


def draw(store: Store) -> Group:
    return store.add_group("a cat", SETTINGS, policy_version=0, seeds=(1, 2, 3, 4), images=[b"x"] * 4, write_transitions=nothing, scheduler="DDIM")


def rate(store: Store, *, kind: str = "stars", rater: str = "ann") -> Group:
    group = draw(store)
    silent = kind in ("skip", "tie")
    store.rate(Act(group.id, rater, (None,) * 4 if kind == "skip" else (3.0,) * 4 if silent else STARS, kind=kind), 0)
    return group


def test_one_in_twenty_is_a_group_of_a_while_ago(store: Store) -> None:
    repeats = Repeats(store)
    rated: list[Group] = []
    shown: list[tuple[int, str]] = []
    for n in range(3 * EVERY):
        again = repeats.due("ann")
        if again is None:
            rated.append(rate(store))
        else:
            assert repeats.due("ann") == again  # whoever asks again gets the same
            shown.append((n, again.id))
            store.rate(Act(again.id, "ann", STARS), 0)
    assert [n for n, _ in shown] == [EVERY - 1, 2 * EVERY - 1, 3 * EVERY - 1]
    assert [group for _, group in shown] == [rated[n].id for n in (EVERY - 1 - BACK, 2 * EVERY - 2 - BACK, 3 * EVERY - 3 - BACK)]
    assert repeats.due("bob") is None


def test_one_in_twenty_is_a_group_of_another_rater_s(store: Store) -> None:
    repeats = Repeats(store)
    theirs = [rate(store, rater="bob", kind=kind) for kind in ("stars", "best", "tie")]
    shown = []
    for n in range(EVERY):
        again = repeats.due("ann")
        if again is None:
            rate(store)
        elif n < EVERY - 1:
            assert repeats.due("ann") == again
            shown.append((n, again.id))
            store.rate(Act(again.id, "ann", STARS), 0)
    assert shown == [(EVERY // 2 - 1, theirs[1].id)]  # the newest that told something apart
    assert repeats.agreement("ann") is None


def test_what_told_nothing_apart_is_not_shown_again(store: Store) -> None:
    repeats = Repeats(store)
    for _ in range(EVERY - 1):
        rate(store, kind="tie")
    assert repeats.due("ann") is None


def test_agreement_is_that_of_pairs_that_were_told_apart(store: Store) -> None:
    """First 1 2 4 5, then 1 1 5 4: of six pairs four are the same, one is a tie, one is turned round."""
    repeats = Repeats(store)
    for _ in range(EVERY - 1):
        rate(store)
    assert repeats.agreement("ann") is None
    again = repeats.due("ann")
    assert again is not None
    assert repeats.agreement("ann") is None
    store.rate(Act(again.id, "ann", (1.0, 1.0, 5.0, 4.0)), 0)
    assert repeats.agreement("ann") == (4.5 / 6, 1)
    assert repeats.agreement("bob") is None


def test_a_rating_that_was_only_changed_is_no_repeat(store: Store) -> None:
    group = rate(store)
    store.rate(Act(group.id, "ann", tuple(reversed(STARS))), 0)
    assert Repeats(store).agreement("ann") is None


def test_nothing_is_left_of_who_is_forgotten(store: Store) -> None:
    repeats = Repeats(store)
    for rater in ("ann", "bob"):
        for _ in range(EVERY - 1):
            rate(store, rater=rater)
        assert repeats.due(rater) is not None
    repeats.forget("ann")
    assert "ann" not in str(store.noted("repeats"))
    assert "bob" in str(store.noted("repeats"))
