"""What stops automatic rounds: drift, sameness, falling ratings; and that it lasts until somebody answers."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from loophil.alarms import RATED, TWINS_EVERY, WINDOW, Watch
from loophil.config import LoopKnobs
from loophil.jobs import LORA, Engine, Studio
from loophil.prompts import PromptSource
from loophil.store import Store, open_run
from loophil.types import Act, Group
from tests.fake_engine import PROMPTS, FakeEngine, fake_settings

KNOBS = LoopKnobs(drift_cap_nats=1.0, diversity_floor=0.7)
NAN = float("nan")


def void(_: object) -> None:
    """For the types: what writes returns nothing."""


class Room:
    """A store whose groups a fake engine draws."""

    def __init__(self, store: Store, runs: Path) -> None:
        self.store, self.fake = store, FakeEngine()
        self.engine: Engine = self.fake.engine(print)
        self.studio = Studio(store, fake_settings(runs), PromptSource(PROMPTS, seed=0))
        self.watch = Watch(store)

    def draw_by(self, version: int) -> None:
        """The version that draws from now on; published, if it was not."""
        while self.store.current_version().number < version:
            self.store.publish(None, parent=0, kind="rollback", write=lambda folder: void((folder / "w").write_text("")))
        self.fake.version = version

    def rated(self, version: int, kind: str, stars: float) -> Group:
        self.draw_by(version)
        group = self.studio.draw(self.engine, "", "person")
        self.store.rate(Act(group.id, "ann", (stars,) * 4, kind=kind), version)
        return group

    def rounds(self, versions: range, drift: float = 0.0) -> list[int | None]:
        """One automatic group by each version: what the watch says of each."""
        said = []
        for version in versions:
            self.draw_by(version)
            group = self.studio.draw(self.engine, "", "auto")
            said.append(self.watch.look(group, drift, KNOBS, partial(self.studio.twins, self.engine, group)))
        return said


@pytest.fixture
def room(runs: Path) -> Iterator[Room]:
    with closing(open_run(runs, None, base_model="fake", revision=None)) as store:
        yield Room(store, runs)


def test_a_run_that_began_from_a_lora_goes_back_to_it_and_not_to_the_base(room: Room) -> None:
    room.store.note(LORA, {"sha256": "abc"})
    room.store.publish(None, parent=0, kind="update", write=lambda folder: void((folder / "w").write_text("")))
    assert room.rounds(range(2, 2 + WINDOW), drift=2.0) == [None] * (WINDOW - 1) + [1]
    assert room.watch.alarm.endswith("Version 1 draws again.")


def test_a_window_of_drift_raises_the_alarm_and_names_the_last_good_version(room: Room) -> None:
    assert room.rounds(range(1, WINDOW + 1), drift=0.5) == [None] * WINDOW
    assert room.rounds(range(WINDOW + 1, WINDOW + 3), drift=1.6) == [None, WINDOW + 1]
    far = "pictures went 1.1 nats a step from the base, and --loop.drift-cap-nats is 1"
    assert room.watch.alarm == f"Automatic rounds have stopped: {far}. Version {WINDOW + 1} draws again."
    assert room.rounds(range(20, 30), drift=99.0) == [None] * 10  # it has said so


def test_without_transitions_there_is_no_drift_to_be_alarmed_by(room: Room) -> None:
    assert set(room.rounds(range(10), drift=NAN)) == {None}
    room.watch = Watch(room.store)
    assert set(room.rounds(range(10, 12), drift=NAN)) == {None}
    assert room.watch.alarm == ""


def grey(prompt: str, seed: int, weight: float) -> Image.Image:
    """The base's pictures differ, the tuned ones hardly."""
    return Image.new("RGB", (8, 8), (seed % 250 if weight == 0 else seed % 50, 0, 0))


def test_pictures_that_grow_alike_raise_the_alarm(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.fake, "_picture", grey)
    room.fake.published = 1.0
    rounds = TWINS_EVERY * (WINDOW - 1) + 1
    said = room.rounds(range(1, rounds + 1))
    assert said == [None] * (rounds - 1) + [rounds - TWINS_EVERY]  # the last that was looked at
    assert "pictures of one prompt differ" in room.watch.alarm


def test_what_differs_as_the_base_s_raises_none(room: Room) -> None:
    room.fake.published = 1.0
    assert set(room.rounds(range(1, 20))) == {None}


def test_the_base_is_asked_now_and_then_only(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.studio, "twins", asked := Mock(wraps=room.studio.twins))
    room.rounds(range(1, 2 * TWINS_EVERY + 1))
    assert asked.call_count == 2


def falls(room: Room, before: str, after: str) -> None:
    stars = {"good": 5.0, "bad": 1.0, "best": 3.0}
    for i in range(RATED):
        room.rated(3, before, stars[before] - 0.1 * (i % 2) * (before == "good"))
    for i in range(RATED):
        room.rated(7, after, stars[after] + 0.1 * (i % 2) * (after == "bad"))


def test_ratings_that_fall_raise_the_alarm_and_name_the_version_before(room: Room) -> None:
    falls(room, "good", "bad")
    assert room.rounds(range(8, 10)) == [3, None]
    assert room.watch.alarm == "Automatic rounds have stopped: your ratings have fallen from 5.0 to 1.1 stars. Version 3 draws again."


@pytest.mark.parametrize(("before", "after"), [("bad", "good"), ("good", "good"), ("best", "bad")])
def test_ratings_that_rise_or_say_no_level_raise_none(room: Room, before: str, after: str) -> None:
    falls(room, before, after)
    assert set(room.rounds(range(8, 16))) == {None}


def test_an_alarm_outlives_the_process_until_somebody_answers(room: Room) -> None:
    falls(room, "good", "bad")
    room.rounds(range(8, 8 + WINDOW))
    again = Watch(room.store)
    assert again.alarm == room.watch.alarm != ""
    again.dismiss()
    room.watch = Watch(room.store)
    assert room.watch.alarm == ""
    assert set(room.rounds(range(20, 30))) == {None}  # what had fallen is answered for
    assert room.rounds(range(30, 30 + WINDOW), drift=4.0) != [None] * WINDOW


def test_readings_outlive_the_process(room: Room) -> None:
    room.rounds(range(1, WINDOW), drift=2.0)
    room.watch = Watch(room.store)
    assert room.rounds(range(WINDOW, WINDOW + 1), drift=2.0) == [0]
