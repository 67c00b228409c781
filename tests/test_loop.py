"""The loop: what is done next, for raters of every speed, and what becomes of failures. On a virtual clock, which only the fake engine's work moves.

The worker's thread is not started: the test runs its jobs one by one, so that every interleaving is the same each time.
"""

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loophil import loop as loop_module
from loophil.alarms import WINDOW
from loophil.decide import Situation, decide
from loophil.errors import ConfigError, InvalidInput, LearningError
from loophil.jobs import Engine
from loophil.loop import MOST_OWED, Loop
from loophil.session import Session
from loophil.strip import STRIP_BACK
from loophil.types import GO_ON, RETRY, Act, Group, Lesson
from loophil.understanding import FEWEST
from tests.fake_engine import DRAW_SECONDS, UPDATE_SECONDS, FakeEngine, fake_loop, no_export

STARS = (1.0, 2.0, 4.0, 5.0)
TIES = (3.0, 3.0, 3.0, 3.0)


@dataclass
class Stage:
    """A loop whose jobs the test runs."""

    fake: FakeEngine
    loop: Loop
    session: Session

    def run(self, until: float = math.inf) -> None:
        """Works, and sleeps when there is nothing to do, until this moment or until nothing will ever happen."""
        clock = self.fake.clock
        while clock.now < until and (self.loop.worker.run_one() or clock.sleep()):
            pass

    def jobs(self, n: int) -> None:
        for _ in range(n):
            assert self.loop.worker.run_one()

    def rate(self, group: Group, stars: tuple[float | None, ...] = STARS, rater: str = "ann", **given: Any) -> int:
        return self.session.rate(Act(group.id, rater, stars, **given)).act

    def next(self, rater: str = "ann") -> Group:
        return self.session.upcoming(rater)[0]

    def spent(self, what: str, start: float, end: float) -> float:
        """Seconds of this work between two moments."""
        return sum(max(0.0, min(ended, end) - max(began, start)) for name, began, ended in self.fake.spans if name == what)

    def taught(self) -> list[list[str]]:
        """The groups that each update learned from for the first time."""
        return [[lesson.group.id for lesson in lessons if lesson.fresh] for lessons in self.fake.updates]


Staged = Callable[..., Stage]


def void(_: object) -> None:
    """For the types: an event returns nothing."""


@pytest.fixture
def staged(runs: Path) -> Iterator[Staged]:
    opened: list[Session] = []

    def make(**knobs: Any) -> Stage:
        fake = FakeEngine()
        loop = fake_loop(runs, fake, **knobs)
        opened.append(Session(loop, no_export))
        return Stage(fake, loop, opened[-1])

    yield make
    for session in opened:
        session.close()


# deciding


@pytest.mark.parametrize(
    ("situation", "work"),
    [
        (Situation(loaded=False, asked=True, learning=True), "load"),
        (Situation(loaded=False, resting=True), ""),
        (Situation(loaded=False, resting=True, asked=True), "draw"),  # whoever asked hears why it cannot be
        (Situation(), "prefetch"),
        (Situation(ready=4), ""),
        (Situation(resting=True, learning=True, unscored=1), ""),
        (Situation(asked=True, ready=4), "draw"),
        (Situation(present=True, ready=0), "draw"),
        (Situation(present=True, ready=1), "prefetch"),
        (Situation(present=True, resting=True), ""),
        (Situation(asked=True, unscored=5), "score"),  # those who ask cannot keep the rewards from ever being asked
        (Situation(asked=True, learning=True, owed=0.0), "update"),
        (Situation(asked=True, learning=True, owed=-0.1), "draw"),
        (Situation(unscored=1, learning=True), "score"),
        (Situation(again_due=True, learning=True), "score"),
        (Situation(again_due=True, asked=True, target=0), "draw"),  # asking again never keeps a person waiting
        (Situation(learning=True, owed=0.0), "update"),
        (Situation(learning=True, owed=-0.1), "prefetch"),
        (Situation(learning=True, owed=-0.1, ready=4), "update"),
        (Situation(ready=4, strip_due=True, auto_due=True), "strip"),
        (Situation(strip_due=True, learning=True), "update"),
        (Situation(strip_late=True, learning=True, unscored=1), "strip"),
        (Situation(ready=4, auto_due=True), "auto"),
        (Situation(ready=4, said=True, strip_due=True, auto_due=True), "taste"),
        (Situation(ready=3, said=True), "prefetch"),
        (Situation(target=0), ""),
    ],
)
def test_decisions(situation: Situation, work: str) -> None:
    assert decide(situation) == work


def test_deciding_takes_fewer_than_15_lines() -> None:
    import inspect

    assert len(inspect.getsource(decide).splitlines()) < 15


# raters of all speeds


@dataclass
class Rater:
    """Looks at a group for `seconds`, rates it, and takes the next; `waits` are the seconds without one. Looks again every 0.1 s."""

    stage: Stage
    seconds: float
    until: float
    name: str = "ann"
    rated: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    free: float = 0.0

    def look(self) -> None:
        clock = self.stage.fake.clock
        groups = self.stage.session.upcoming(self.name)
        if not groups:
            clock.at(clock.now + 0.1, self.look)
            return
        if self.rated:
            self.waits.append(clock.now - self.free)
        clock.at(clock.now + self.seconds, lambda: self.rate(groups[0]))

    def rate(self, group: Group) -> None:
        clock = self.stage.fake.clock
        self.stage.rate(group, tuple(random.Random(group.id).sample(STARS, 4)), self.name)
        self.rated.append(group.id)
        self.free = clock.now
        if clock.now < self.until:
            self.look()


