"""The guard around a reward model: whatever that does, whoever asks is answered in time, with a reason."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loophil.build import scorer
from loophil.config import Settings
from rewards.base import Reward, RewardError, Scores
from rewards.guard import FAILURES, Guard

PICTURES, PROMPTS = [Image.new("RGB", (2, 2))] * 2, ["a", "b"]
SOON = 0.05  # seconds of real time; nothing that answers is that slow


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Model:
    """Answers 1, 2 unless told to raise, or to answer otherwise; waits for `free`."""

    error: BaseException | None = None
    answer: Sequence[float] = (1.0, 2.0)
    free: threading.Event = field(default_factory=threading.Event)
    asked: int = 0
    threads: set[str] = field(default_factory=set)
    name: str = "fake"
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.free.set()

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        assert self.free.wait(60)
        if self.error:
            raise self.error
        return Scores(np.array(self.answer))


def values(guard: Guard) -> list[float]:
    return [float(value) for value in guard.score(PICTURES, PROMPTS)[0].value]


def reason(guard: Guard) -> str:
    """Why all scores are missing."""
    scores, why = guard.score(PICTURES, PROMPTS)
    assert np.isnan(scores.value).tolist() == [True, True]
    assert why
    return why


def answered(guard: Guard) -> None:
    """Waits until the late answer is there."""
    guard._answer.exception(60)


def test_a_reward_is_loaded_at_its_first_use_once_and_asked_in_a_thread_of_its_own() -> None:
    loads: list[str] = []
    model = Model()

    def load() -> Reward:
        loads.append(threading.current_thread().name)
        return model

    guard = Guard("fake", load)
    assert loads == []
    assert guard.score(PICTURES, PROMPTS)[1] is None
    assert values(guard) == [1, 2]
    assert loads == ["reward-fake"]
    assert model.threads == {"reward-fake"}


def test_a_reward_that_hangs_is_missing_and_not_asked_again_before_it_has_answered() -> None:
    model, clock = Model(), Clock()
    guard = Guard("fake", lambda: model, seconds=SOON, clock=clock)
    assert values(guard) == [1, 2]
    model.free.clear()
    assert reason(guard) == "'fake' gave no answer within 0.05 s."
    clock.now += 75
    assert reason(guard) == "'fake' has not answered for 75 s; it is asked again when it has."
    assert model.asked == 2
    model.free.set()
    answered(guard)
    model.answer = (3, 4)
    assert values(guard) == [3, 4]  # not the late answer


def test_the_first_answer_may_take_longer_since_it_loads() -> None:
    model, clock = Model(), Clock()
    model.free.clear()
    guard = Guard("fake", lambda: model, seconds=60, first_seconds=SOON, clock=clock)
    assert reason(guard) == "'fake' gave no answer within 0.05 s."
    clock.now += 5
    assert reason(guard) == "'fake' has not loaded for 5 s; it is asked again when it has."
    model.free.set()
    answered(guard)
    assert values(guard) == [1, 2]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Model(error=RuntimeError("out of memory")), "'fake' failed: RuntimeError: out of memory"),
        (Model(answer=(1.0,)), "'fake' gave 1 scores for 2 pictures."),
        (Model(answer=(math.nan, math.inf)), "'fake' has no score for 2 of 2 pictures."),
        (Model(error=SystemExit(1)), "'fake' failed: SystemExit(1)"),
    ],
)
def test_what_goes_wrong_is_missing_with_its_reason_and_never_0(model: Model, expected: str) -> None:
    assert reason(Guard("fake", lambda: model)) == expected


def test_a_reward_that_cannot_be_loaded_is_tried_again() -> None:
    errors: list[Exception] = [RewardError("no weights")]

    def load() -> Reward:
        if errors:
            raise errors.pop()
        return Model()

    guard = Guard("fake", load)
    assert reason(guard) == "'fake' cannot be loaded: no weights"
    assert values(guard) == [1, 2]


def test_a_reward_that_keeps_failing_is_left_alone_twice_as_long_each_time_and_comes_back() -> None:
    model, clock = Model(error=RuntimeError("no")), Clock()
    guard = Guard("fake", lambda: model, clock=clock)
    for _ in range(FAILURES - 1):
        assert reason(guard) == "'fake' failed: RuntimeError: no"
    assert reason(guard) == "'fake' failed: RuntimeError: no, 3 times in a row; it is asked again in 30 s."
    clock.now += 29
    assert reason(guard) == "'fake' failed: RuntimeError: no, 3 times in a row; it is asked again in 1 s."
    assert model.asked == 3
    clock.now += 1
    assert reason(guard).endswith("4 times in a row; it is asked again in 60 s.")
    clock.now += 60
    model.error = None
    assert values(guard) == [1, 2]
    model.error = RuntimeError("again")
    assert reason(guard) == "'fake' failed: RuntimeError: again"  # counted from the start


def test_the_rest_never_gets_longer_than_half_an_hour() -> None:
    model, clock = Model(error=RuntimeError("no")), Clock()
    guard = Guard("fake", lambda: model, clock=clock)
    for _ in range(20):
        why = reason(guard)
        clock.now += 1800
    assert why.endswith("20 times in a row; it is asked again in 1800 s.")


def test_pictures_that_the_reward_does_not_know_are_no_failure() -> None:
    model, clock = Model(answer=(math.nan, math.nan)), Clock()
    guard = Guard("fake", lambda: model, clock=clock)
    for _ in range(2 * FAILURES):
        assert "has no score" in reason(guard)
    assert model.asked == 2 * FAILURES


def test_the_loop_asks_guarded_rewards_by_name_and_one_that_is_broken_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def broken(images, prompts):\n    raise OSError('no')\n")
    broken = f"{tmp_path / 'mine.py'}:broken"
    score = scorer(Settings(rewards={"jpeg": 1.0, "jpeg_incompressible": 1.0, broken: 1.0}), "cpu")
    made = score(PICTURES, PROMPTS, ("jpeg", broken))
    assert set(made) == {"jpeg", broken}
    assert np.isfinite(made["jpeg"][0]).all()
    assert made["jpeg"][1] == ""
    assert np.isnan(made[broken][0]).all()
    assert made[broken][1] == f"'{broken}' failed: OSError: no"
