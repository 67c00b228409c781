"""The jobs that the loop gives the worker: draw a group, score it, learn and publish, roll back. The strip's are in strip.py.

    Engine     what needs the device: policy, sampler, trainer, rewards
    Studio     prompts -> groups and pictures in the store
    Learner    ratings and scores in the store -> updates -> versions in the store

When each is done, and for whom, is decided in loop.py. Everything here runs in the worker's thread.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loophil.config import Learn, Settings
from loophil.errors import RunError, UnknownVersion
from loophil.lessons import lessons_of
from loophil.prompts import PromptSource
from loophil.store import Store
from loophil.types import DrawSettings, Group, Lesson, Look, Trajectory, UpdateStats, Version
from loophil.understanding import SCALE, TASTE, Understanding

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from loophil.meter import Done
    from loophil.policy import Policy
    from loophil.preview import Preview
    from loophil.sampler import Sampler
    from loophil.trainer import Example, Trainer, Weights

LOADING, DRAWING, UPDATING = "loading the model", "drawing", "updating"  # names of jobs
REPLAYED_GROUPS = 256
RECENT_GROUPS = 64
TRIES = 2  # of a rating whose update fails, each time with something new beside it
ADAPTER = "adapter.safetensors"
CLOSED = "The program was closed during this update."
LORA = "lora"  # the note of a run's rank, alpha and targets, and of the SHA-256 of the LoRA it began from, "" = the base
NOTHING = "nothing"  # what a rating taught that says nothing, or comes too late for the objectives in use

Scores = Mapping[str, tuple[NDArray[np.float64], str]]


@dataclass(frozen=True)
class Engine:
    """What needs the device, made by the worker.

    score(images, prompts, rewards) -> {reward: (values, reason why some are missing)}
    describe(images, prompts) -> (k, d) of each kind of feature that the taste model learns from
    memory() -> (bytes in use, bytes in all), None without a GPU
    scheduler: what a group's record says it was drawn with
    drawing: knobs that this model has its own values of, where nobody says otherwise
    note(settings) -> what the status should say of this model, "" = nothing; ConfigError for settings that can teach it nothing
    commit: of a Hub model, the one that was loaded
    preview: rough pictures of the latents of a drawing that goes on, None = there are none
    """

    policy: Policy
    sampler: Sampler
    trainer: Trainer
    score: Callable[[Sequence[Image.Image], Sequence[str], Collection[str]], Scores]
    describe: Callable[[Sequence[Image.Image], Sequence[str]], Sequence[NDArray[np.float64]]]
    scheduler: str
    device: str
    memory: Callable[[], tuple[int, int] | None] = lambda: None
    drawing: Mapping[str, float] = field(default_factory=dict)
    note: Callable[[Settings], str] = lambda settings: ""
    commit: str | None = None
    preview: Preview | None = None


def adopted(store: Store) -> int:
    """The number of the version that holds the LoRA which the run began from, 0 = there is none."""
    begun = bool(store.noted(LORA, {}).get("sha256"))
    return next((v.number for v in reversed(store.versions()) if begun and v.parent == 0 and v.kind == "update"), 0)


class Studio:
    """Draws groups and keeps them. The seeds follow from the run's seed and how many groups it has, so a reopened run draws what comes next.

    sketches    rough pictures of the group that is being drawn, if somebody waits for it
    """

    def __init__(self, store: Store, settings: Settings, prompts: PromptSource) -> None:
        self.store, self.settings, self.prompts = store, settings, prompts
        self.sketches: Sequence[Image.Image] = ()
        self._drawn = int(store.noted("groups.drawn", 0))

    def draw(self, engine: Engine, prompt: str, kind: str, reached: Callable[[int, int], bool] = lambda step, steps: False) -> Group:
        """One group of the prompt, "" = the next of the list. reached(step, of how many): is told, and says whether somebody waits for it."""

        def watch(step: int, steps: int, x0: Callable[[], torch.Tensor]) -> None:
            if reached(step, steps) and engine.preview:
                self.sketches = engine.preview(x0())

        rng = np.random.default_rng((self.settings.seed, 11, self._drawn))
        seeds = tuple(int(seed) for seed in rng.integers(0, 2**48, self.settings.draw.num_images_per_prompt))
        try:
            drawing = engine.sampler.draw(prompt or self.prompts.next(), DrawSettings.of(self.settings.draw), seeds, watch=watch)
        finally:
            self.sketches = ()
        group = self.store.add_group(
            drawing.prompt,
            drawing.settings,
            policy_version=drawing.policy_version,
            seeds=drawing.seeds,
            images=[_png(image) for image in drawing.images],
            write_transitions=lambda path: engine.sampler.write(drawing.trajectory, path),
            scheduler=engine.scheduler,
            kind=kind,
            notes={"prompts.position": self.prompts.position, "groups.drawn": self._drawn + 1},
        )
        self._drawn += 1
        return group

    def missing(self, group: Group) -> dict[str, NDArray[np.float64]]:
        """{reward in use that does not know all of the images: (k,) scores so far, NaN = missing}."""
        known, none = self.store.scores(group.id), np.full(len(group.images), np.nan)
        scores = {reward: known.get(reward, none) for reward in self.settings.rewards}
        return {reward: values for reward, values in scores.items() if np.isnan(values).any()}

    def score(self, engine: Engine, group: Group) -> dict[str, str]:
        """Asks for one group's missing scores; {reward asked: why some are still missing, "" = none is}."""
        known = self.missing(group)
        images = [_read(self.store.images / ref.file) for ref in group.images]
        scores = engine.score(images, [group.prompt] * len(images), tuple(known))
        for reward, (values, reason) in scores.items():
            self.store.add_scores(group.id, reward, np.where(np.isnan(values), known[reward], values), reason)
        return {reward: reason for reward, (_, reason) in scores.items()}

    def describe(self, engine: Engine, group: Group) -> Sequence[NDArray[np.float64]]:
        """What the taste model learns from in one group: (k, d) of each kind of feature."""
        images = [_read(self.store.images / ref.file) for ref in group.images]
        return engine.describe(images, [group.prompt] * len(images))

    def twins(self, engine: Engine, group: Group) -> list[list[Image.Image]]:
        """A group's pictures, and those that the learner's reference draws of its prompt and seeds, not kept."""
        seeds = tuple(ref.seed for ref in group.images)
        return [
            [_read(self.store.images / ref.file) for ref in group.images],
            engine.sampler.pictures(group.prompt, group.settings, seeds, who=engine.policy.reference),
        ]

    def picture(self, engine: Engine, prompt: str, seed: int, look: Look) -> Image.Image:
        """One picture by any version, at any LoRA strength, not kept."""
        draw = DrawSettings.of(self.settings.draw)
        if look.version == 0 or look.strength == 0:
            return engine.sampler.pictures(prompt, draw, (seed,), who="base")[0]
        if look.version == engine.policy.version and look.strength == 1:
            return engine.sampler.pictures(prompt, draw, (seed,), who="published")[0]
        weights = engine.policy.read(self.store.version_path(look.version) / ADAPTER)
        with engine.policy.wearing(weights, look.strength):
            return engine.sampler.pictures(prompt, draw, (seed,), who="published")[0]