@pytest.mark.parametrize(("seconds", "p50", "p95"), [(1.0, 4.1, 4.6), (2.5, 2.6, 3.1), (10.0, 0.0, 0.0)])
def test_every_rated_group_is_trained_in_time_and_nobody_starves(staged: Staged, seconds: float, p50: float, p95: float) -> None:
    """Drawing a group takes 2 s, learning from it 3 s: 5 s in all. So who takes 1 s waits 4, who takes 2.5 s waits 2.5, and who takes 10 s never.

    All that is pending goes into each update, and updating has at least half of the time.
    """
    stage = staged()
    pending_at_update = watch_pending(stage)
    stage.run(until=20.0)
    rater = Rater(stage, seconds, until=320.0)
    stage.fake.clock.at(20.0, rater.look)
    stage.run()
    waits = rater.waits[10:]  # the stock of the first seconds is used up
    print(
        f"\n{seconds} s a group: {len(rater.rated)} groups, waits p50 {np.percentile(waits, 50):.1f} s, p95 {np.percentile(waits, 95):.1f} s,",
        end=" ",
    )
    print(f"ages up to {max(lesson.age for lessons in stage.fake.updates for lesson in lessons if lesson.fresh)}, {len(stage.taught())} updates")
    assert len(rater.rated) > 0.95 * 300 / max(5.0, seconds)
    assert sorted(group for groups in stage.taught() for group in groups) == sorted(rater.rated)
    first: dict[str, int] = {}  # age at the first time; a group that is shown once more is old by then
    for lesson in (lesson for lessons in stage.fake.updates for lesson in lessons if lesson.fresh):
        first.setdefault(lesson.group.id, lesson.age)
    assert max(first.values()) <= 4
    assert pending_at_update == [len(groups) for groups in stage.taught()]
    assert np.percentile(waits, 50) <= p50
    assert np.percentile(waits, 95) <= p95
    if seconds < 5.0:  # from the first rating on there is always something to learn
        for start in range(25, 260, 5):
            assert stage.spent("update", start, start + 60) >= stage.spent("draw", start, start + 60), start


def watch_pending(stage: Stage) -> list[int]:
    """How many rated groups the store holds that nothing learned from, at the start of each update."""
    counted: list[int] = []
    begin = stage.loop.store.begin_update

    def counting(base_version: int) -> int:
        counted.append(stage.loop.store.counts().pending)
        return begin(base_version)

    stage.loop.store.begin_update = counting  # type: ignore[method-assign]
    return counted


def test_flood_of_wishes_leaves_updating_its_half(staged: Staged) -> None:
    """A program that asks for the next group as soon as it has rated one."""
    stage = staged()
    clock = stage.fake.clock

    def ask() -> None:
        stage.loop.draw("a wish", offered=False).add_done_callback(rate)

    def rate(future: Future[Group]) -> None:
        stage.rate(future.result())
        if clock.now < 100:
            ask()

    ask()
    stage.run()
    assert stage.spent("update", 10, 90) >= stage.spent("draw", 10, 90)
    assert stage.loop.status.pending == 0


def test_several_raters_share_one_stock_and_all_they_rate_is_learned(staged: Staged) -> None:
    stage = staged()
    raters = [Rater(stage, seconds, until=100.0, name=name) for name, seconds in (("ann", 1.0), ("bob", 2.5), ("eve", 10.0))]
    for rater in raters:
        stage.fake.clock.at(10.0, rater.look)
    stage.run()
    rated = {group for rater in raters for group in rater.rated}
    assert all(len(rater.rated) > 5 for rater in raters)
    assert {group for groups in stage.taught() for group in groups} == rated
    assert stage.loop.status.pending == 0


@pytest.mark.parametrize(("seconds", "depth"), [(1.0, 4), (2.5, 3), (10.0, 2)])
def test_stock_follows_the_rater(staged: Staged, seconds: float, depth: int) -> None:
    """Before anyone has rated, as for 2.5 s."""
    stage = staged()
    futures = [stage.loop.draw("a wish", offered=False) for _ in range(5)]
    stage.run()
    assert stage.session.status().ready == 3
    stage.session.pause()
    for future in futures:
        stage.fake.clock.now += seconds
        stage.rate(future.result())
    for group in stage.session.upcoming("ann"):
        stage.loop.stock.remove(group.id)
        assert group.prompt != "a wish"
    stage.run()
    assert stage.session.status().ready == depth


# drawing for those who wait


def test_wait_of_an_empty_board_ends_between_two_steps_of_an_update(staged: Staged) -> None:
    stage = staged(prefetch=1)
    stage.run()
    stage.rate(stage.next())
    stage.jobs(1)
    kinds = [what for what, _, _ in stage.fake.spans if what in ("draw", "update")]
    assert kinds == ["draw", "update", "draw"] + ["update"] * 11
    assert stage.session.status().ready == 1
    assert stage.next().policy_version == 0


def test_wish_is_drawn_next_and_offered_first(staged: Staged) -> None:
    stage = staged()
    stage.run()
    stage.session.ask("a blue dog")
    stage.run()
    assert stage.next().prompt == "a blue dog"
    assert stage.loop.prompts.position == 3


def test_group_that_was_asked_for_is_not_offered_to_others(staged: Staged) -> None:
    stage = staged()
    future = stage.loop.draw("mine", offered=False)
    stage.run()
    assert future.result().prompt == "mine"
    assert all(group.prompt != "mine" for group in stage.session.upcoming("ann"))


