"""An engine without torch, on a clock that only its work moves: stands in for policy, sampler and trainer where a test is about the loop.

What is drawn depends on the published weight and the seed; what is learned depends on the lessons, the optimizer's memory and the generator;
so a run that was not resumed exactly draws other pictures. Nothing in the product can reach it.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from loophil.config import Learn, Settings
from loophil.jobs import Engine
from loophil.loop import Loop
from loophil.prompts import PromptSource
from loophil.sampler import Watch
from loophil.session import Session
from loophil.store import open_run
from loophil.types import Drawing, DrawSettings, Label, Lesson, UpdateStats

PROMPTS = [f"picture number {i}" for i in range(12)]
DRAW_SECONDS, UPDATE_SECONDS, MICRO_STEPS = 2.0, 3.0, 12


class Clock:
    """Virtual seconds; what was set for a moment happens when work passes it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        return self.now

    def at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event))

    def work(self, seconds: float) -> None:
        """Time passes, and what falls into it happens."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            moment, _, event = heapq.heappop(self._events)
            self.now = max(self.now, moment)
            event()
        self.now = end

    def sleep(self) -> bool:
        """On to the next event; False if there is none."""
        if not self._events:
            return False
        self.work(max(0.0, self._events[0][0] - self.now))
        return True


@dataclass
class FakeEngine:
    """`faults`: {"draw" | "update" | "score" | "load": exceptions to be raised, one each time}; `updates`: the lessons of each.

    `missing`: {reward that fails: its reason}.
    """

    clock: Clock = field(default_factory=Clock)
    missing: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    published: float = 0.0
    learned: float = 0.0
    version: int = 0
    momentum: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    updates: list[list[Lesson]] = field(default_factory=list)
    drawn_by: dict[str, Callable[[], Any]] = field(default_factory=dict)  # of the groups of the last update: what the trainer would ask for
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    loads: int = 0
    learn: Learn | None = None
    memory: tuple[int, int] | None = None
    drifted: float = 0.0
    note: Callable[[Any], str] = lambda settings: ""
    drawing: dict[str, float] = field(default_factory=dict)
    preview: Callable[[Any], Any] | None = None
    referred: bool = False
    hold: Callable[[str], None] = lambda what: None

    def engine(self, say: Callable[[str], None]) -> Engine:
        """What the worker loads."""
        self.loads += 1
        say("1 of 1: nothing")
        self._work("load", 0.0)
        return Engine(
            policy=cast("Any", self),
            sampler=cast("Any", self),
            trainer=cast("Any", self),
            score=self.score,
            describe=self.describe,
            scheduler="DDIM",
            device="fake",
            memory=lambda: self.memory,
            drawing=self.drawing,
            note=self.note,
            preview=self.preview,
        )

    def _work(self, what: str, seconds: float) -> None:
        began = self.clock.now
        self.clock.work(seconds)
        self.hold(what)
        self.spans.append((what, began, self.clock.now))
        if self.faults.get(what):
            raise self.faults[what].pop(0)

    # sampler

    def draw(self, prompt: str, settings: DrawSettings, seeds: Sequence[int], *, watch: Watch) -> Drawing:
        version = self.version
        watch(1, 2, lambda: cast("Any", seeds))
        self._work("draw", DRAW_SECONDS)
        watch(2, 2, lambda: cast("Any", seeds))
        assert version == self.version, "refreshed while drawing"
        pictures = tuple(self._picture(prompt, seed, self.published) for seed in seeds)
        return Drawing(prompt, settings, tuple(seeds), version, pictures, cast("Any", {"young": True, "seeds": list(seeds)}))

    def pictures(self, prompt: str, settings: DrawSettings, seeds: Sequence[int], *, who: str) -> list[Image.Image]:
        self._work("picture", DRAW_SECONDS / 4)
        return [self._picture(prompt, seed, self.published if who == "published" else 0.0) for seed in seeds]

    def _picture(self, prompt: str, seed: int, weight: float) -> Image.Image:
        pixels = random.Random(f"{prompt} {seed} {weight!r}").randbytes(3 * 8 * 8)
        return Image.frombytes("RGB", (8, 8), pixels)

    def clean_only(self, trajectory: Any) -> Any:
        return trajectory | {"young": False}

    # files: of the sampler, the policy and the trainer, told apart by what is given

    def write(self, what: Any, path: Path) -> None:
        path.write_text(json.dumps(what))

    def read(self, path: Path) -> Any:
        return json.loads(path.read_text())

    def save(self, folder: Path) -> None:
        (folder / "optimizer.safetensors").write_text(json.dumps(self.momentum))
        (folder / "rng.json").write_text(json.dumps(self.rng.getstate()))

    def load(self, folder: Path) -> None:
        self.momentum = json.loads((folder / "optimizer.safetensors").read_text())
        version, state, gauss = json.loads((folder / "rng.json").read_text())
        self.rng.setstate((version, tuple(state), gauss))

    # policy

    reference = "base"

    def refer(self, to_origin: bool) -> None:
        self.referred = to_origin

    def weights(self) -> dict[str, float]:
        return {"w": self.published}

    def load_weights(self, weights: Mapping[str, float], version: int) -> None:
        self.published = self.learned = weights["w"]
        self.version = version

    def reset(self) -> None:
        self.load_weights({"w": 0.0}, 0)

    def next_weights(self, ema: float) -> dict[str, float]:
        return {"w": self.learned}

    def refresh(self, weights: Mapping[str, float], version: int) -> None:
        self.hold("refresh")
        self.published, self.version = weights["w"], version

    @contextmanager
    def wearing(self, weights: Mapping[str, float], strength: float) -> Iterator[None]:
        own, self.published = self.published, weights["w"] * strength
        yield
        self.published = own

    # trainer

    def adjust(self, learn: Learn) -> None:
        self.learn = learn

    def restart(self) -> None:
        self.momentum = 0.0

    def example(self, lesson: Lesson, trajectory: Any, drawn_by: Callable[[], Any] = lambda: None) -> tuple[Lesson, Any]:
        self.drawn_by[lesson.group.id] = drawn_by
        return lesson, trajectory

    def drift(self, example: tuple[Lesson, Any]) -> float:
        return self.drifted

    def update(self, examples: Sequence[tuple[Lesson, Any]]) -> Generator[tuple[int, int], None, UpdateStats]:
        """UPDATE_SECONDS for each fresh group, in micro-steps."""
        lessons = [lesson for lesson, _ in examples]
        self.updates.append(lessons)
        fresh = [lesson for lesson in lessons if lesson.fresh]
        for i in range(MICRO_STEPS * len(fresh)):
            self.learned += 0.001
            self._work("update", UPDATE_SECONDS / MICRO_STEPS)
            yield i + 1, MICRO_STEPS * len(fresh)
        said = sum(float(np.abs(lesson.advantages).sum()) for lesson in lessons)
        self.momentum = 0.9 * self.momentum + said
        self.learned = self.published + self.momentum * self.rng.random()
        silent = sum(not lesson.advantages.any() for lesson in lessons)
        nan = math.nan
        young = [lesson.group.id for lesson, trajectory in examples if lesson.advantages.any() and trajectory["young"]]
        taught = {"loop": young, "forward_process": [lesson.group.id for lesson in lessons if lesson.advantages.any()]}
        return UpdateStats(0.5, 1.0, 0.0, 0.0, 0.0, nan, 1.0, 1.0, 4 * len(lessons), silent, 3.0, {}, taught)

    # rewards

    def describe(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Any]:
        self._work("describe", 0.1)
        return [np.array([np.asarray(image, dtype=float).mean(axis=(0, 1)) for image in images])]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str], rewards: Collection[str]) -> dict[str, tuple[Any, str]]:
        self._work("score", 0.5)
        values = np.array([float(np.asarray(image).mean()) for image in images])
        return {reward: (np.full(len(images), np.nan), self.missing[reward]) if reward in self.missing else (values, "") for reward in rewards}


def fake_settings(runs: Path, *, threaded: bool = True, **changes: Any) -> Settings:
    """`changes`: knobs of any section by their own name."""
    settings = Settings(runs=runs, **{name: changes.pop(name) for name in ("rewards", "seed", "model") if name in changes})
    sections = {}
    for name in ("draw", "learn", "loop"):
        section = getattr(settings, name)
        mine = {knob: changes.pop(knob) for knob in list(changes) if knob in type(section).model_fields}
        sections[name] = section.model_copy(update=mine | ({"threaded": threaded} if name == "loop" else {}))
    assert not changes, f"no such knobs: {changes}"
    return settings.model_copy(update=sections)


def fake_loop(runs: Path, fake: FakeEngine, *, threaded: bool = True, **changes: Any) -> Loop:
    """A loop on a new or an old run, not started."""
    settings = fake_settings(runs, threaded=threaded, **changes)
    store = open_run(runs, None, base_model="fake", revision=None)
    prompts = PromptSource(PROMPTS, seed=settings.seed, position=store.noted("prompts.position", 0))
    return Loop(store, settings, prompts, fake.engine, dict.fromkeys(settings.rewards, 1.0), clock=fake.clock)


def no_export(engine: Engine, format: str, label: Label) -> Path:
    raise AssertionError("nothing is exported here")


def fake_session(runs: Path, fake: FakeEngine, *, threaded: bool = True, **changes: Any) -> Session:
    """A session on it, started."""
    loop = fake_loop(runs, fake, threaded=threaded, **changes)
    loop.start()
    return Session(loop, no_export)