class Learner:
    """Learns from what is in the store. `fresh`: there is something that was not tried in vain; `silent`: new groups that say nothing."""

    def __init__(self, store: Store, settings: Settings, scales: Mapping[str, float], understanding: Understanding) -> None:
        self.store, self.settings, self.understanding = store, settings, understanding
        self._scales = {**scales, TASTE: SCALE}
        self.fresh, self.silent = False, 0
        self._tries: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._clean: dict[str, Trajectory] = {}

    @property
    def learn(self) -> Learn:
        """The knobs of an update."""
        return self.settings.learn

    @property
    def current(self) -> int:
        """The number of the version that draws."""
        return self.store.current_version().number

    def look(self) -> None:
        """Brings `fresh` and `silent` up to date."""
        new = [lesson for lesson in self._lessons(RECENT_GROUPS) if lesson.fresh]
        self.fresh = any(self._teaches(lesson) and self._tries[_key(lesson)] == 0 for lesson in new)
        self.silent = sum(not lesson.advantages.any() for lesson in new)

    def forgive(self) -> None:
        """What failed may be tried again."""
        self._tries = Counter()

    def restore(self, engine: Engine, number: int) -> None:
        """Version `number` becomes both adapters and the training state; the reference is what its line goes back to, the base or a LoRA."""
        engine.policy.refer(self._from_lora(number))
        if number == 0:
            engine.policy.reset()
            engine.trainer.restart()
            return
        folder = self.store.version_path(number)
        engine.policy.load_weights(engine.policy.read(folder / ADAPTER), number)
        engine.trainer.load(folder)

    def adopt(self, engine: Engine, weights: Mapping[str, Any]) -> Version:
        """A version with the weights of a LoRA that the run begins from, and a training state as fresh as the base's."""
        return self.store.publish(None, parent=0, kind="update", write=lambda folder: _write(engine, folder, weights))

    def update(self, engine: Engine) -> Generator[Done, None, tuple[Version, UpdateStats, int]]:
        """Learns from all that is fresh at once and from older groups again, and publishes: the version, its stats, how many were fresh.

        Yields as the trainer does: (micro-batches done, micro-batches in all), and what the status should say besides.

        Whatever goes wrong, the published version stays and its training state is restored; what was fresh waits for something new beside it.
        """
        lessons = self._lessons()
        fresh = [lesson for lesson in lessons if lesson.fresh and self._tries[_key(lesson)] < TRIES]
        older = [lesson for lesson in lessons if not lesson.fresh and self._teaches(lesson)][-REPLAYED_GROUPS:]
        update = self.store.begin_update(self.current)
        try:
            stats = yield from engine.trainer.update(self._examples(engine, [*older, *fresh]))
            version = self._publish(engine, update, [*older, *fresh], stats)
        except BaseException as error:
            self._tries.update(_key(lesson) for lesson in fresh)
            if isinstance(error, Exception):
                self.restore(engine, self.current)
            reason = CLOSED if isinstance(error, GeneratorExit) else str(error) or type(error).__name__
            with suppress(RunError):  # not to be written now: the next opening says that it was unfinished
                self.store.abort_update(update, reason)
            raise
        return version, stats, len(fresh)

    def drift(self, engine: Engine, group: Group) -> float:
        """How many nats a step the policy that drew this group is from the base; NaN where no transition was kept."""
        lesson = Lesson(group, np.zeros(len(group.images)), {}, age=0)
        return engine.trainer.drift(engine.trainer.example(lesson, engine.sampler.read(self.store.transitions_path(group.id))))

    def rollback(self, engine: Engine, number: int) -> Version:
        """A new version with the weights, and where they are kept the training state, of an old one."""
        try:
            self.restore(engine, number)
            weights = engine.policy.weights()
            version = self.store.publish(None, parent=number, kind="rollback", write=lambda folder: _write(engine, folder, weights))
        except BaseException:
            self.restore(engine, self.current)
            raise
        engine.policy.refresh(weights, version.number)
        return version

    def _from_lora(self, number: int) -> bool:
        """Whether a version's line goes back to the LoRA that the run began from, and not to the base."""
        origin = adopted(self.store)
        return origin != 0 and origin in self._line(number)

    def _line(self, number: int) -> list[int]:
        """This version and those that it comes from, newest first, without the base."""
        parents, line = {version.number: version.parent for version in self.store.versions()}, []
        while number and number in parents:
            line.append(number)
            number = parents[number] or 0
        return line

    def _lessons(self, newest: int | None = None) -> list[Lesson]:
        taught = [self.understanding.with_opinion(each) for each in self.store.learnable_groups(newest)]
        rewards = {**self.settings.rewards, TASTE: self.learn.taste_weight * self.understanding.weight}
        return lessons_of(taught, learn=self.learn, rewards=rewards, scales=self._scales, version=self.current)

    def _teaches(self, lesson: Lesson) -> bool:
        """Whether an objective in use can learn from it."""
        trajectory = self._by_trajectory(lesson) and self.learn.trajectory_passes > 0
        return bool(lesson.advantages.any()) and (trajectory or self.learn.forward_passes > 0)

    def _by_trajectory(self, lesson: Lesson) -> bool:
        """Whether its transitions are trained, if any are: young enough and, without replay, not learned from yet."""
        return lesson.age <= self.learn.max_staleness and (lesson.fresh or self.learn.replay)

    def _examples(self, engine: Engine, lessons: Sequence[Lesson]) -> list[Example]:
        """Lessons with their tensors: transitions from disk where they are trained, else the clean latents, from memory."""
        clean, examples, line = {}, [], self._line(self.current)
        read = lru_cache(maxsize=1)(engine.policy.read)  # what one policy drew is often learned in one go
        for lesson in lessons:
            key, whole = lesson.group.id, self._by_trajectory(lesson)
            trajectory = None if whole else self._clean.get(key)
            if trajectory is None:
                trajectory = engine.sampler.read(self.store.transitions_path(key))
            if not whole:
                trajectory = clean[key] = engine.sampler.clean_only(trajectory)
            examples.append(engine.trainer.example(lesson, trajectory, partial(self._drawn_by, read, lesson.group, line)))
        self._clean = clean
        return examples

    def _drawn_by(self, read: Callable[[Path], Weights], group: Group, line: Sequence[int]) -> Weights | None:
        """The weights of the policy that drew a group, None = the base's; of the nearest before it in this line where that one is lost, or left by
        a rollback: else its group would lead back there."""
        for number in (number for number in line if number <= group.policy_version):
            with suppress(UnknownVersion):
                return read(self.store.version_path(number) / ADAPTER)
        return None

    def _publish(self, engine: Engine, update: int, lessons: Sequence[Lesson], stats: UpdateStats) -> Version:
        """Files first, then one transaction, then the weights that draw."""
        weights = engine.policy.next_weights(self.learn.ema)
        version = self.store.publish(
            update,
            parent=self.current,
            kind="update",
            write=lambda folder: _write(engine, folder, weights),
            uses=[(act, objective) for lesson in lessons for act in lesson.acts for objective in _uses(lesson, stats)],
            groups_learned=[lesson.group.id for lesson in lessons if lesson.fresh],
            stats=asdict(stats),
        )
        engine.policy.refresh(weights, version.number)
        return version


def _uses(lesson: Lesson, stats: UpdateStats) -> list[str]:
    """The objectives that a lesson has taught something; a new one that taught none has taught "nothing", and is settled by that."""
    taught = [objective for objective, groups in stats.taught.items() if lesson.group.id in groups]
    return taught or [NOTHING] * lesson.fresh


def _key(lesson: Lesson) -> tuple[str, tuple[int, ...]]:
    """A lesson by what was said: rated again, it is another."""
    return lesson.group.id, lesson.acts


def _write(engine: Engine, folder: Path, weights: Mapping[str, Any]) -> None:
    engine.policy.write(weights, folder / ADAPTER)
    engine.trainer.save(folder)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
