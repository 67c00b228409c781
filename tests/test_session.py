"""The session: what a person may do, at any moment, from any thread; and that a run goes on exactly where it stopped, however it was stopped.

With the fake engine where it is about the session, and with the real policy, sampler and trainer on a tiny pipeline where it is about the whole.
"""

import hashlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import loophil.session
import loophil.worker
from loophil.config import Settings
from loophil.errors import ConfigError, InvalidInput, KeyConflict, LoopHILError, RunError, UnknownGroup, UnknownVersion
from loophil.jobs import Engine
from loophil.loop import Loop
from loophil.prompts import PromptSource
from loophil.session import Session
from loophil.store import SET_ON_PAGE, open_run
from loophil.types import Act, Group, Label
from tests.fake_engine import PROMPTS, FakeEngine, fake_loop, fake_session, fake_settings, no_export

SOON = 120.0  # seconds; reached only by a test that fails
STARS = (1.0, 2.0, 4.0, 5.0)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")


class Watched:
    """A session with a thread, and a way to wait for its status."""

    def __init__(self, loop: Loop) -> None:
        self.session, self.loop = Session(loop, no_export), loop
        self._changed = threading.Condition()
        tell = loop._tell

        def telling(**changes: Any) -> None:
            tell(**changes)
            with self._changed:
                self._changed.notify_all()

        loop._tell = telling  # type: ignore[method-assign]
        loop.start()

    def wait(self, come: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(come, timeout=SOON), self.session.status()


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def inline(runs: Path, fake: FakeEngine) -> Iterator[Session]:
    """Everything happens inside the calls."""
    with closing(fake_session(runs, fake, threaded=False)) as session:
        yield session


@pytest.fixture
def watched(runs: Path, fake: FakeEngine) -> Iterator[Watched]:
    made = Watched(fake_loop(runs, fake, prefetch=2))
    with closing(made.session):
        yield made


class Gate:
    """Holds the engine at one kind of work until it is opened."""

    def __init__(self, fake: FakeEngine, what: str) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        fake.hold = lambda now: self.hold() if now == what else None

    def hold(self) -> None:
        self.reached.set()
        assert self.opened.wait(SOON)


def stars(group: Group, values: tuple[float | None, ...] = STARS, rater: str = "ann", **given: Any) -> Act:
    return Act(group.id, rater, values, **given)


# what people do


def test_group_is_drawn_rated_and_learned_from(inline: Session) -> None:
    group = inline.new_group()
    assert (len(group.images), group.policy_version, group.prompt in PROMPTS) == (4, 0, True)
    assert all(Image.open(inline.images / ref.file).size == (8, 8) for ref in group.images)
    receipt = inline.rate(stars(group))
    assert (receipt.rated, receipt.policy_version, receipt.pending) == (4, 0, 1)
    status = inline.status()
    assert (status.policy_version, status.pending, status.ratings, status.updates) == (1, 0, 4, 1)
    assert inline.new_group().policy_version == 1
    assert [version.number for version in inline.versions()] == [0, 1]


def test_page_without_a_thread_gets_a_group_and_nothing_is_drawn_ahead(inline: Session) -> None:
    first = inline.upcoming("ann")
    assert len(first) == 1
    assert inline.upcoming("ann") == first
    inline.rate(stars(first[0]))
    assert [group.policy_version for group in inline.upcoming("ann")] == [0]
    assert inline.status().groups == 2


def test_typed_prompt_is_cleaned_and_its_wildcards_filled_in(inline: Session) -> None:
    assert inline.new_group("  a cat ").prompt == "a cat"
    assert inline.new_group("a {red|blue} cat").prompt in ("a red cat", "a blue cat")
    inline.ask("a dog")
    assert inline.upcoming("ann")[0].prompt == "a dog"


def test_comparison_is_base_and_tuned(inline: Session) -> None:
    base, tuned = inline.compare("a cat", 5)
    assert np.array_equal(np.asarray(base), np.asarray(tuned))
    inline.rate(stars(inline.new_group()))
    again, tuned = inline.compare("a cat", 5)
    assert np.array_equal(np.asarray(base), np.asarray(again))
    assert not np.array_equal(np.asarray(base), np.asarray(tuned))


def test_rated_group_shows_its_seeds_and_what_the_rewards_said(inline: Session) -> None:
    group = inline.new_group()
    inline._store.add_scores(group.id, "jpeg", [1.0, math.nan, 3.0, 4.0], "one failed")
    assert inline.revealed(group.id) == (group, {"jpeg": (1.0, None, 3.0, 4.0)})
    with pytest.raises(UnknownGroup):
        inline.revealed("nothing")


def test_undo_by_act_and_by_name_are_the_same(inline: Session) -> None:
    inline.pause()
    group = inline.new_group()
    inline.rate(stars(group))
    inline.rate(Act(group.id, "ann", (), kind="undo"))
    assert inline.upcoming("ann")[0] == group
    inline.rate(stars(group))
    assert inline.undo("ann") == group
    assert inline.upcoming("ann")[0] == group
    assert inline.undo("ann") is None


def test_group_that_was_rated_and_undone_is_learned_as_rated_last(inline: Session, fake: FakeEngine) -> None:
    inline.pause()
    group = inline.new_group()
    inline.rate(stars(group))
    inline.undo("ann")
    inline.rate(stars(group, tuple(reversed(STARS))))
    inline.resume()
    advantages = fake.updates[0][0].advantages
    assert advantages[0] > 0 > advantages[3]


def test_export_and_measuring_get_the_engine(runs: Path, fake: FakeEngine) -> None:
    loop = fake_loop(runs, fake, threaded=False)
    made: list[tuple[Any, str, Label]] = []

    def export(engine: Engine, format: str, label: Label) -> Path:
        made.append((engine.policy, format, label))
        return runs / f"lora.{format}"

    session = Session(loop, export)
    loop.start()
    assert [session.export(format).name for format in ("diffusers", "peft", "kohya")] == ["lora.diffusers", "lora.peft", "lora.kohya"]
    assert [(policy is fake, format, label) for policy, format, label in made] == [
        (True, format, Label()) for format in ("diffusers", "peft", "kohya")
    ]
    session.export("peft", Label("mine", "in my style", "mit", (" a {cat|cat} ", "a dog")))
    assert made[-1][2] == Label("mine", "in my style", "mit", ("a cat", "a dog"))
    wrong = (Label("../x"), Label("x" * 65), Label(trigger="a\nb"), Label(licence="\x1b"), Label(covers=("a",) * 5), Label(covers=("a {cat",)))
    for label in wrong:
        with pytest.raises(InvalidInput):
            session.export("peft", label)
    assert len(made) == 4
    assert session.measure(lambda engine: engine.device) == "fake"
    session.close()


def test_knobs_change_while_the_run_is_open_and_come_back_with_it(runs: Path) -> None:
    """The next update is told, the next picture drawn so, and the weights of the sources count at once."""
    fake = FakeEngine()
    session = fake_session(runs, fake, threaded=False, rewards={"dark": 1.0})
    group = session.new_group()
    session.adjust({"learn.beta": 0.75, "draw.guidance_scale": 5.0, "learn.human_weight": 0.0, "rewards": {"dark": 2.0}})
    assert fake.learn is not None
    assert (fake.learn.beta, session.settings.rewards) == (0.75, {"dark": 2.0})
    session.rate(stars(group))
    assert set(fake.updates[-1][0].shares) == {"dark"}
    assert (group.settings.guidance_scale, session.new_group().settings.guidance_scale) == (3.0, 5.0)
    for changes in ({"draw.num_images_per_prompt": 3}, {"learn.beta": -1.0}, {"rewards": {"other": 1.0}}, {"learn.nothing": 1}):
        with pytest.raises(LoopHILError):
            session.adjust(changes)
    assert session.settings.learn.beta == 0.75
    session.close()
    with closing(open_run(runs, None, base_model="fake", revision=None)) as store:
        assert store.noted(SET_ON_PAGE)["learn.beta"] == 0.75


def test_settings_that_would_teach_a_model_nothing_are_refused_and_its_note_follows_them(runs: Path) -> None:
    def note(settings: Settings) -> str:
        if not settings.learn.forward_passes:
            raise ConfigError("choose more steps")
        return "only the forward process learns" if settings.learn.trajectory_passes else ""

    session = fake_session(runs, FakeEngine(note=note), threaded=False)
    session.new_group()
    assert session.status().note == "only the forward process learns"
    with pytest.raises(ConfigError, match="choose more steps"):
        session.adjust({"learn.forward_passes": 0})
    assert session.settings.learn.forward_passes == 4
    session.adjust({"learn.trajectory_passes": 0})
    assert session.status().note is None
    session.close()
    with closing(open_run(runs, None, base_model="fake", revision=None)) as store:
        assert store.noted(SET_ON_PAGE) == {"learn.trajectory_passes": 0}


def test_the_status_names_a_model_but_no_folder_of_anybody_s(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "dreams").mkdir()
    for model, shown in ((str(tmp_path / "dreams"), "dreams"), ("stabilityai/sdxl-turbo", "stabilityai/sdxl-turbo")):
        session = fake_session(runs, FakeEngine(), threaded=False, model=model)
        assert session.status().model == shown
        session.close()


def test_a_model_s_own_way_of_being_drawn_holds_where_nobody_says_otherwise(runs: Path) -> None:
    own = {"draw.num_inference_steps": 4, "draw.guidance_scale": 1.0}
    session = fake_session(runs, FakeEngine(drawing=dict(own)), threaded=False)
    assert [session.new_group().settings.num_inference_steps, session.settings.draw.guidance_scale] == [4, 1.0]
    session.adjust({"draw.guidance_scale": 3.0})
    assert session.new_group().settings.guidance_scale == 3.0
    session.close()


def test_knobs_changed_before_the_model_is_there_reach_it(runs: Path) -> None:
    fake = FakeEngine()
    loop = fake_loop(runs, fake, threaded=False)
    session = Session(loop, no_export)
    loop.settings = loop.settings.changed({"learn.beta": 0.25})
    loop.start()
    session.new_group()
    assert fake.learn is not None
    assert fake.learn.beta == 0.25
    session.close()


def test_automatic_round_teaches_what_the_rewards_say(runs: Path) -> None:
    session = fake_session(runs, FakeEngine(), threaded=False, rewards={"dark": 1.0})
    assert session.automatic_round().kind == "auto"
    assert session.status().policy_version == 1
    session.close()


# what is refused


BAD: list[tuple[str, Callable[[Session, Group], object], type[Exception], str]] = [
    ("unknown group", lambda s, g: s.rate(Act("f" * 32, "ann", STARS)), UnknownGroup, "There is no group"),
    ("wrong count", lambda s, g: s.rate(stars(g, (1.0, 2.0))), InvalidInput, "has 4 images, but 2 ratings came"),
    ("NaN", lambda s, g: s.rate(stars(g, (1.0, 2.0, 3.0, math.nan))), InvalidInput, "nan is not possible"),
    ("0 stars", lambda s, g: s.rate(stars(g, (0.0, 2.0, 3.0, 4.0))), InvalidInput, "from 1 to 5"),
    ("6 stars", lambda s, g: s.rate(stars(g, (6.0, 2.0, 3.0, 4.0))), InvalidInput, "from 1 to 5"),
    ("key used before", lambda s, g: s.rate(stars(g, (5.0, 4.0, 2.0, 1.0), key="k")), KeyConflict, "used before with other content"),
    ("long prompt", lambda s, g: s.new_group("x" * 100_000), InvalidInput, "100000 characters"),
    ("half a character", lambda s, g: s.ask("a \ud83d cat"), InvalidInput, "half of a character"),
    ("open brace", lambda s, g: s.ask("a {red|blue cat"), InvalidInput, "wildcards"),
    ("comparing nothing", lambda s, g: s.compare("  ", 1), InvalidInput, "needs a prompt"),
    ("negative seed", lambda s, g: s.compare("a cat", -1), InvalidInput, "A seed is a whole number"),
    ("large seed", lambda s, g: s.compare("a cat", 2**53), InvalidInput, "A seed is a whole number"),
    ("true as a seed", lambda s, g: s.compare("a cat", True), InvalidInput, "not True"),
    ("text as a seed", lambda s, g: s.compare("a cat", "1"), InvalidInput, "not '1'"),  # type: ignore[arg-type]
    ("no such version", lambda s, g: s.rollback(99), UnknownVersion, "There is no version 99"),
    ("text as a version", lambda s, g: s.rollback("1"), InvalidInput, "whole number, not '1'"),  # type: ignore[arg-type]
    ("true as a version", lambda s, g: s.rollback(True), InvalidInput, "not True"),
    ("no such format", lambda s, g: s.export("zip"), InvalidInput, "Choose from: diffusers, peft, kohya"),
]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Group]]:
    session = fake_session(tmp_path_factory.mktemp("untouched"), FakeEngine(), threaded=False)
    group = session.new_group()
    session.rate(stars(group, key="k"))
    yield session, group
    session.close()


