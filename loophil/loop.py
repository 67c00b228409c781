"""The loop: decides what the worker does next, and carries it out: draw, score, update and publish, redraw the strip.

`decide` is its heart, a pure function. It uses the store for what must last and the engine (policy, sampler, trainer) for
what needs the device; it validates nothing that a person sends (session.py) and shows nothing (ui.py).
"""

from __future__ import annotations

import io
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loophil.config import Settings
from loophil.errors import LearningError
from loophil.lessons import lessons_of
from loophil.prompts import PromptSource
from loophil.store import Store
from loophil.types import Drawing, DrawSettings, Group, Lesson, Status, UpdateStats, Version
from loophil.worker import Job, Worker

if TYPE_CHECKING:
    from loophil.policy import Policy
    from loophil.sampler import Sampler
    from loophil.trainer import Trainer

log = logging.getLogger(__name__)

PRESENT_SECONDS = 20.0
REPLAYED_GROUPS = 256
STRIP_SEED = 7
REST_SECONDS = 10.0
ADAPTER = "adapter.safetensors"

Scores = Mapping[str, tuple[NDArray[np.float64], str]]


@dataclass(frozen=True)
class Engine:
    """What needs the device, made by the worker: `score(images, prompts)` gives {reward: (values, reason why some are missing)}."""

    policy: Policy
    sampler: Sampler
    trainer: Trainer
    score: Callable[[Sequence[Image.Image], Sequence[str]], Scores]
    scheduler: str
    device: str


@dataclass(frozen=True)
class Situation:
    """What `decide` looks at. The seconds are those worked since fresh ratings have been waiting."""

    loaded: bool = True
    paused: bool = False
    waiting: bool = False
    unscored: bool = False
    fresh: bool = False
    ready: int = 0
    target: int = 4
    update_seconds: float = 0.0
    draw_seconds: float = 0.0
    strip_due: bool = False
    auto_due: bool = False


def decide(s: Situation) -> str:
    """What to do next: "load", "draw", "score", "update", "strip", "auto", or "" for nothing."""
    if not s.loaded:
        return "load"
    fresh = s.fresh and not s.paused
    updates_turn = fresh and s.update_seconds <= s.draw_seconds
    if s.waiting and not s.ready and not updates_turn:
        return "draw"
    if s.unscored:
        return "score"
    if updates_turn or (fresh and s.ready >= s.target):
        return "update"
    if s.ready < s.target:
        return "draw"
    return "strip" if s.strip_due else "auto" if s.auto_due and not s.paused else ""


def prefetch_target(prefetch: int, seconds_of_work: float, seconds_per_rating: float) -> int:
    """Groups to keep ahead, 1..prefetch: as many as the person rates while the worker updates once and draws one, plus one.

    Deep for a fast rater (nobody waits), shallow for a slow one (the pictures are by a younger policy).
    """
    return max(1, min(prefetch, 1 + math.ceil(seconds_of_work / max(0.1, seconds_per_rating))))