def test_empty_wish_is_the_next_prompt_of_the_list(staged: Staged) -> None:
    stage = staged()
    future = stage.loop.draw("", offered=False)
    stage.jobs(2)
    assert future.result().prompt.startswith("picture number")
    assert stage.loop.prompts.position == 1


def test_wishes_are_limited(staged: Staged) -> None:
    stage = staged()
    for i in range(20):
        stage.session.ask(f"wish {i}")
    with pytest.raises(InvalidInput, match="20 groups are waiting to be drawn already"):
        stage.session.ask("one more")


def test_group_that_was_taken_is_replaced(staged: Staged) -> None:
    stage = staged(prefetch=2)
    stage.run()
    first = stage.session.new_group()
    assert stage.session.status().ready == 1
    stage.run()
    assert stage.session.status().ready == 2
    assert first.id not in {group.id for group in stage.session.upcoming("ann")}


# learning


def test_one_update_takes_all_that_is_fresh_and_older_groups_again(staged: Staged) -> None:
    stage = staged()
    stage.run()
    first = stage.session.upcoming("ann")
    for group in first:
        stage.rate(group)
    stage.run()
    assert stage.taught() == [[group.id for group in first]]
    stage.rate(stage.next())
    stage.run()
    assert [(lesson.fresh, lesson.age) for lesson in stage.fake.updates[1]] == [(False, 1)] * 3 + [(True, 1)]


def test_rating_during_an_update_is_learned_by_the_next(staged: Staged) -> None:
    stage = staged()
    stage.run()
    first, second, _ = stage.session.upcoming("ann")
    stage.rate(first)
    stage.fake.clock.at(stage.fake.clock.now + 1.0, lambda: void(stage.rate(second)))
    stage.run()
    assert stage.taught() == [[first.id], [second.id]]
    assert [lesson.age for lessons in stage.fake.updates for lesson in lessons if lesson.fresh] == [0, 1]


def test_ties_make_no_update_are_counted_and_go_along_with_the_next(staged: Staged) -> None:
    stage = staged()
    stage.run()
    tied, telling, _ = stage.session.upcoming("ann")
    stage.rate(tied, TIES)
    stage.run()
    assert (stage.taught(), stage.session.status().no_signal, stage.session.status().pending) == ([], 1, 1)
    stage.rate(telling)
    stage.run()
    assert stage.taught() == [[tied.id, telling.id]]
    status = stage.session.status()
    assert (status.no_signal, status.pending, status.updates) == (1, 0, 1)
    stage.rate(stage.next())
    stage.run()
    assert tied.id not in {lesson.group.id for lesson in stage.fake.updates[1]}
    assert stage.session.status().no_signal == 1


def test_skipped_group_is_not_offered_again_and_teaches_nothing(staged: Staged) -> None:
    stage = staged()
    stage.run()
    skipped = stage.next()
    stage.rate(skipped, (None,) * 4, kind="skip")
    stage.run()
    assert stage.taught() == []
    assert skipped.id not in {group.id for group in stage.session.upcoming("ann")}
    assert stage.session.status().pending == 0


def test_rating_too_late_for_the_only_objective_does_not_make_an_empty_version(staged: Staged) -> None:
    stage = staged(max_staleness=0, forward_passes=0)
    stage.run()
    late, soon, _ = stage.session.upcoming("ann")
    stage.rate(soon)
    stage.run()
    stage.rate(late)
    stage.run()
    assert (stage.session.status().policy_version, stage.session.status().pending) == (1, 1)
    teach(stage)
    assert (stage.session.status().policy_version, stage.session.status().pending) == (2, 0)


def test_pausing_stops_learning_only(staged: Staged) -> None:
    stage = staged()
    stage.run()
    assert stage.session.pause().paused
    for group in stage.session.upcoming("ann"):
        stage.rate(group)
    stage.run()
    assert (stage.taught(), stage.session.status().ready, stage.session.status().pending) == ([], 4, 3)
    assert not stage.session.resume().paused
    stage.run()
    assert (len(stage.taught()[0]), stage.session.status().pending) == (3, 0)


def test_pictures_change_by_a_refresh_only(staged: Staged) -> None:
    stage = staged(prefetch=1)
    stage.run()
    stage.rate(stage.next())
    stage.jobs(1)
    versions = [group.policy_version for group in stage.loop.store.unrated_groups(None)]
    assert versions == [0]  # slipped into the update, by the version of before
    assert stage.session.status().policy_version == stage.fake.version == 1


# ages


def test_stale_groups_are_dropped_unseen(staged: Staged) -> None:
    stage = staged(max_staleness=1)
    stage.run()
    shown = stage.session.upcoming("ann")
    assert len(shown) == 3
    stage.session.ask("a wish")
    stage.run()
    for _ in range(2):
        teach(stage)
    ready = {group.id for group in stage.session.upcoming("ann")}
    assert shown[2].id not in ready  # prefetched, and nobody had it before them
    assert {shown[0].id, shown[1].id} <= ready  # somebody looks at them
    assert stage.next().prompt == "a wish"
    files = {path.name for path in stage.session.images.iterdir()}
    assert not {ref.file for ref in shown[2].images} & files
    assert stage.rate(shown[0]) > 0


def teach(stage: Stage) -> None:
    """One version, by a group that is not of the stock."""
    future = stage.loop.draw("a lesson", offered=False)
    stage.run()
    stage.rate(future.result())
    stage.run()


