"""Runs: one is open, others can be opened, begun, renamed and deleted, and whatever goes wrong, one is open afterwards."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loophil.config import Settings
from loophil.errors import ConfigError, InvalidInput, LoopHILError, RunError
from loophil.loop import Loop
from loophil.prompts import PromptSource, load_prompts
from loophil.runs import Runs
from loophil.session import Session
from loophil.store import describe_runs, open_run
from loophil.types import Act
from tests.fake_engine import FakeEngine, no_export

Build = Callable[[Settings], Session]


def build(settings: Settings) -> Session:
    """As loophil.build does, on an engine without torch; a model named "broken" cannot be opened."""
    prompts = load_prompts(settings.draw.prompts)
    if settings.model == "broken":
        raise ConfigError("The model cannot be opened.")
    store = open_run(settings.runs, settings.run, base_model=settings.model, revision=None, settings_json=settings.model_dump_json(exclude={"auth"}))
    loop = Loop(store, settings, PromptSource(prompts, seed=settings.seed), FakeEngine().engine, dict.fromkeys(settings.rewards, 1.0))
    loop.start()
    return Session(loop, no_export)


@pytest.fixture
def shelf(runs: Path) -> Iterator[Runs]:
    settings = Settings(runs=runs, model="fake", run="one").changed({"loop.threaded": False})
    with closing(Runs(settings, build)) as opened:
        yield opened


def opened(shelf: Runs) -> tuple[str, int]:
    """(name, how many groups are rated) of the open run."""
    return shelf.session.status().run, shelf.session.status().ratings // 4


def rate(shelf: Runs) -> None:
    shelf.session.rate(Act(shelf.session.new_group().id, "ann", (1.0, 2.0, 3.0, 4.0)))


def test_runs_are_opened_one_at_a_time_and_each_keeps_what_it_has(shelf: Runs, runs: Path) -> None:
    rate(shelf)
    first = shelf.session
    shelf.new("two", {})
    assert opened(shelf) == ("two", 0)
    with pytest.raises(RunError, match="is closed"):
        first.rate(Act("f" * 32, "ann", (1.0,) * 4))
    open_run(runs, "one", base_model="fake", revision=None).close()  # nobody holds it
    shelf.open("one")
    assert opened(shelf) == ("one", 1)
    assert [(info.name, info.base_model, info.ratings, info.version) for info in shelf.all()] == [("one", "fake", 4, 1), ("two", "fake", 0, 0)]
    same = shelf.session
    shelf.open("one")
    assert shelf.session is same


def test_a_run_comes_back_with_its_own_knobs_and_prompts(shelf: Runs, runs: Path) -> None:
    shelf.new("two", {"draw.num_images_per_prompt": 3, "learn.beta": 0.75}, "a {cat|cat}\n\n# none\na dog\n")
    assert shelf.session.prompts == ("a {cat|cat}", "a dog")
    assert shelf.session.k == 3
    shelf.open("one")
    assert (shelf.session.k, shelf.session.settings.learn.beta) == (4, 1.0)
    shelf.open("two")
    assert (shelf.session.k, shelf.session.settings.learn.beta) == (3, 0.75)
    assert shelf.session.prompts == ("a {cat|cat}", "a dog")
    assert shelf.session.settings.runs == runs


def test_only_the_run_that_the_program_opens_begins_from_the_lora_of_its_flag(runs: Path) -> None:
    asked: list[tuple[str | None, str]] = []

    def noting(settings: Settings) -> Session:
        asked.append((settings.run, settings.lora.file))
        return build(settings)

    settings = Settings(runs=runs, model="fake", run="one").changed({"loop.threaded": False, "lora.file": "mine.zip"})
    with closing(Runs(settings, noting)) as shelf:
        shelf.new("two", {})
        shelf.open("one")
    assert asked == [("one", "mine.zip"), ("two", ""), ("one", "")]


def test_the_open_run_is_opened_anew_with_other_knobs(shelf: Runs) -> None:
    rate(shelf)
    shelf.session.adjust({"learn.beta": 0.25})
    shelf.change({"draw.num_images_per_prompt": 2}, "only this")
    assert opened(shelf) == ("one", 1)
    assert (shelf.session.k, shelf.session.prompts, shelf.session.settings.learn.beta) == (2, ("only this",), 0.25)


def test_a_new_start_opens_the_last_run_as_it_was_unless_a_flag_says_otherwise(shelf: Runs, runs: Path) -> None:
    """The program was started with --model fake; the run was begun on the page with another model, k, rewards and prompts."""
    shelf.new("two", {"model": "other", "draw.num_images_per_prompt": 3, "rewards": {"jpeg": 1.0}}, "a dog")
    shelf.session.adjust({"rewards": {"jpeg": 0.25}, "learn.beta": 0.75})
    shelf.close()
    again = Runs(Settings(runs=runs).changed({"loop.threaded": False}), build)
    settings = again.session.settings
    assert (again.session.status().run, settings.model, again.session.k, again.session.prompts) == ("two", "other", 3, ("a dog",))
    assert (settings.rewards, settings.learn.beta) == ({"jpeg": 0.25}, 0.75)
    again.close()
    again = Runs(Settings(runs=runs, rewards={"clip_score": 2.0}).changed({"loop.threaded": False, "draw.num_images_per_prompt": 2}), build)
    assert (again.session.k, again.session.settings.rewards) == (2, {"clip_score": 2.0})
    again.session.new_group()
    again.close()
    with pytest.raises(RunError, match="belongs to other"):
        Runs(Settings(runs=runs, model="fake"), build)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda shelf: shelf.open("none"), "There is no run 'none'. Choose from: one"),
        (lambda shelf: shelf.new("one", {}), "There is a run 'one' already"),
        (lambda shelf: shelf.new("../up", {}), "not a run name"),
        (lambda shelf: shelf.new("two", {"model": "broken"}), "cannot be opened"),
        (lambda shelf: shelf.new("two", {"learn.beta": -1}), "learn.beta"),
        (lambda shelf: shelf.new("two", {}, "fine\na {cat"), "Line 2 of your list"),
        (lambda shelf: shelf.new("two", {}, "# nothing"), "Your list is empty"),
        (lambda shelf: shelf.change({"draw.prompts": "no-such-list"}), "There is no prompt list"),
        (lambda shelf: shelf.rename("one", "../up"), "not a run name"),
        (lambda shelf: shelf.rename("none", "two"), "There is no run"),
        (lambda shelf: shelf.delete("one"), "open another one first"),
        (lambda shelf: shelf.delete("none"), "There is no run"),
    ],
)
def test_what_cannot_be_is_said_and_the_run_stays_open(shelf: Runs, runs: Path, act: Callable[[Runs], None], message: str) -> None:
    rate(shelf)
    with pytest.raises(LoopHILError, match=message):
        act(shelf)
    assert opened(shelf) == ("one", 1)
    rate(shelf)
    assert opened(shelf) == ("one", 2)
    assert [info.name for info in describe_runs(runs)] == ["one"]
    assert not (runs / "two").exists()


def test_runs_get_other_names(shelf: Runs, runs: Path) -> None:
    rate(shelf)
    shelf.change({}, "a dog")
    shelf.rename("one", "first")
    assert opened(shelf) == ("first", 1)
    assert shelf.session.prompts == ("a dog",)
    shelf.new("two", {"draw.prompts": "world"})
    shelf.rename("first", "again")
    assert opened(shelf) == ("two", 0)
    assert {info.name for info in shelf.all()} == {"again", "two"}
    with pytest.raises(InvalidInput, match="already"):
        shelf.rename("again", "two")


def test_a_run_that_somebody_else_has_open_is_neither_deleted_nor_renamed(shelf: Runs, runs: Path) -> None:
    with closing(open_run(runs, "other", base_model="fake", revision=None)):
        acts: list[Callable[[], None]] = [lambda: shelf.delete("other"), lambda: shelf.rename("other", "mine"), lambda: shelf.open("other")]
        for act in acts:
            with pytest.raises(RunError, match="open in another process"):
                act()
    assert opened(shelf) == ("one", 0)
    shelf.delete("other")
    assert [info.name for info in shelf.all()] == ["one"]


def test_a_run_that_cannot_be_read_is_not_listed(shelf: Runs, runs: Path) -> None:
    (runs / "bad").mkdir()
    (runs / "bad" / "run.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    assert [info.name for info in shelf.all()] == ["one"]