@pytest.mark.parametrize(("act", "error", "sentence"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_cannot_be_is_refused_in_a_sentence_and_changes_nothing(
    untouched: tuple[Session, Group], act: Callable[[Session, Group], object], error: type[Exception], sentence: str
) -> None:
    session, group = untouched
    before = session.status()
    with pytest.raises(error, match=sentence) as caught:
        act(session, group)
    assert isinstance(caught.value, InvalidInput)
    after = session.status()
    assert [getattr(after, name) for name in ("ratings", "groups", "pending", "policy_version", "last_error")] == [
        getattr(before, name) for name in ("ratings", "groups", "pending", "policy_version", "last_error")
    ]


def test_second_session_on_a_run_is_refused(inline: Session, runs: Path) -> None:
    with pytest.raises(RunError, match="open in another process"):
        fake_session(runs, FakeEngine())


# at any moment, from any thread


def test_ratings_never_wait_for_the_worker(watched: Watched, fake: FakeEngine) -> None:
    watched.wait(lambda: watched.session.status().ready == 2)
    gate = Gate(fake, "draw")
    first, second = watched.session.upcoming("ann")
    watched.session.ask("a cat")
    assert gate.reached.wait(SOON)
    assert watched.session.rate(stars(first)).pending == 1
    assert watched.session.rate(stars(second)).pending == 2
    assert watched.session.undo("ann") == second
    status = watched.session.status()
    assert (status.worker, status.ratings, status.pending, status.policy_version) == ("drawing what was asked for", 4, 1, 0)
    gate.opened.set()
    watched.wait(lambda: watched.session.status().policy_version == 1)


def test_many_threads_rate_at_once_and_all_is_learned(watched: Watched) -> None:
    def rate(rater: int) -> int:
        for _ in range(3):
            watched.session.rate(stars(watched.session.new_group(rater=str(rater)), rater=str(rater)))
        return 3

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(rate, range(6))) == 18
    watched.wait(lambda: watched.session.status().pending == 0 and watched.session.status().ratings == 72)
    assert watched.session.status().last_error is None


@pytest.mark.parametrize("what", ["draw", "update"])
def test_closing_ends_within_five_seconds_whatever_is_being_done(
    watched: Watched, fake: FakeEngine, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.wait(lambda: watched.session.status().ready == 2)
    monkeypatch.setattr(loophil.worker, "CLOSING", 0.05)
    gate = Gate(fake, what)
    watched.session.rate(stars(watched.session.upcoming("ann")[0]))
    if what == "draw":
        watched.session.ask("a cat")
    assert gate.reached.wait(SOON)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watched.session.new_group, "a dog")
        watched.wait(lambda: watched.loop._wishes)
        watched.session.close()
        with pytest.raises(LoopHILError, match="being closed"):
            waiting.result(SOON)
    watched.session.close()
    gate.opened.set()
    watched.loop.worker._thread.join(SOON)
    assert not watched.loop.worker.alive


def test_closed_session_refuses_in_a_sentence(watched: Watched) -> None:
    watched.session.close()
    with pytest.raises(LoopHILError, match="being closed"):
        watched.session.new_group("a cat")
    with pytest.raises(LoopHILError, match="being closed"):
        watched.session.compare("a cat", 1)
    with pytest.raises(RunError, match="is closed"):
        watched.session.rate(Act("f" * 32, "ann", STARS))


def test_who_has_waited_too_long_is_told_and_nothing_is_done_for_them(watched: Watched, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.wait(lambda: watched.session.status().ready == 2)
    monkeypatch.setattr(loophil.session, "WAIT_SECONDS", 0.01)
    gate = Gate(fake, "draw")
    watched.session.ask("a cat")
    assert gate.reached.wait(SOON)
    with pytest.raises(LoopHILError, match="has not answered in 0 s"):
        watched.session.new_group("too late")
    gate.opened.set()
    watched.session.ask("a dog")
    watched.wait(lambda: watched.session.status().ready == 4)
    assert watched.session.status().groups == 4
    assert "too late" not in {group.prompt for group in watched.session.upcoming("ann")}


def test_failure_of_what_somebody_waits_for_is_a_sentence(inline: Session, fake: FakeEngine) -> None:
    fake.faults["draw"] = [RuntimeError("CUDA out of memory")]
    with pytest.raises(LoopHILError, match="That failed: CUDA out of memory"):
        inline.new_group("a cat")
    assert inline.status().last_error == "Drawing what was asked for failed: CUDA out of memory"
    assert inline.new_group("a cat").prompt == "a cat"
    assert inline.status().last_error is None


# reopening


def signature(session: Session) -> list[tuple[Any, ...]]:
    """All groups in the order of drawing, with what they look like."""
    groups = session._store._groups("SELECT * FROM group_images ORDER BY number, position")
    return [(g.prompt, g.policy_version, [r.seed for r in g.images], [digest(session.images / r.file) for r in g.images]) for g in groups]


def digest(picture: Path) -> str:
    with Image.open(picture) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


def sit(session: Session, groups: int) -> None:
    """Rates until so many groups are rated, each by its own number, so that it does not matter who comes back to it."""
    while (done := session._store.counts().rated_groups) < groups:
        group = session.new_group()
        session.rate(stars(group, tuple(float(s) for s in np.random.default_rng(done).permutation(4) + 1)))


def killed(work: Callable[[], None]) -> None:
    """Runs it in a forked child, which must end by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def die_at(what: str, time: int) -> Callable[[str], None]:
    left = [time]

    def hold(now: str) -> None:
        left[0] -= now == what
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return hold


@pytest.fixture
def uninterrupted(tmp_path: Path) -> tuple[list[tuple[Any, ...]], tuple[float, float, int]]:
    """What five groups look like, and what the engine is then, when nothing happens."""
    fake = FakeEngine()
    session = fake_session(tmp_path / "uninterrupted", fake, threaded=False)
    sit(session, 5)
    looks = signature(session)
    session.close()
    return looks, (fake.published, fake.momentum, fake.version)


def test_closed_run_goes_on_as_if_it_had_not_been_closed(runs: Path, uninterrupted: Any) -> None:
    for groups in (1, 2, 4, 5):
        fake = FakeEngine()
        session = fake_session(runs, fake, threaded=False)
        sit(session, groups)
        looks = signature(session)
        session.close()
    assert (looks, (fake.published, fake.momentum, fake.version)) == uninterrupted


@needs_fork
@pytest.mark.parametrize(("what", "time"), [("load", 1), ("draw", 1), ("draw", 3), ("update", 1), ("update", 30), ("refresh", 2)])
def test_killed_run_goes_on_as_if_it_had_not_been_killed(runs: Path, uninterrupted: Any, what: str, time: int) -> None:
    def work() -> None:
        fake = FakeEngine(hold=die_at(what, time))
        sit(fake_session(runs, fake, threaded=False), 5)

    killed(work)
    fake = FakeEngine()
    session = fake_session(runs, fake, threaded=False)
    sit(session, 5)
    assert (signature(session), (fake.published, fake.momentum, fake.version)) == uninterrupted
    assert (session.status().ratings, session.status().updates, session.status().pending) == (20, 5, 0)
    session.close()


def test_groups_that_nobody_rated_are_offered_again(runs: Path, fake: FakeEngine) -> None:
    first = Watched(fake_loop(runs, fake))
    first.wait(lambda: first.session.status().ready == 3)
    offered = first.session.upcoming("ann")
    first.session.rate(stars(offered[0], (None,) * 4, kind="skip"))
    first.session.close()
    again = fake_session(runs, FakeEngine(hold=lambda what: None), threaded=False)
    assert again.upcoming("bob")[:2] == offered[1:]
    assert again.status().ready >= 2
    again.close()
    with_two = fake_session(runs, FakeEngine(), threaded=False, num_images_per_prompt=2)
    assert {len(group.images) for group in with_two.upcoming("bob")} == {2}  # the board has two cards now
    with_two.close()


def test_ratings_that_a_kill_kept_from_the_learner_are_learned_at_once(runs: Path) -> None:
    session = fake_session(runs, FakeEngine(), threaded=False)
    session.pause()
    session.rate(stars(session.new_group()))
    session.close()
    fake = FakeEngine()
    session = fake_session(runs, fake, threaded=False)
    assert (session.status().policy_version, session.status().pending, len(fake.updates)) == (1, 0, 1)
    session.close()


def test_groups_are_scored_after_reopening_with_a_reward(runs: Path) -> None:
    session = fake_session(runs, FakeEngine(), threaded=False)
    session.pause()
    group = session.new_group()
    session.rate(stars(group))
    session.close()
    fake = FakeEngine()
    session = fake_session(runs, fake, threaded=False, rewards={"dark": 1.0})
    assert set(session._store.scores(group.id)) == {"dark"}
    assert set(fake.updates[0][0].shares) == {"human:ann", "dark"}
    session.close()


def test_recovered_run_says_so_until_it_has_learned_again(runs: Path, fake: FakeEngine) -> None:
    session = fake_session(runs, fake, threaded=False)
    session._store.begin_update(0)
    session.close()
    session = fake_session(runs, FakeEngine(), threaded=False)
    assert session.status().last_error == "An unfinished update was thrown away; its ratings are kept."
    session.rate(stars(session.new_group()))
    assert session.status().last_error is None
    session.close()


# the whole, with real weights


@pytest.fixture(scope="module")
def tiny() -> Callable[..., Loop]:
    """(runs, knobs) -> a loop with the real policy, sampler and trainer on the tiny pipeline."""
    from loophil.policy import Policy
    from loophil.sampler import Sampler
    from loophil.scheduler import DDIM
    from loophil.trainer import Trainer
    from tests.tiny import tiny_pipeline

    def make(runs: Path, **knobs: Any) -> Loop:
        settings = fake_settings(runs, num_inference_steps=3, forward_passes=1, forward_batch=8, max_staleness=0, **knobs)
        store = open_run(runs, None, base_model="tiny", revision=None)
        prompts = PromptSource(PROMPTS, seed=0, position=store.noted("prompts.position", 0))

        def load(_: Callable[[str], None]) -> Engine:
            pipeline = tiny_pipeline()
            policy, schedule = Policy(pipeline, settings.lora, seed=0), DDIM.from_config(pipeline.scheduler.config)
            sampler = Sampler(policy, schedule, timestep_fraction=0.5)
            trainer = Trainer(policy, schedule, settings.learn, seed=0)
            return Engine(
                policy=policy,
                sampler=sampler,
                trainer=trainer,
                score=lambda images, prompts, rewards: {},
                describe=lambda images, prompts: [np.array([np.asarray(image).mean(axis=(0, 1)) for image in images])],
                scheduler="DDIM",
                device="cpu",
            )

        return Loop(store, settings, prompts, load, {})

    return make


def brightest(session: Session, group: Group) -> Act:
    """Ranks by brightness: the best has 4 stars."""
    values = [float(np.asarray(Image.open(session.images / ref.file)).mean()) for ref in group.images]
    return stars(group, tuple(float(rank) + 1 for rank in np.argsort(np.argsort(values))))


def test_whole_loop_in_a_thread_with_real_weights(runs: Path, tiny: Callable[..., Loop]) -> None:
    made = Watched(tiny(runs, prefetch=1))
    with closing(made.session) as session:
        made.wait(lambda: session.upcoming("ann"))
        session.rate(brightest(session, session.upcoming("ann")[0]))
        made.wait(lambda: session.status().policy_version == 1)
        assert (session.status().last_error, session.status().pending) == (None, 0)
        base, tuned = session.compare("a cat", 1)
        assert not np.array_equal(np.asarray(base), np.asarray(tuned))
        made.wait(lambda: [any(files.values()) for files in session.strip()[1].values()] == [True, True])
        assert session.new_group("a cat").policy_version == 1
        session.rollback(0)
        base, tuned = session.compare("a cat", 1)
        assert np.array_equal(np.asarray(base), np.asarray(tuned))
        assert session.status().policy_version == 2
    assert not made.loop.worker.alive


def sit_and_look(loop: Loop, groups: int) -> tuple[Any, ...]:
    """Rates until so many groups are rated; then all that was drawn, the weights, and the generator and optimizers as they are saved."""
    session = Session(loop, no_export)
    loop.start()
    while session._store.counts().rated_groups < groups:
        session.rate(brightest(session, session.new_group()))
    path = session._store.version_path(session.status().policy_version)
    files = {file.name: file.read_bytes() for file in path.glob("*.safetensors")}
    looks = (signature(session), session.measure(lambda engine: engine.policy.fingerprint()), session.status().policy_version, files)
    session.close()
    return looks


@needs_fork
def test_whole_run_goes_on_exactly_after_closing_and_after_a_kill(runs: Path, tmp_path: Path, tiny: Callable[..., Loop]) -> None:
    """Three groups in one go, and the same in parts: closed after the first, killed while the second version is published."""

    def killed_in_the_second_update() -> None:
        loop = tiny(runs, threaded=False)
        loop.store.publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        sit_and_look(loop, 2)

    whole = sit_and_look(tiny(tmp_path / "whole", threaded=False), 3)
    sit_and_look(tiny(runs, threaded=False), 1)
    killed(killed_in_the_second_update)
    assert sit_and_look(tiny(runs, threaded=False), 3) == whole
    assert whole[2] == 3