def test_undone_rating_offers_the_group_to_the_same_rater_again(staged: Staged) -> None:
    stage = staged()
    stage.run()
    stage.session.pause()
    group = stage.session.upcoming("ann")[1]
    stage.rate(group)
    assert stage.session.undo("ann") == group
    assert stage.next("ann") == group
    assert group.id not in {g.id for g in stage.session.upcoming("bob")}
    assert (stage.session.status().ratings, stage.session.status().pending) == (0, 0)
    stage.rate(group, TIES)
    assert group.id not in {g.id for g in stage.session.upcoming("ann")}
    assert stage.session.undo("nobody") is None


# going back


def test_rollback_publishes_the_old_weights_as_a_new_version(staged: Staged) -> None:
    stage = staged()
    stage.run()
    for _ in range(2):
        teach(stage)
    weights = {1: stage.fake.read(stage.loop.store.version_path(1) / "adapter.safetensors")["w"], 0: 0.0}
    assert stage.fake.published != weights[1]
    for number, new in ((1, 3), (0, 4)):
        future = stage.loop.rollback(number)
        stage.run()
        version = future.result()
        assert (version.number, version.parent, version.kind) == (new, number, "rollback")
        assert stage.fake.published == stage.fake.learned == weights[number]
        assert stage.session.status().policy_version == stage.fake.version == new


