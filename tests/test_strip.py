"""The strip: which pictures are drawn, in which order, and which are shown."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from loophil.prompts import PromptSource
from loophil.store import Store, open_run
from loophil.strip import STRIP_SEED, Strip
from loophil.types import Look
from tests.fake_engine import PROMPTS
from tests.test_jobs import Room


@pytest.fixture
def room(runs: Path) -> Iterator[Room]:
    with closing(open_run(runs, None, base_model="fake", revision=None)) as store:
        yield Room(store, runs)


def draw_all(strip: Strip, room: Room) -> list[str]:
    """Draws what is due; the new files, in order, without what decided each."""
    drawn: list[str] = []
    before = files(room.store)
    while strip.due:
        strip.draw(room.engine)
        drawn += [file.rpartition("-")[0] for file in files(room.store) - before]
        before = files(room.store)
    return drawn


def files(store: Store) -> set[str]:
    return {path.name for path in store.images.glob("strip*")}


def test_pictures_are_whole_and_in_order(room: Room) -> None:
    """First prompts before others, newest versions before older ones, and nothing for versions that were left far behind."""
    strip = Strip(room.studio, room.fake.clock)
    for _ in range(11):
        room.learned()
    for version in (0, 2, 3, 11):
        strip.want(version)
    assert strip.pictures() == {version: dict.fromkeys(range(4), "") for version in (0, 11)}
    assert draw_all(strip, room) == [f"strip-{version}-{i}" for i in range(4) for version in (11, 0)]
    assert {file for row in strip.pictures().values() for file in row.values()} == files(room.store)
    assert [list(row) for row in strip.pictures().values()] == [[0, 1, 2, 3]] * 2
    strip.want(11)
    assert not strip.due
    assert list(room.store.images.glob("*.tmp")) == []


def test_passed_by_versions_get_their_own_picture_later(room: Room) -> None:
    strip, drawn = Strip(room.studio, room.fake.clock), {}
    for _ in range(3):
        version = room.learned().number
        drawn[version] = room.studio.picture(room.engine, strip.prompts[0], STRIP_SEED, Look(version)).tobytes()
    assert len(set(drawn.values())) == 3
    strip.want(1)
    strip.want(3)
    draw_all(strip, room)
    for version in (1, 3):
        assert Image.open(room.store.images / strip.pictures()[version][0]).tobytes() == drawn[version]
    assert room.fake.version == 3


def test_no_picture_is_shown_under_a_prompt_it_was_not_drawn_of(room: Room) -> None:
    """The list has another first prompt from now on; files of that place, and of the former form of name, go when it is drawn."""
    before = Strip(room.studio, room.fake.clock)
    before.renew()
    draw_all(before, room)
    (room.store.images / "strip-0-0.png").write_bytes(b"of the former form")
    room.studio.prompts = PromptSource(("a cat", *PROMPTS[1:]), seed=0)
    strip = Strip(room.studio, room.fake.clock)
    assert strip.pictures() == {0: {i: before.pictures()[0][i] for i in (1, 2, 3)}}
    strip.renew()
    assert strip.pictures()[0][0] == ""
    assert draw_all(strip, room) == ["strip-0-0"]
    assert files(room.store) == set(strip.pictures()[0].values())


@pytest.mark.parametrize("knob", ["guidance_scale", "num_inference_steps", "eta", "negative_prompt", "size"])
def test_no_picture_is_shown_that_would_be_drawn_otherwise_today(room: Room, knob: str) -> None:
    strip = Strip(room.studio, room.fake.clock)
    strip.renew()
    draw_all(strip, room)
    shown, draw = strip.pictures(), room.studio.settings.draw
    same = draw.model_copy(update={"num_images_per_prompt": 2})
    other = draw.model_copy(update={knob: "blue" if knob == "negative_prompt" else 5})
    for knobs, expected in ((same, shown), (other, {}), (draw, shown)):
        room.studio.settings = room.studio.settings.model_copy(update={"draw": knobs})
        assert strip.pictures() == expected


def test_a_version_whose_files_are_lost_gets_no_picture(room: Room) -> None:
    strip = Strip(room.studio, room.fake.clock)
    for _ in range(2):
        room.learned()
    (room.store.version_path(1) / "adapter.safetensors").write_bytes(b"damaged")
    strip.renew()
    draw_all(strip, room)
    assert list(strip.pictures()) == [0, 2]


def test_a_picture_that_fails_is_not_due_again_at_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    strip = Strip(room.studio, room.fake.clock)
    strip.renew()

    def pictures(*args: object, **kwargs: object) -> None:
        assert strip.pictures()[0][0] == ""  # while it is drawn it is due
        raise ZeroDivisionError

    monkeypatch.setattr(room.fake, "pictures", pictures)
    with pytest.raises(ZeroDivisionError):
        strip.draw(room.engine)
    assert strip.pictures() == {0: dict.fromkeys((1, 2, 3), "")}
