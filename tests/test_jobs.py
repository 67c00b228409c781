"""The jobs on their own: what an update learns from, what is written down about it, what is read again."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loophil import jobs
from loophil.jobs import ADAPTER, LORA, Engine, Learner, Studio, adopted
from loophil.prompts import PromptSource
from loophil.store import Store, open_run
from loophil.types import Act, DrawSettings, Group, Look, UpdateStats, Version
from loophil.understanding import Understanding
from tests.fake_engine import PROMPTS, FakeEngine, fake_settings

STARS = (1.0, 2.0, 4.0, 5.0)
SETTINGS = DrawSettings(num_inference_steps=2, guidance_scale=3.0, eta=1.0)


class Room:
    """A store with an engine, and both kinds of job on it."""

    def __init__(self, store: Store, runs: Path, **knobs: Any) -> None:
        settings = fake_settings(runs, **knobs)
        self.fake, self.store = FakeEngine(), store
        self.engine: Engine = self.fake.engine(print)
        self.studio = Studio(store, settings, PromptSource(PROMPTS, seed=0))
        self.learner = Learner(store, settings, {}, Understanding(store))

    def draw(self, stars: tuple[float, ...] = STARS) -> Group:
        group = self.studio.draw(self.engine, "", "person")
        self.store.rate(Act(group.id, "ann", stars), 0)
        return group

    def update(self) -> tuple[Version, UpdateStats, int]:
        steps = self.learner.update(self.engine)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: tuple[Version, UpdateStats, int] = end.value
                return result

    def learned(self) -> Version:
        """A version by an update on one more group."""
        self.draw()
        return self.update()[0]

    def uses(self) -> list[tuple[object, ...]]:
        return [tuple(row) for row in self.store._rows("SELECT act_id, version, objective FROM uses ORDER BY act_id, version, objective")]


@pytest.fixture
def store(runs: Path) -> Iterator[Store]:
    with closing(open_run(runs, None, base_model="fake", revision=None)) as opened:
        yield opened


def test_what_each_rating_taught_is_written_down(store: Store, runs: Path) -> None:
    room = Room(store, runs, max_staleness=0)
    late = room.studio.draw(room.engine, "", "person")
    room.draw()
    room.draw(stars=(3.0, 3.0, 3.0, 3.0))
    version, _, fresh = room.update()
    assert (version.number, fresh) == (1, 2)
    store.rate(Act(late.id, "ann", STARS), 1)  # by an older version than the trajectory objective takes
    room.update()
    first, again = [(1, 1, "forward_process"), (1, 1, "loop")], [(1, 2, "forward_process")]
    assert room.uses() == [*first, *again, (2, 1, "nothing"), (3, 2, "forward_process")]


@pytest.mark.parametrize(("replay", "times"), [(False, 1), (True, 3)])
def test_transitions_are_trained_once_or_with_replay_until_they_are_too_old(store: Store, runs: Path, replay: bool, times: int) -> None:
    room = Room(store, runs, max_staleness=2, replay=replay)
    room.draw()
    for _ in range(4):
        room.update()
        room.draw()
    assert [objective for act, _, objective in room.uses() if act == 1].count("loop") == times
    assert [objective for act, _, objective in room.uses() if act == 1].count("forward_process") == 4


def test_old_groups_are_read_from_disk_once(store: Store, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(store, runs, max_staleness=0)
    read: list[str] = []
    real = room.fake.read

    def reading(path: Path) -> Any:
        read.append(path.stem)
        return real(path)

    monkeypatch.setattr(room.fake, "read", reading)
    groups = [room.draw().id]
    for _ in range(3):
        room.update()
        groups.append(room.draw().id)
    room.update()
    assert [read.count(group) for group in groups] == [2, 2, 2, 1]


def test_only_so_many_older_groups_are_learned_again_the_newest(store: Store, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REPLAYED_GROUPS", 2)
    room = Room(store, runs)
    groups = []
    for _ in range(4):
        groups.append(room.draw().id)
        room.update()
    assert [lesson.group.id for lesson in room.fake.updates[-1]] == groups[1:]


def test_a_group_is_held_against_the_policy_that_drew_it(store: Store, runs: Path) -> None:
    """Or, where a rollback has left that one or its files are lost, against the nearest before it in the line."""
    room = Room(store, runs)
    for _ in range(3):
        room.learned()  # versions 1, 2, 3 of groups that were drawn by 0, 1, 2
    room.learner.rollback(room.engine, 1)
    room.learned()  # version 5 of a group that was drawn by 4
    kept = {number: room.fake.read(store.version_path(number) / ADAPTER) for number in (1, 4)}
    assert [drawn_by() for drawn_by in room.fake.drawn_by.values()] == [None, kept[1], kept[1], kept[4]]
    one, other = list(room.fake.drawn_by.values())[1:3]
    assert one() is other()  # so the trainer knows that the two are one's
    (store.version_path(4) / ADAPTER).write_bytes(b"damaged")
    assert [drawn_by() for drawn_by in room.fake.drawn_by.values()] == [None, kept[1], kept[1], kept[1]]


def test_moving_average_is_the_policys(store: Store, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(store, runs, ema=0.75)
    monkeypatch.setattr(room.fake, "next_weights", lambda ema: {"w": ema})
    room.draw()
    room.update()
    assert room.fake.published == 0.75


def test_a_lora_becomes_version_1_and_what_goes_back_to_it_refers_to_it(store: Store, runs: Path) -> None:
    """Lines of versions: 1 (the LoRA) and 2 from it; 3 back to the base, and 4 from that; 5 back to 2."""
    room = Room(store, runs)
    store.note(LORA, {"sha256": "abc"})
    version = room.learner.adopt(room.engine, {"w": 0.5})
    assert (version.number, version.parent, version.ratings, adopted(store)) == (1, 0, 0, 1)
    assert store.counts().updates == 0
    referred = {}
    for make in (lambda: version, lambda: room.learned(), lambda: room.learner.rollback(room.engine, 0), lambda: room.learned(), None):
        number = (make() if make else room.learner.rollback(room.engine, 2)).number
        room.learner.restore(room.engine, number)
        referred[number] = room.fake.referred
        assert room.fake.published == room.fake.read(store.version_path(number) / ADAPTER)["w"]
    assert referred == {1: True, 2: True, 3: False, 4: False, 5: True}


def test_a_run_that_began_from_the_base_refers_to_it(store: Store, runs: Path) -> None:
    room = Room(store, runs)
    store.note(LORA, {"sha256": ""})
    room.learner.restore(room.engine, room.learned().number)
    assert (room.fake.referred, adopted(store)) == (False, 0)


def test_closing_in_the_middle_leaves_the_update_aborted(store: Store, runs: Path) -> None:
    room = Room(store, runs)
    room.draw()
    steps = room.learner.update(room.engine)
    next(steps)
    steps.close()
    assert [(update.status, update.reason) for update in store.updates()] == [("aborted", "The program was closed during this update.")]
    assert store.counts().pending == 1


def test_a_picture_by_strength_lies_between_base_and_tuned(store: Store, runs: Path) -> None:
    room = Room(store, runs)
    room.draw()
    room.update()
    looks = [Look(0), Look(1, 0.0), Look(1, 0.5), Look(1), Look(1, 1.5)]
    base, off, half, tuned, more = (room.studio.picture(room.engine, "a cat", 1, look).tobytes() for look in looks)
    assert base == off
    assert len({base, half, tuned, more}) == 4
    assert tuned == room.fake.pictures("a cat", SETTINGS, (1,), who="published")[0].tobytes()