class Loop:
    """Owns the worker and the state between jobs. Its public methods may be called from any thread and never wait, save futures.

    load       makes the engine, in the worker;  prompts: where the next prompt comes from;  clock: monotonic seconds
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        prompts: PromptSource,
        load: Callable[[], Engine],
        scales: Mapping[str, float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.settings, self.prompts = store, settings, prompts
        self._load, self._scales, self._clock = load, scales, clock
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._ready: dict[str, Group] = {}
        self._asked: set[str] = set()
        self._unscored: list[tuple[Group, list[Image.Image]]] = []
        self._clean: dict[str, Any] = {}
        self._failed: frozenset[int] = frozenset()
        self._seen = -math.inf
        self._rated_at: list[float] = []
        self._update_seconds = self._draw_seconds = 0.0
        self._seconds = {"draw": 2.0, "update": 3.0}
        self._auto_left = 0.0
        self._strip_due: set[int] = set()
        self._drawn = int(store.noted("groups.drawn", 0))
        self._rest_until = -math.inf
        self._fresh_known: bool | None = None
        version = store.current_version()
        counts = store.counts()
        self.status = Status(
            run=store.name,
            model=settings.model,
            device=settings.device,
            policy_version=version.number,
            version_created=version.created,
            updates=counts.updates,
            ratings=counts.ratings,
            groups=counts.groups,
            pending=counts.pending,
            no_signal=counts.no_signal,
            worker="loading the model",
            last_error="; ".join(store.recovered) or None,
            time=time.time(),
        )
        self.worker = Worker(self._next_job, between=self._between, on_error=self._on_error, threaded=settings.loop.threaded)

    # ---- what others may ask ----

    def start(self) -> None:
        """Begins to work; the first job loads the model."""
        for group in self.store.unrated_groups(None, min_version=self.status.policy_version - self.settings.learn.max_staleness):
            self._ready[group.id] = group
        self.worker.start()

    def ready(self, limit: int) -> list[Group]:
        """Groups nobody has rated, those asked for first, then the oldest; also says that a person is there."""
        with self._lock:
            self._seen = self._clock()
            groups = sorted(self._ready.values(), key=lambda g: g.id not in self._asked)[:limit]
        if not groups:
            self.worker.wake()
        return groups

    def ready_ids(self) -> list[str]:
        """Ids of the groups in stock."""
        with self._lock:
            return list(self._ready)

    def take(self, group_id: str | None = None) -> Group | None:
        """Takes a group out of stock (the oldest, unless named), for somebody who will rate it; None if there is none."""
        with self._lock:
            if group_id is None:
                group_id = next(iter(self._ready), None)
            group = self._ready.pop(group_id, None) if group_id else None
        if group:
            self.worker.wake()
        return group

    def strip(self) -> list[int]:
        """Versions whose strip picture is there."""
        return [int(path.stem.split("-")[1]) for path in self.store.images.glob("strip-*.png")]

    def draw(self, prompt: str) -> Future[Group]:
        """Draws a group of a person's own prompt next ("" = the next of the list)."""
        return self.worker.submit("drawing", lambda: self._draw(prompt, asked=True))

    def rated(self, group: str) -> None:
        """Ratings of a group are in the store: it leaves the stock, and the learner may have work."""
        with self._lock:
            now = self._clock()
            self._rated_at = [*self._rated_at[-7:], now]
            self._ready.pop(group, None)
            self._fresh_known = None
            self._auto_left += self.settings.loop.auto_rounds_per_rating
        self._tell()
        self.worker.wake()

    def returned(self, group: Group) -> None:
        """A rating was taken back: the group is on offer again, first of all."""
        with self._lock:
            self._ready[group.id] = group
            self._asked.add(group.id)
            self._fresh_known = None
        self._tell()

    def compare(self, prompt: str, seed: int) -> Future[tuple[Image.Image, Image.Image]]:
        """(base, tuned) pictures of one prompt and seed."""
        return self.worker.submit("comparing", lambda: self._compare(prompt, seed))

    def rollback(self, number: int) -> Future[Version]:
        """Publishes a new version with the weights of an old one."""
        return self.worker.submit("rolling back", lambda: self._rollback(number), alone=True)

    def call(self, name: str, work: Callable[[Engine], Any]) -> Future[Any]:
        """Runs `work(engine)` in the worker: for measuring and exporting."""
        return self.worker.submit(name, lambda: work(self.engine), alone=True)

    def automatic_round(self) -> Future[Group]:
        """Draws and scores one group for the reward models alone."""
        return self.worker.submit("automatic round", self._auto)

    def pause(self, paused: bool) -> None:
        """Stops or starts learning; drawing and rating go on."""
        self._tell(paused=paused)
        self.worker.wake()

    def close(self) -> bool:
        """Stops the worker; whether it has ended in time."""
        return self.worker.close()

    @property
    def engine(self) -> Engine:
        """The loaded engine. Only the worker may use it."""
        if self._engine is None:
            self._load_engine()
        assert self._engine is not None
        return self._engine

    # ---- deciding ----

    def _next_job(self) -> Job | None:
        work = decide(self._situation()) if self._clock() >= self._rest_until else ""
        jobs: dict[str, tuple[str, Callable[[], Any]]] = {
            "load": ("loading the model", self._load_engine),
            "draw": ("drawing", lambda: self._draw("")),
            "score": ("scoring", self._score),
            "update": ("updating", self._update),
            "strip": ("drawing the strip", self._draw_strip),
            "auto": ("automatic round", self._auto),
        }
        name, run = jobs.get(work, ("", None))
        self._tell(worker=name or ("paused" if self.status.paused else "waiting for ratings"))
        return Job(name, run) if run else None

    def _between(self) -> Job | None:
        """Between two steps of an update: a drawing for a person who waits, when the update has had its half of the time."""
        s = self._situation()
        if s.waiting and not s.ready and self._update_seconds + self._running_seconds() >= self._draw_seconds:
            return Job("drawing", lambda: self._draw(""))
        return None

    def _situation(self) -> Situation:
        with self._lock:
            loop = self.settings.loop
            gaps = np.diff(self._rated_at)
            pace = float(np.median(gaps)) if len(gaps) else 2.5
            target = prefetch_target(loop.prefetch, self._seconds["draw"] + self._seconds["update"], pace)
            fresh = self._fresh()
            if not fresh:
                self._update_seconds = self._draw_seconds = 0.0
            return Situation(
                loaded=self._engine is not None,
                paused=self.status.paused,
                waiting=self._clock() - self._seen < PRESENT_SECONDS,
                unscored=bool(self._unscored),
                fresh=fresh,
                ready=len(self._ready),
                target=target,
                update_seconds=self._update_seconds,
                draw_seconds=self._draw_seconds,
                strip_due=bool(self._strip_due),
                auto_due=self._auto_left >= 1,
            )

    def _fresh(self) -> bool:
        """Whether something untaught in the store could teach: cached until a rating or a score comes in."""
        if self._fresh_known is None:
            new = [lesson for lesson in self._lessons(newest=64) if lesson.fresh and lesson.advantages.any()]
            self._fresh_known = bool(new) and frozenset(act for lesson in new for act in lesson.acts) != self._failed
        return self._fresh_known

    def _lessons(self, newest: int) -> list[Lesson]:
        return lessons_of(
            self.store.learnable_groups(newest),
            learn=self.settings.learn,
            rewards=self.settings.rewards,
            scales=self._scales,
            version=self.status.policy_version,
        )

    # ---- the work; everything below runs in the worker ----

    def _load_engine(self) -> None:
        """Loads the model, then the current version's weights and training state."""
        self._engine = self._load()
        current = self.store.current_version().number
        if current:
            self._restore(current)
        self._strip_due = {0, current} - set(self.strip())
        self._tell(device=self._engine.device)

    def _draw(self, prompt: str, *, asked: bool = False, kind: str = "person") -> Group:
        """Draws one group, keeps it, and puts it on offer."""
        began = self._clock()
        position = self.prompts.position
        prompt = prompt or self.prompts.next()
        drawing = self.engine.sampler.draw(prompt, DrawSettings.of(self.settings.draw), self._seeds())
        try:
            group = self._keep(drawing, kind)
        except Exception:
            self.prompts.position = position
            raise
        with self._lock:
            self._drawn += 1
            if kind == "person":
                self._ready[group.id] = group
            if asked:
                self._asked.add(group.id)
            if self.settings.rewards:
                self._unscored.append((group, list(drawing.images)))
            spent = self._clock() - began
            self._draw_seconds += spent
            self._seconds["draw"] += 0.3 * (spent - self._seconds["draw"])
        self._tell(seconds_per_group=self._seconds["draw"])
        return group

    def _seeds(self) -> tuple[int, ...]:
        """k seeds that follow from the run's seed and how many groups there are."""
        rng = np.random.default_rng((self.settings.seed, 11, self._drawn))
        return tuple(int(seed) for seed in rng.integers(0, 2**48, self.settings.draw.num_images_per_prompt))

    def _keep(self, drawing: Drawing, kind: str) -> Group:
        return self.store.add_group(
            drawing.prompt,
            drawing.settings,
            policy_version=drawing.policy_version,
            seeds=drawing.seeds,
            images=[_png(image) for image in drawing.images],
            write_transitions=lambda path: self.engine.sampler.write(drawing.trajectory, path),
            scheduler=self.engine.scheduler,
            kind=kind,
            notes={"prompts.position": self.prompts.position, "groups.drawn": self._drawn + 1},
        )

    def _score(self) -> None:
        """Scores all groups that have not been; a reward that fails is missing, with its reason in the status."""
        with self._lock:
            groups, self._unscored = self._unscored, []
        missing = dict(self.status.missing_rewards)
        for group, images in groups:
            for reward, (values, reason) in self.engine.score(images, [group.prompt] * len(images)).items():
                self.store.add_scores(group.id, reward, values, reason)
                missing.pop(reward, None)
                if reason:
                    missing[reward] = reason
        self._fresh_known = None
        self._tell(missing_rewards=missing)

    def _auto(self) -> Group:
        """One automatic round: a group that no person sees, scored at once."""
        self._auto_left = max(0.0, self._auto_left - 1)
        group = self._draw("", kind="auto")
        self._score()
        return group

    def _update(self) -> Generator[None, None, Version | None]:
        """Learns from all fresh groups at once and from older ones again, and publishes the new version."""
        began, self._drawn_before = self._clock(), self._draw_seconds
        self._began = began
        lessons = self._lessons(newest=REPLAYED_GROUPS)
        update = self.store.begin_update(self.status.policy_version)
        try:
            steps = self.engine.trainer.update([self._example(lesson) for lesson in lessons])
            stats = yield from self._counted(steps)
            version = self._publish(update, lessons, stats)
        except BaseException as error:
            self.store.abort_update(update, str(error) or type(error).__name__)
            self.engine.policy.discard()
            self._failed = frozenset(act for lesson in lessons if lesson.fresh for act in lesson.acts)
            self._fresh_known = None
            raise
        finally:
            self._began = None
        spent = self._clock() - began - (self._draw_seconds - self._drawn_before)
        self._update_seconds = self._draw_seconds = 0.0
        self._seconds["update"] += 0.3 * (spent - self._seconds["update"])
        return version

    def _counted(self, steps: Generator[None, None, UpdateStats]) -> Generator[None, None, UpdateStats]:
        done = 0
        while True:
            try:
                next(steps)
            except StopIteration as end:
                stats: UpdateStats = end.value
                return stats
            done += 1
            self._tell(worker=f"updating, step {done}")
            yield

    def _running_seconds(self) -> float:
        """Seconds the running update has worked, drawings in between not counted."""
        return 0.0 if self._began is None else self._clock() - self._began - (self._draw_seconds - self._drawn_before)

    _began: float | None = None
    _drawn_before = 0.0

    def _example(self, lesson: Lesson) -> Any:
        """A lesson with its tensors: transitions of young groups from disk, clean latents of older ones from memory."""
        group, sampler = lesson.group, self.engine.sampler
        if lesson.age <= self.settings.learn.max_staleness:
            trajectory = sampler.read(self.store.transitions_path(group.id))
        else:
            if group.id not in self._clean:
                self._clean[group.id] = sampler.clean_only(sampler.read(self.store.transitions_path(group.id)))
            trajectory = self._clean[group.id]
        return self.engine.trainer.example(lesson, trajectory)

    def _publish(self, update: int, lessons: Sequence[Lesson], stats: UpdateStats) -> Version:
        """Files first, then one transaction, then the weights that draw."""
        engine, objective = self.engine, self.settings.learn.objective
        fresh = [lesson for lesson in lessons if lesson.fresh]
        weights = engine.policy.next_weights(self.settings.learn.ema)
        version = self.store.publish(
            update,
            parent=self.status.policy_version,
            kind="update",
            write=lambda folder: self._write_version(folder, weights),
            uses=[(act, objective) for lesson in fresh for act in lesson.acts],
            groups_learned=[lesson.group.id for lesson in fresh],
            stats=asdict(stats),
        )
        engine.policy.refresh(weights, version.number)
        self.store.prune_training_state()
        self._version_changed(version, last_update=asdict(stats), freshness=stats.kept, last_error=None)
        return version

    def _write_version(self, folder: Path, weights: Mapping[str, Any]) -> None:
        self.engine.policy.write(weights, folder / ADAPTER)
        self.engine.trainer.save(folder)

    def _version_changed(self, version: Version, **changes: Any) -> None:
        with self._lock:
            self._strip_due.add(version.number)
            self._fresh_known, self._failed = None, frozenset()
            oldest = version.number - self.settings.learn.max_staleness
            stale = [group_id for group_id, group in self._ready.items() if group.policy_version < oldest and group_id not in self._asked]
            for group_id in stale:
                del self._ready[group_id]
        for group_id in stale:
            self.store.drop_group(group_id)
        self._tell(policy_version=version.number, version_created=version.created, **changes)

    def _rollback(self, number: int) -> Version:
        """A new version with the weights, and where they are kept the training state, of an old one."""
        policy = self.engine.policy
        self._restore(number)
        weights = policy.weights()
        version = self.store.publish(None, parent=number, kind="rollback", write=lambda folder: self._write_version(folder, weights))
        policy.version = version.number
        self._version_changed(version)
        return version

    def _restore(self, number: int) -> None:
        """Version `number` becomes both adapters and the training state."""
        if number == 0:
            self.engine.policy.reset()
            self.engine.trainer.restart()
            return
        folder = self.store.version_path(number)
        self.engine.policy.load_weights(self.engine.policy.read(folder / ADAPTER), number)
        self.engine.trainer.load(folder)

    def _compare(self, prompt: str, seed: int) -> tuple[Image.Image, Image.Image]:
        settings, sampler = DrawSettings.of(self.settings.draw), self.engine.sampler
        base, tuned = (sampler.pictures(prompt, settings, (seed,), who=who)[0] for who in ("base", "published"))
        return base, tuned

    def _draw_strip(self) -> None:
        """One picture of the fixed prompt and seed by each version that has none; versions passed by get none."""
        with self._lock:
            due, self._strip_due = self._strip_due, set()
        current = self.status.policy_version
        for number in sorted(due & {0, current}):
            who = "base" if number == 0 else "published"
            picture = self.engine.sampler.pictures(self.prompts.prompts[0], DrawSettings.of(self.settings.draw), (STRIP_SEED,), who=who)[0]
            target = self.store.images / f"strip-{number}.png"
            staging = target.with_suffix(f".{secrets.token_hex(4)}.tmp")
            staging.write_bytes(_png(picture))
            staging.replace(target)

    def _on_error(self, job: Job, error: BaseException) -> None:
        """Shows what failed. A job somebody waits for tells them itself; what the worker does by itself must not spin."""
        sentence = str(error) or type(error).__name__
        if not job.waited:
            self._rest_until = self._clock() + REST_SECONDS
        self._tell(last_error=sentence if isinstance(error, LearningError) else f"{job.name.capitalize()} failed: {sentence}")

    def _tell(self, **changes: Any) -> None:
        """Replaces the status as a whole."""
        counts = self.store.counts()
        with self._lock:
            self.status = replace(
                self.status,
                updates=counts.updates,
                ratings=counts.ratings,
                groups=counts.groups,
                pending=counts.pending,
                no_signal=counts.no_signal,
                ready=len(self._ready),
                time=time.time(),
                **changes,
            )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