def test_rollback_that_cannot_be_kept_changes_nothing(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged()
    stage.run()
    for _ in range(2):
        teach(stage)
    before = (stage.fake.published, stage.fake.version, stage.fake.momentum)
    monkeypatch.setattr(stage.loop.store, "publish", raising(OSError("disk full")))
    future = stage.loop.rollback(1)
    stage.run()
    assert isinstance(future.exception(), OSError)
    assert (stage.fake.published, stage.fake.version, stage.fake.momentum) == before
    assert stage.session.status().policy_version == 2


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


# failures


def test_failed_update_leaves_what_is_published_and_waits_for_something_new(staged: Staged) -> None:
    stage = staged()
    stage.run()
    first, second, third = stage.session.upcoming("ann")
    stage.fake.faults["update"] = [LearningError("The loss was not finite.")]
    stage.rate(first)
    stage.run()
    status = stage.session.status()
    assert (status.last_error, status.policy_version, status.pending, status.updates) == ("The loss was not finite.", 0, 1, 0)
    assert (stage.fake.published, stage.fake.learned, len(stage.fake.updates)) == (0.0, 0.0, 1)
    stage.run(until=stage.fake.clock.now + 100)
    assert len(stage.fake.updates) == 1
    stage.rate(second)
    stage.run()
    status = stage.session.status()
    assert stage.taught()[1:] == [[first.id, second.id]]
    assert (status.last_error, status.policy_version, status.pending) == (None, 1, 0)
    assert [update.status for update in stage.loop.store.updates()] == ["aborted", "committed"]
    assert stage.rate(third) > 0


def test_memory_that_ran_out_is_said_with_what_helps(staged: Staged) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch's."""

    stage = staged()
    stage.run()
    stage.fake.faults["update"] = [OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB ...")]
    stage.rate(stage.next())
    stage.run()
    said = stage.session.status()
    assert said.last_error == "The GPU ran out of memory while updating. Nothing is lost. A smaller --draw.size or --memory.offload group needs less."
    assert (said.remedies, said.policy_version) == ((RETRY,), 0)
    stage.loop.adjust(stage.session.settings.changed({"learn.micro_batch": 4}))
    stage.run()
    assert stage.session.status().policy_version == 0  # other knobs alone are no reason to try what failed
    stage.loop.retry()
    stage.run()
    said = stage.session.status()
    assert (said.last_error, said.remedies, said.policy_version) == (None, (), 1)
    assert stage.fake.learn is not None
    assert stage.fake.learn.micro_batch == 4


def test_less_memory_is_said_while_updating(staged: Staged) -> None:
    stage = staged()
    said: list[str] = []
    update = stage.fake.update

    def less(examples: Any) -> Any:
        steps = update(examples)
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                return end.value
            said.append(stage.loop.status.worker)
            yield (*done, "2 images at a time since memory ran out")

    stage.fake.update = less  # type: ignore[method-assign]
    stage.run()
    teach(stage)
    assert said[:2] == ["updating", "updating, 1 of 12, 2 images at a time since memory ran out"]


def test_whoever_waits_sees_how_far_it_is_and_what_it_needs(staged: Staged) -> None:
    stage = staged()
    said: dict[str, list[str]] = {"load": [], "update": []}
    stage.fake.hold = lambda what: said.get(what, []).append(stage.loop.status.worker)
    stage.fake.memory, stage.fake.note = (7, 24), lambda settings: "only the forward process learns."
    stage.run()
    assert said["load"] == ["loading the model, 1 of 1: nothing"]
    teach(stage)
    assert said["update"][:3] == ["updating", "updating, 1 of 12", "updating, 2 of 12"]
    assert stage.session.status().memory == (7, 24)
    assert stage.session.status().note == "only the forward process learns."
    assert stage.session.status().raters == 0
    for rater, page in (("ann", "1"), ("ann", "2"), ("bob", "3")):
        stage.session.upcoming(rater, page=page)
    assert stage.session.status().raters == 2


def test_whoever_waits_sees_what_is_being_drawn_and_how_far_a_slow_drawing_is(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fake_engine.DRAW_SECONDS", 4.0)
    stage, seen = staged(), list[Any]()

    def preview(clean: Any) -> Any:
        seen.append((stage.session.sketches(), stage.loop.status.worker))
        return [f"{len(clean)} pictures after step {len(seen)}"]

    stage.fake.preview = preview
    stage.run()
    # of the first group alone: then something is ready
    assert seen == [((), "drawing"), (["4 pictures after step 1"], "drawing, 2 of 2")]
    assert len(stage.loop.stock) > 1
    assert stage.session.sketches() == ()


def test_nobody_sees_what_is_drawn_for_somebody_else(staged: Staged) -> None:
    stage = staged()
    stage.fake.preview = lambda clean: pytest.fail("a sketch")
    stage.loop.draw("mine", offered=False)
    stage.jobs(2)  # load, draw
    assert [what for what, _, _ in stage.fake.spans] == ["load", "draw"]


def test_a_drawing_ends_with_the_program(staged: Staged) -> None:
    stage = staged()
    stage.fake.preview = lambda clean: stage.loop.close()
    stage.run()
    assert [what for what, _, _ in stage.fake.spans] == ["load", "draw"]
    assert (drawn(stage), stage.loop.status.last_error) == ([], None)


def test_loading_ends_with_the_program(staged: Staged) -> None:
    stage = staged()
    load = stage.fake.engine

    def slowly(say: Callable[[str], None]) -> Engine:
        engine = load(say)
        stage.loop.close()
        say("2 of 2: nothing")
        return engine

    stage.loop._load = slowly
    stage.run()
    assert [what for what, _, _ in stage.fake.spans] == ["load"]
    assert (stage.loop._engine, stage.loop.status.last_error) == (None, None)


def test_rating_that_fails_twice_is_set_aside_and_the_others_are_learned(staged: Staged) -> None:
    stage = staged()
    stage.run()
    poison = stage.next()
    stage.fake.faults["update"] = [LearningError("poison"), LearningError("poison")]
    stage.rate(poison)
    stage.run()
    for _ in range(2):
        teach(stage)
    assert [poison.id in groups for groups in stage.taught()] == [True, True, False]
    assert (stage.session.status().policy_version, stage.session.status().pending) == (1, 1)
    stage.rate(poison, tuple(reversed(STARS)))  # rated again, it is another rating
    stage.run()
    assert poison.id in stage.taught()[-1]


def test_version_that_cannot_be_written_is_as_a_failed_update(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged()
    stage.run()
    with monkeypatch.context() as patch:
        patch.setattr(stage.fake, "save", raising(OSError("No space left on device")))
        stage.rate(stage.next())
        stage.run()
    status = stage.session.status()
    assert (status.last_error, status.policy_version) == ("Updating failed: No space left on device", 0)
    assert (stage.fake.learned, stage.fake.momentum) == (0.0, 0.0)
    teach(stage)
    assert (stage.session.status().policy_version, stage.session.status().last_error) == (1, None)


def test_failing_drawing_rests_and_comes_back(staged: Staged) -> None:
    stage = staged()
    stage.fake.faults["draw"] = [RuntimeError("out of memory")] * 2
    stage.jobs(2)
    assert stage.session.status().last_error == "Drawing failed: out of memory"
    assert not stage.loop.worker.run_one()
    stage.fake.clock.now += 9.0
    assert not stage.loop.worker.run_one()
    stage.fake.clock.now += 1.1
    stage.jobs(1)
    assert not stage.loop.worker.run_one()
    stage.fake.clock.now += 10.1
    stage.run()
    assert (stage.session.status().last_error, stage.session.status().ready) == (None, 3)


def test_person_who_asked_hears_of_the_failure_and_nothing_rests(staged: Staged) -> None:
    stage = staged()
    stage.run()
    stage.fake.faults["draw"] = [RuntimeError("out of memory")]
    future = stage.loop.draw("a wish", offered=True)
    stage.run()
    assert str(future.exception()) == "out of memory"
    assert stage.session.status().last_error == "Drawing what was asked for failed: out of memory"
    stage.rate(stage.next())
    stage.run()
    assert stage.session.status().last_error is None


@pytest.mark.parametrize(("error", "again"), [(OSError("no network"), True), (ConfigError("There is no such model."), False)])
def test_model_that_cannot_be_loaded_is_shown_and_tried_again_where_that_may_help(staged: Staged, error: Exception, again: bool) -> None:
    stage = staged()
    stage.fake.faults["load"] = [error]
    stage.jobs(1)
    assert str(error) in str(stage.session.status().last_error)
    assert not stage.loop.worker.run_one()
    assert stage.session.status().worker == "without a model"
    stage.fake.clock.now += 11.0
    assert stage.loop.worker.run_one() == again
    future = stage.loop.draw("a wish", offered=False)  # somebody asks: it is tried anyway
    stage.run()
    assert future.result().prompt == "a wish"
    assert (stage.fake.loads, stage.session.status().last_error, stage.session.status().ready) == (2, None, 3)


def test_model_whose_adapter_does_not_fit_is_not_used(staged: Staged, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged()
    stage.run()
    teach(stage)
    stage.session.close()
    stage = staged()
    monkeypatch.setattr(stage.fake, "load_weights", raising(ConfigError("The LoRA does not fit.")))
    stage.run()
    assert stage.session.status().last_error == "The LoRA does not fit."
    future = stage.loop.draw("a wish", offered=False)
    stage.run()
    assert isinstance(future.exception(), ConfigError)


def test_rewards_are_asked_before_learning_and_one_that_fails_is_missing_with_its_reason(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged(rewards={"dark": 1.0, "odd": 1.0})

    def score(images: Any, prompts: Any, rewards: Any) -> Any:
        values = {"dark": (np.array([1.0, 2.0, 3.0, 4.0]), ""), "odd": (np.full(4, np.nan), "odd failed")}
        return {reward: values[reward] for reward in rewards}

    monkeypatch.setattr(stage.fake, "score", score)
    stage.run()
    assert stage.session.status().missing_rewards == {"odd": "odd failed"}
    group = stage.next()
    stage.rate(group)
    stage.run()
    assert stage.fake.updates[0][0].shares == pytest.approx({"human:ann": 0.4, "dark": 0.6, "odd": 0.0}, abs=0.2)


def test_reward_that_raises_does_not_stop_the_loop(staged: Staged) -> None:
    stage = staged(rewards={"dark": 1.0})
    stage.fake.faults["score"] = [RuntimeError("no weights")]
    stage.run(until=4.4)
    assert stage.session.status().last_error == "Scoring failed: no weights"
    stage.run()
    stage.rate(stage.next())
    stage.run()
    assert (stage.session.status().policy_version, stage.session.status().last_error) == (1, None)


def scores_of(stage: Stage) -> list[set[str]]:
    """The rewards that know each group, in the order of drawing."""
    return [{reward for reward, values in stage.loop.store.scores(group.id).items() if np.isfinite(values).all()} for group in drawn(stage)]


def drawn(stage: Stage) -> list[Group]:
    return stage.loop.store.unrated_groups(None, min_version=0)


def later(stage: Stage, seconds: float) -> None:
    """That many seconds in which nothing else happens, then all that is due."""
    stage.fake.clock.now += seconds
    stage.run()


def test_missing_scores_are_asked_for_again_later_and_only_those(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged(rewards={"dark": 1.0, "odd": 1.0})
    asked: list[tuple[str, ...]] = []
    real = stage.fake.score

    def score(images: Any, prompts: Any, rewards: Any) -> Any:
        asked.append(tuple(rewards))
        return real(images, prompts, rewards)

    monkeypatch.setattr(stage.fake, "score", score)
    stage.fake.missing["odd"] = "odd is not there yet"
    stage.run()
    groups = len(drawn(stage))
    assert asked == [("dark", "odd")] * groups
    assert scores_of(stage) == [{"dark"}] * groups
    del stage.fake.missing["odd"], asked[:]
    later(stage, 29.0 - stage.fake.clock.now)  # the first was scored at about 2.5 s
    assert asked == []
    for _ in range(groups):  # one at a time: asking again takes half of the time at most
        later(stage, 40.0)
    assert asked == [("odd",)] * groups
    assert scores_of(stage) == [{"dark", "odd"}] * groups
    assert stage.session.status().missing_rewards == {}


def test_a_reward_that_never_answers_is_asked_five_times_for_a_group_and_holds_up_no_rating(staged: Staged) -> None:
    stage = staged(rewards={"odd": 1.0})
    stage.fake.missing["odd"] = "odd hangs"
    stage.run()
    group = stage.next()
    stage.rate(group)
    stage.run()
    assert stage.taught() == [[group.id]]
    assert stage.session.status().missing_rewards == {"odd": "odd hangs"}
    for _ in range(40):
        later(stage, 600.0)
    spans = [span for span in stage.fake.spans if span[0] == "score"]
    assert len(spans) == 5 * stage.session.status().groups


def test_a_group_whose_scoring_raised_is_asked_for_again(staged: Staged) -> None:
    stage = staged(rewards={"dark": 1.0})
    stage.fake.faults["score"] = [RuntimeError("no weights")]
    stage.run()
    assert sorted(map(len, scores_of(stage))) == [0, *[1] * (len(drawn(stage)) - 1)]
    later(stage, 40.0)
    assert scores_of(stage) == [{"dark"}] * len(drawn(stage))


def test_what_one_model_knows_of_a_group_stays_when_it_is_asked_again(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged(rewards={"dark": 1.0})
    answers = [np.array([1.0, 2.0, np.nan, np.nan]), np.array([np.nan, np.nan, 3.0, np.nan])]
    monkeypatch.setattr(stage.fake, "score", lambda images, prompts, rewards: {"dark": (answers.pop(0), "some are missing")})
    drawing = stage.loop.draw("a wish", offered=False)
    stage.jobs(3)  # loading, drawing, scoring
    group = drawing.result()
    np.testing.assert_equal(stage.loop.store.scores(group.id)["dark"], [1, 2, np.nan, np.nan])
    stage.loop.studio.score(stage.loop.engine, group)
    np.testing.assert_equal(stage.loop.store.scores(group.id)["dark"], [1, 2, 3, np.nan])


def test_trying_again_asks_for_missing_scores_at_once(staged: Staged) -> None:
    stage = staged(rewards={"dark": 1.0})
    stage.fake.missing["dark"] = "not yet"
    stage.run()
    del stage.fake.missing["dark"]
    stage.run()
    assert scores_of(stage) == [set()] * len(drawn(stage))
    stage.loop.retry()
    for _ in drawn(stage):
        later(stage, 1.0)
    assert scores_of(stage) == [{"dark"}] * len(drawn(stage))


def test_missing_scores_are_asked_for_when_the_run_is_opened_again(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged(rewards={"dark": 1.0})
    stage.fake.missing["dark"] = "not yet"
    stage.run()
    stage.session.close()
    again = staged(rewards={"dark": 1.0})
    monkeypatch.setattr(again.loop.worker, "start", lambda: None)  # the test runs the jobs
    again.loop.start()
    again.run()
    assert scores_of(again) == [{"dark"}] * len(drawn(again))


def test_skipped_group_teaches_what_the_rewards_say(staged: Staged) -> None:
    stage = staged(rewards={"dark": 1.0})
    stage.run()
    skipped = stage.next()
    stage.rate(skipped, (None,) * 4, kind="skip")
    stage.run()
    assert stage.taught() == [[skipped.id]]
    stage.run()
    assert len(stage.fake.updates) == 1


# the strip and automatic rounds


def test_strip_is_drawn_for_those_who_look(staged: Staged) -> None:
    stage = staged()
    stage.run()
    assert list(stage.session.images.glob("strip*")) == []
    prompts, pictures = stage.session.strip()
    assert prompts == ["picture number 0", "picture number 1", "picture number 2", "picture number 3"]
    assert pictures == {0: dict.fromkeys(range(4), "")}  # due
    stage.run()
    assert strip_of(stage) == {0: [f"strip-0-{i}" for i in range(4)]}
    teach(stage)
    stage.session.strip()
    stage.run()
    assert strip_of(stage) == {version: [f"strip-{version}-{i}" for i in range(4)] for version in (0, 1)}


def strip_of(stage: Stage) -> dict[int, list[str]]:
    """{version: its pictures, without what decided them}; "" = due."""
    return {version: [file.rpartition("-")[0] for file in files.values()] for version, files in stage.session.strip()[1].items()}


def test_rows_of_the_strip_that_a_restart_left_open_are_filled(staged: Staged) -> None:
    """Looked at only after the restart, and nothing was drawn for it before: all of the newest versions and the base, and nothing is due then."""
    stage = staged()
    for _ in range(STRIP_BACK + 1):
        teach(stage)
    stage.run()
    stage.session.close()
    again = staged()
    for _ in range(3):  # as the page does while something is due
        again.session.strip()
        again.run()
    newest = range(2, STRIP_BACK + 2)
    assert strip_of(again) == {version: [f"strip-{version}-{i}" for i in range(4)] for version in (0, *newest)}
    assert not again.loop.strip.due


def test_the_strip_is_due_before_the_model_is_loaded(runs: Path) -> None:
    """So that who looks meanwhile asks again."""
    fake = FakeEngine()
    seen: dict[str, dict[int, dict[int, str]]] = {}
    with closing(fake_loop(runs, fake, threaded=False)) as loop:
        fake.hold = lambda what: seen.update({what: seen.get(what) or loop.watched().pictures()})
        loop.start()
    assert seen["load"] == {0: dict.fromkeys(range(4), "")}


def test_the_strip_is_drawn_anew_by_other_settings(staged: Staged) -> None:
    """Of this moment: a model brings its own when it is loaded."""
    stage = staged()
    stage.fake.drawing = {"draw.guidance_scale": 1.5}
    stage.session.strip()
    stage.run()
    drawn = stage.session.strip()[1]
    assert [all(files.values()) for files in drawn.values()] == [True]
    stage.loop.adjust(stage.session.settings.changed({"learn.beta": 0.75}))
    stage.run()
    assert stage.session.strip()[1] == drawn
    stage.loop.adjust(stage.session.settings.changed({"draw.negative_prompt": "blue"}))
    stage.run()
    anew = stage.session.strip()[1]
    assert set(anew[0].values()) & {"", *drawn[0].values()} == set()


def test_strip_does_not_starve_under_a_fast_rater(staged: Staged) -> None:
    stage = staged()
    stage.run(until=10.0)
    stage.fake.clock.at(10.0, Rater(stage, 1.0, until=120.0).look)
    stage.run(until=110.0)
    assert 2 <= sum(any(files.values()) for files in stage.session.strip()[1].values()) <= 6


def test_automatic_rounds_follow_ratings_and_learn_from_the_rewards(staged: Staged) -> None:
    stage = staged(rewards={"dark": 1.0}, auto_rounds_per_rating=2.0)
    stage.run()
    assert stage.session.status().groups == 3
    stage.rate(stage.next())
    stage.run()
    assert len(automatic(stage)) == 2
    assert all(group.kind == "person" for group in stage.session.upcoming("ann", 20))


def test_automatic_rounds_that_go_too_far_stop_and_the_last_good_version_draws(staged: Staged) -> None:
    stage = staged(rewards={"dark": 1.0}, auto_rounds_per_rating=1.0)
    stage.run()
    for _ in range(WINDOW + 1):
        stage.rate(stage.next())
        stage.run()
    good = len(automatic(stage))
    assert stage.session.status().last_error is None
    stage.fake.drifted = 99.0
    stage.rate(stage.next())
    stage.run()
    said = stage.session.status()
    assert said.last_error is not None
    assert said.last_error.startswith("Automatic rounds have stopped: pictures went ")
    assert said.remedies == (GO_ON,)
    newest = stage.session.versions()[-1]
    assert (newest.kind, said.policy_version) == ("rollback", newest.number)
    assert f"Version {newest.parent} draws again" in said.last_error
    assert len(automatic(stage)) == good  # the group that raised it teaches nothing
    stage.rate(stage.next())
    stage.run()
    assert len(automatic(stage)) == good
    assert stage.session.status().last_error == said.last_error  # an update that succeeds does not answer it
    stage.fake.drifted = 0.0
    stage.session.retry()
    assert stage.session.status().last_error is None
    stage.run()
    assert len(automatic(stage)) > good


def test_without_rewards_there_are_no_automatic_rounds(staged: Staged) -> None:
    stage = staged(auto_rounds_per_rating=2.0)
    stage.run()
    stage.rate(stage.next())
    stage.run()
    assert stage.session.status().groups == 4


def brightest_first(stage: Stage, group: Group) -> tuple[float, ...]:
    """Ranks, the brightest 4."""
    values = [np.asarray(Image.open(stage.session.images / image.file)).mean() for image in group.images]
    return tuple(float(rank) + 1 for rank in np.argsort(np.argsort(values)))


def automatic(stage: Stage) -> list[Lesson]:
    return [lesson for lessons in stage.fake.updates for lesson in lessons if lesson.fresh and lesson.group.kind == "auto"]


def test_taste_that_is_understood_judges_automatic_rounds_and_no_other(staged: Staged) -> None:
    stage = staged(auto_rounds_per_rating=1.0)
    stage.run()
    assert stage.session.understanding()[0] is None
    for _ in range(FEWEST - 1):
        group = stage.next()
        stage.rate(group, brightest_first(stage, group))
        stage.run()
    assert automatic(stage) == []  # too few, however clear
    for _ in range(12):
        group = stage.next()
        stage.rate(group, brightest_first(stage, group))
        stage.run()
    agreement, sentence = stage.session.understanding()
    assert agreement is not None
    assert agreement.share > 0.8
    assert stage.session.status().agreement == agreement.share
    assert "go on by themselves" in sentence
    lessons = automatic(stage)
    assert 12 <= len(lessons) <= 12 + MOST_OWED
    for lesson in lessons[-3:]:
        ranks = np.argsort(np.argsort(lesson.advantages)) + 1
        assert np.corrcoef(ranks, brightest_first(stage, lesson.group))[0, 1] > 0.5
        assert lesson.shares == {"taste": 1.0}
    assert all("taste" not in lesson.shares for lessons in stage.fake.updates for lesson in lessons if lesson.group.kind == "person")


def test_taste_that_may_be_luck_judges_nothing(staged: Staged) -> None:
    stage, rng = staged(auto_rounds_per_rating=1.0), np.random.default_rng(0)
    stage.run()
    for _ in range(16):
        stage.rate(stage.next(), tuple(float(star) for star in rng.permutation(4) + 1))
        stage.run()
    agreement, sentence = stage.session.understanding()
    assert agreement is not None
    assert not agreement.beyond_chance
    assert sentence.startswith("Automatic rounds have stopped: how well your taste is understood may be luck.")
    assert stage.loop.understanding.sentence(rewards=True).startswith("Reward models alone judge automatic rounds: how well")
    assert automatic(stage) == []


def test_ratings_taken_back_take_the_taste_with_them(staged: Staged) -> None:
    stage = staged()
    stage.run()
    stage.rate(stage.next())
    stage.run()
    assert stage.session.understanding()[0] is not None
    stage.session.undo("ann")
    stage.run()
    assert stage.session.understanding()[0] is None
    assert stage.session.status().agreement is None


def test_rating_sent_again_earns_nothing(staged: Staged) -> None:
    stage = staged(rewards={"dark": 1.0}, auto_rounds_per_rating=1.0)
    stage.run()
    group = stage.next()
    assert len({stage.rate(group, key="k") for _ in range(5)}) == 1
    stage.run()
    assert sum(g.kind == "auto" for taught in stage.loop.store.learnable_groups() for g in [taught.group]) == 1


# the status


def test_status_is_frozen_and_replaced_as_a_whole(staged: Staged) -> None:
    stage = staged()
    before = stage.session.status()
    with pytest.raises(FrozenInstanceError):
        before.ratings = 5  # type: ignore[misc]
    copy = replace(before)
    stage.run()
    assert stage.session.status() is not before
    assert before == copy


def test_status_says_what_is_being_done_and_known(staged: Staged) -> None:
    stage = staged()
    said: list[str] = []
    stage.fake.hold = lambda what: said.append(f"{what}: {stage.session.status().worker}")
    assert stage.session.status().worker == "loading the model"
    stage.run()
    stage.rate(stage.next())
    stage.run()
    assert said[:2] == ["load: loading the model, 1 of 1: nothing", "draw: drawing"]
    assert said[4:8] == ["update: updating", "update: updating, 1 of 12", "update: updating, 2 of 12", "update: updating, 3 of 12"]
    status = stage.session.status()
    assert (status.worker, status.device, status.run, status.model) == ("waiting for ratings", "fake", "first", "embedded")
    assert (status.updates, status.ratings, status.groups, status.ready, status.policy_version) == (1, 4, 4, 3, 1)
    assert (status.freshness, status.last_update["loss"], status.last_update["approx_kl"]) == (1.0, 0.5, None)
    assert status.seconds_per_group == pytest.approx(DRAW_SECONDS)


def test_seconds_follow_what_is_measured(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fake_engine.DRAW_SECONDS", 4.0)
    stage = staged()
    stage.run()
    assert stage.session.status().ready == 4  # slow drawing calls for a deeper stock
    assert stage.session.status().seconds_per_group == pytest.approx(4 - 2 * 0.7**4)
    for _ in range(3):
        teach(stage)
    assert stage.loop._pace.update == pytest.approx(UPDATE_SECONDS)


def test_constants_fit_the_page() -> None:
    """The board asks every 15 s at least (board.js); less would draw for nobody, or for nobody who looks."""
    assert loop_module.PRESENT_SECONDS > 15
