"""Understanding: what the loop knows of a taste, when that counts, and what is asked for only once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loophil.build import describer
from loophil.config import Settings
from loophil.store import Store, open_run
from loophil.types import Act, Group
from loophil.understanding import EVERYBODY, FEWEST, TASTE, Understanding
from tests.test_jobs import Room

Rate = Callable[[int], list[Group]]


@pytest.fixture
def room(runs: Path) -> Iterator[Room]:
    with open_run(runs, None, base_model="fake", revision=None) as store:
        yield Room(store, runs)


def features(store: Store, group: Group) -> np.ndarray[Any, Any]:
    """(k, 3): the mean colour of each picture."""
    return np.array([np.asarray(Image.open(store.images / image.file), dtype=float).mean(axis=(0, 1)) for image in group.images])


def rate_by_red(room: Room, n: int, *, rater: str = "ann", sign: int = 1) -> list[Group]:
    """n groups, the reddest picture 4 stars, the least red 1; the other way round with sign -1."""
    groups = []
    for _ in range(n):
        group = room.studio.draw(room.engine, "", "person")
        ranks = np.argsort(np.argsort(sign * features(room.store, group)[:, 0])) + 1.0
        room.store.rate(Act(group.id, rater, tuple(float(rank) for rank in ranks)), 0)
        groups.append(group)
    return groups


class Asked:
    """Describes groups in two kinds of features, and counts how often it was asked."""

    def __init__(self, store: Store) -> None:
        self.store, self.groups = store, list[str]()

    def __call__(self, group: Group) -> list[np.ndarray[Any, Any]]:
        self.groups.append(group.id)
        colours = features(self.store, group)
        return [colours[:, :1], colours[:, 1:]]


def test_nobody_is_understood_before_anybody_has_chosen(room: Room) -> None:
    understanding, describe = Understanding(room.store), Asked(room.store)
    understanding.look(describe)
    room.store.rate(Act(room.studio.draw(room.engine, "", "person").id, "ann", (3.0,) * 4), 0)
    understanding.look(describe)
    assert (understanding.of("ann"), understanding.share, understanding.weight) == (None, None, 0.0)
    assert "begin once 8 groups" in understanding.sentence(rewards=False)
    assert "has a say in automatic rounds once 8 groups" in understanding.sentence(rewards=True)


def test_it_counts_by_how_far_it_is_beyond_chance_and_not_before_so_many_choices(room: Room) -> None:
    understanding, describe = Understanding(room.store), Asked(room.store)
    rate_by_red(room, FEWEST - 1)
    understanding.look(describe)
    agreement = understanding.of("ann")
    assert agreement is not None
    assert understanding.weight == 0
    rate_by_red(room, 9)
    understanding.look(describe)
    agreement = understanding.of("ann")
    assert agreement is not None
    assert agreement.choices == FEWEST + 8
    assert understanding.weight == pytest.approx(2 * agreement.share - 1)
    assert understanding.weight > 0.5


def test_each_group_is_described_once_and_nothing_is_learned_anew_without_news(room: Room) -> None:
    understanding, describe = Understanding(room.store), Asked(room.store)
    first = rate_by_red(room, 3)
    understanding.look(describe)
    taste = understanding._tastes[EVERYBODY]
    understanding.look(describe)
    assert understanding._tastes[EVERYBODY] is taste
    second = rate_by_red(room, 1)
    understanding.look(describe)
    assert understanding._tastes[EVERYBODY] is not taste
    assert describe.groups == [group.id for group in first + second]


def test_a_group_with_a_lost_picture_is_passed_over(room: Room) -> None:
    understanding, describe = Understanding(room.store), Asked(room.store)
    lost, *_ = rate_by_red(room, FEWEST + 1)
    (room.store.images / lost.images[0].file).unlink()
    understanding.look(describe)
    agreement = understanding.of("ann")
    assert agreement is not None
    assert agreement.choices == FEWEST


def test_its_opinion_becomes_scores_and_follows_what_it_learns_later(room: Room) -> None:
    understanding, describe = Understanding(room.store), Asked(room.store)
    rate_by_red(room, 12)
    understanding.look(describe)
    group = room.studio.draw(room.engine, "", "auto")
    understanding.judge(group, describe)
    (said,) = room.store.scores(group.id).values()
    assert np.corrcoef(said, features(room.store, group)[:, 0])[0, 1] > 0.8
    rate_by_red(room, 12)
    understanding.look(describe)
    (known,) = [taught for taught in room.store.learnable_groups() if taught.group.id == group.id]
    now = understanding.with_opinion(known).scores[TASTE]
    assert not np.allclose(now, said)
    _, std = understanding._tastes[EVERYBODY].compare(features(room.store, group))
    assert now.mean() == pytest.approx(-std.mean() / 2)  # half a standard deviation below


def test_opposite_tastes_cancel_when_pooled_and_are_both_understood_on_their_own(room: Room) -> None:
    understanding, describe = Understanding(room.store), Asked(room.store)
    for _ in range(12):
        rate_by_red(room, 1)
        rate_by_red(room, 1, rater="bob", sign=-1)
    understanding.look(describe)
    together = understanding.of("ann")
    assert together is not None
    assert together == understanding.of("bob")
    assert (together.choices, understanding.weight) == (24, 0)
    understanding.look(describe, pooled=False)
    for rater in ("ann", "bob"):
        agreement = understanding.of(rater)
        assert agreement is not None
        assert (agreement.choices, agreement.share > 0.9) == (12, True)
    assert understanding.of("carl") is None
    assert understanding.weight > 0.5
    group = room.studio.draw(room.engine, "", "auto")
    understanding.judge(group, describe)
    (said,) = room.store.scores(group.id).values()
    alone = [understanding._tastes[rater].compare(features(room.store, group)) for rater in ("ann", "bob")]
    assert np.ptp(said) < 0.5 * min(np.ptp(mean) for mean, _ in alone)  # nobody's pictures: they want opposite things
    assert len(describe.groups) == 25


def test_raters_who_saw_the_same_pictures_are_compared(room: Room) -> None:
    understanding, describe = Understanding(room.store), Asked(room.store)
    groups = rate_by_red(room, 4)
    understanding.look(describe)
    assert understanding.between is None
    for group in groups:
        ranks = np.argsort(np.argsort(features(room.store, group)[:, 0])) + 1.0
        room.store.rate(Act(group.id, "bob", tuple(float(rank) for rank in ranks)), 0)
    understanding.look(describe)
    assert understanding.between == pytest.approx(1.0)


def test_only_the_embedded_model_has_an_open_clip_model_by_itself() -> None:
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    parts = describer(Settings(model="embedded"), "cpu")(images, ["a red circle"] * 2)
    assert [part.shape[0] for part in parts] == [2, 2, 2]
    assert [part.shape[1] for part in parts] == [12, 128, 1]
    (statistics,) = describer(Settings(model="some/other"), "cpu")(images, ["a red circle"] * 2)
    assert np.array_equal(statistics, parts[0])
