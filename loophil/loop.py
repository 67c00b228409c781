"""The loop: tells the worker what to do next, and for whom. What comes before what is in decide.py, how each job is done in jobs.py.

It validates nothing that a person sends (session.py) and shows nothing (ui); what must last is in the store, what is in here can be lost with
the process.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from loophil.alarms import Watch
from loophil.config import Settings
from loophil.decide import Situation, decide
from loophil.errors import ConfigError, InvalidInput
from loophil.jobs import DRAWING, LOADING, UPDATING, Engine, Learner, Studio
from loophil.pace import Pace
from loophil.prompts import PromptSource
from loophil.stock import Stock, prefetch_target
from loophil.store import Store
from loophil.strip import Strip
from loophil.trouble import Troubles
from loophil.types import Group, Look, Status, UpdateStats, Version
from loophil.understanding import Understanding
from loophil.unscored import Unscored
from loophil.worker import CLOSED, Job, Stopped, Worker, stop

PRESENT_SECONDS = 20.0  # a page asks for groups at least every 15 s
SLOW_SECONDS = 3.0  # of a drawing, before the status says how far it is
REST_SECONDS = 10.0  # before drawing or loading is tried again
MAX_WISHES = 20
MOST_OWED = 8  # rated groups whose automatic rounds are made up for later


class Loop:
    """Owns the worker and is its plan. All but the plan may be called from any thread, and nothing waits, save for futures.

    load(say)  makes the engine, in the worker, and says which part it is at;  prompts: where the next prompt comes from;  clock: monotonic seconds
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        prompts: PromptSource,
        load: Callable[[Callable[[str], None]], Engine],
        scales: Mapping[str, float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.settings, self.prompts = store, settings, prompts
        self.stock, self.studio, self.understanding = Stock(clock), Studio(store, settings, prompts), Understanding(store)
        self.learner = Learner(store, settings, scales, self.understanding)
        self.strip, self.watch = Strip(self.studio, clock), Watch(store)
        self._load, self._clock, self._lock = load, clock, threading.RLock()
        self._engine: Engine | None = None
        self._closed = False
        self._wishes: deque[Job] = deque()
        self._unscored = Unscored(clock)
        self._news = True  # ratings, scores or a version that the learner has not looked at
        self._said = True  # ratings that the taste was not learned from
        self._pace, self._auto_left, self._newest_act = Pace(), 0.0, 0
        self._seen = self._rest_until = -math.inf
        self._troubles = Troubles(store.recovered)
        version = store.current_version()
        model = Path(settings.model).name if Path(settings.model).exists() else settings.model  # strangers see it: no folders of anybody's
        running: dict[str, Any] = {"run": store.name, "model": model, "device": settings.device, "worker": LOADING}
        self.status = Status(**running, policy_version=version.number, version_created=version.created)
        self.worker = Worker(self, threaded=settings.loop.threaded)

    # what others may ask

    def start(self) -> None:
        """Takes up what was left, and begins to work; the first job loads the model."""
        k, oldest = self.settings.draw.num_images_per_prompt, self.status.policy_version - self.settings.learn.max_staleness
        unrated = [group for group in self.store.unrated_groups(None, min_version=oldest) if len(group.images) == k]
        for group in unrated:
            self.stock.add(group)
        if self.settings.rewards:
            untaught = [taught.group for taught in self.store.learnable_groups() if taught.fresh]
            for group in (group for group in (*unrated, *untaught) if self.studio.missing(group)):
                self._unscored.add(group)
        self.strip.renew()
        self._recount()
        self.worker.start()

    def upcoming(self, rater: str, limit: int, page: str = "") -> list[Group]:
        """Groups to rate next, in order, leased to this page of the rater's; also says that a person is there."""
        self._seen = self._clock()
        if not (groups := self.stock.offer(rater, limit, page=page)):
            self.worker.wake()
            groups = self.stock.offer(rater, limit, page=page)
        if self.stock.raters != self.status.raters:
            self._tell()
        return groups

    def show(self, limit: int) -> list[Group]:
        """Groups for somebody who only looks; they are drawn for them too."""
        self._seen = self._clock()
        self.worker.wake()
        return self.stock.show(limit)

    def take(self, rater: str) -> Group | None:
        """The next group, no longer offered to others; None if there is none."""
        if (group := self.stock.take(rater)) is not None:
            self._tell()
            self.worker.wake()
        return group

    def draw(self, prompt: str, *, offered: bool) -> Future[Group]:
        """Draws a group of this prompt next ("" = the next of the list), offered first of all, or only to whoever holds the future."""
        job = Job("drawing what was asked for", lambda: self._draw(prompt, wanted=True, offered=offered))
        with self._lock:
            if len(self._wishes) >= MAX_WISHES:
                raise InvalidInput(f"{MAX_WISHES} groups are waiting to be drawn already: rate some, then ask again.")
            if self._closed:
                stop(job)
            else:
                self._wishes.append(job)
        self.worker.wake()
        return job.future

    def rated(self, group_id: str, act: int) -> None:
        """An act is in the store: its group leaves the stock, and the learner may have work."""
        self.stock.remove(group_id)
        with self._lock:
            if act > self._newest_act:  # not one that was sent again
                self._newest_act = act
                self._pace.rated(self._clock())
                rounds = self.settings.loop.auto_rounds_per_rating
                self._auto_left = min(self._auto_left + rounds, MOST_OWED * rounds)
        self._news = self._said = True
        self._recount()
        self.worker.wake()

    def returned(self, group: Group, rater: str) -> None:
        """A rater took a rating back: the group is offered to them again, first of all."""
        self.stock.add(group, wanted=True, rater=rater)
        self._news = self._said = True
        self._recount()

    def adjust(self, settings: Settings) -> Future[None]:
        """Goes on with other knobs, between two jobs; what is drawn already stays as it is."""
        return self.worker.submit("changing settings", lambda: self._adjust(settings, self.engine), alone=True)

    def reread(self) -> None:
        """Ratings were deleted or imported: what counts now is counted, and the last update no longer names who is gone."""
        stats = [update.stats for update in self.store.updates() if update.status == "committed"]
        self._news = self._said = True
        self._recount(last_update=stats[-1] if stats and self.status.last_update else {})
        self.worker.wake()

    def watched(self) -> Strip:
        """The strip; also says that a person is there."""
        self._seen = self._clock()
        return self.strip

    def compare(self, prompt: str, seed: int, looks: Sequence[Look]) -> Future[list[Image.Image]]:
        """One picture of this prompt and seed by each."""
        return self.worker.submit("comparing", lambda: [self.studio.picture(self.engine, prompt, seed, look) for look in looks])

    def rollback(self, number: int) -> Future[Version]:
        """Publishes a new version with the weights of an old one."""
        return self.worker.submit("rolling back", lambda: self._changed(self.learner.rollback(self.engine, number)), alone=True)

    def call(self, name: str, work: Callable[[Engine], Any]) -> Future[Any]:
        """Runs `work(engine)` in the worker: for measuring and exporting."""
        return self.worker.submit(name, lambda: work(self.engine), alone=True)

    def automatic_round(self) -> Future[Group]:
        """Draws and scores one group that no person sees."""
        return self.worker.submit("automatic round", self._auto, alone=True)

    def retry(self) -> None:
        """Tries again what has failed, at once; automatic rounds that an alarm has stopped go on."""
        self.watch.dismiss()
        self.learner.forgive()
        self._unscored.hurry()
        self._rest_until, self._news = -math.inf, True
        self._tell()
        self.worker.wake()

    def pause(self, paused: bool) -> None:
        """Stops or starts learning; drawing and rating go on."""
        self._tell(paused=paused)
        self.worker.wake()

    def close(self) -> bool:
        """Stops the worker; whether it has ended in time. May be called again."""
        with self._lock:
            self._closed = True
            wishes, self._wishes = self._wishes, deque()
        for job in wishes:
            stop(job)
        return self.worker.close()

    # the plan; it and everything below runs in the worker

    def next_job(self) -> Job | None:
        """What `decide` says, as a job."""
        if self._news:
            self._news = False  # first: what comes in meanwhile is looked at again
            self.learner.look()
            self._recount()
        if not self.learner.fresh:
            self._pace.owed = 0.0
        jobs: dict[str, tuple[str, Callable[[], Any]]] = {
            "load": (LOADING, self._load_engine),
            "prefetch": (DRAWING, self._draw),
            "score": ("scoring", self._score),
            "update": (UPDATING, self._update),
            "taste": ("learning your taste", self._understand),
            "strip": ("drawing the strip", lambda: self.strip.draw(self.engine)),
            "auto": ("automatic round", self._auto),
        }
        work = decide(self._situation())
        return self._wanted() if work == "draw" else Job(*jobs[work]) if work else None

    def between(self) -> Job | None:
        """Between two steps of an update: a drawing that somebody waits for, when it is its turn."""
        return self._wanted() if self._situation().drawing_wanted else None

    def doing(self, what: str) -> None:
        """Into the status."""
        self._tell(worker=what or ("waiting for ratings" if self._engine else "without a model"))

    def ended(self, job: Job, error: Exception | None) -> None:
        """Shows what failed, until the same kind of job succeeds. What nobody waited for must not fail again at once."""
        if isinstance(error, Stopped | InvalidInput):
            return
        self._troubles.over(job.name)
        if error is not None:
            self._news = True
            self._troubles.failed(job.name, error)
            if job.name in (LOADING, DRAWING):
                self._rest_until = math.inf if self._engine is None and isinstance(error, ConfigError) else self._clock() + REST_SECONDS
        self._tell(memory=self._engine.memory() if self._engine else None)

    @property
    def engine(self) -> Engine:
        """The engine, loaded if it is not."""
        return self._engine or self._load_engine()

    def _wanted(self) -> Job:
        with self._lock:
            return self._wishes.popleft() if self._wishes else Job(DRAWING, self._draw)

    def _situation(self) -> Situation:
        loop, pace, now = self.settings.loop, self._pace, self._clock()
        present, judged = now - self._seen < PRESENT_SECONDS, bool(self.settings.rewards) or self.understanding.weight > 0
        return Situation(
            loaded=self._engine is not None,
            resting=now < self._rest_until,
            asked=bool(self._wishes),
            present=present,
            learning=self.learner.fresh and not self.status.paused,
            owed=self._pace.owed,
            ready=len(self.stock),
            # Without a thread nothing is drawn ahead: it would only be drawn by an older policy.
            target=prefetch_target(loop.prefetch, pace.draw + pace.update, pace.rating, self.stock.pages) if loop.threaded else 0,
            unscored=len(self._unscored),
            said=self._said,
            again_due=self._unscored.again_due,
            strip_due=present and self.strip.due,
            strip_late=present and self.strip.late,
            auto_due=self._auto_left >= 1 and judged and not (self.status.paused or self.watch.alarm),
        )

    def _load_engine(self) -> Engine:
        """Loads the model, then the current version's weights and training state."""
        engine, version = self._load(lambda part: self._at(f"{LOADING}, {part}")), self.store.current_version()
        self._adjust(self.settings.resumed(engine.drawing), engine)
        self.learner.restore(engine, version.number)
        self._engine, self._rest_until = engine, -math.inf
        self._troubles.over(LOADING)
        self._tell(device=engine.device, policy_version=version.number, version_created=version.created)
        return engine

    def _adjust(self, settings: Settings, engine: Engine) -> None:
        self._tell(note=engine.note(settings) or None)
        self.settings = self.studio.settings = self.learner.settings = settings
        self.strip.renew()
        engine.trainer.adjust(settings.learn)
        self._news = self._said = True

    def _draw(self, prompt: str = "", *, wanted: bool = False, offered: bool = True, kind: str = "person") -> Group:
        began = self._clock()
        group = self.studio.draw(self.engine, prompt, kind, partial(self._drawing, began, offered))
        if offered:
            self.stock.add(group, wanted=wanted)
        if self.settings.rewards:
            self._unscored.add(group)
        self._pace.drew(self._clock() - began)
        self._recount(seconds_per_group=self._pace.draw)
        return group

    def _drawing(self, began: float, offered: bool, step: int, steps: int) -> bool:
        """After a step of a drawing: a slow one is in the status. Whether anybody who waits may see it."""
        slow, job = self._clock() - began > SLOW_SECONDS, self.status.worker
        self._at(f"{job.split(', ')[0]}, {step} of {steps}" if slow else job)
        return offered and not self.stock

    def _at(self, words: str) -> None:
        """How far a job is; with the program it ends here."""
        if self._closed:
            raise Stopped(CLOSED)
        self._tell(worker=words)

    def _score(self) -> None:
        """One group; a reward that fails is missing, with its reason in the status, and asked for this group again later."""
        question = self._unscored.next()
        if question is None:
            return
        began, missing = self._clock(), True
        try:
            said = self.studio.score(self.engine, question.group)
            missing = any(said.values())
        finally:
            self._unscored.asked(question, self._clock() - began, missing=missing)
        self._news = True
        self._tell(missing_rewards={reward: reason for reward, reason in (self.status.missing_rewards | said).items() if reason})

    def _understand(self) -> None:
        """The taste model learns from what was rated since; whether automatic rounds may go on follows from it."""
        self._said = False  # first: what is rated meanwhile is learned from again
        self.understanding.look(partial(self.studio.describe, self.engine), pooled=self.settings.learn.taste_pooling == "shared")
        self._news = True
        self._tell(agreement=self.understanding.share)

    def _auto(self) -> Group:
        """A group that no person sees, scored at once. Where the rounds have gone too far, the last good version draws again."""
        with self._lock:
            self._auto_left = max(0.0, self._auto_left - 1)
        group = self._draw(offered=False, kind="auto")
        while self._unscored:
            self._score()
        self.understanding.judge(group, partial(self.studio.describe, self.engine))
        drift, twins = self.learner.drift(self.engine, group), partial(self.studio.twins, self.engine, group)
        if (good := self.watch.look(group, drift, self.settings.loop, twins)) is not None:
            self.store.drop_group(group.id)
            self._changed(self.learner.rollback(self.engine, good))
        self._news = True
        return group

    def _update(self) -> Generator[str, None, Version]:
        """The learner's update, its time paid off what is owed."""
        spent = 0.0
        with closing(self.learner.update(self.engine)) as steps:
            while True:
                began = self._clock()
                try:
                    done, length, *words = next(steps)
                except StopIteration as end:
                    version, stats, groups = end.value
                    break
                spent += (seconds := self._clock() - began)
                self._pace.learned(seconds)
                yield ", ".join([f"{done} of {length}", *words])
        self._pace.updated(spent / groups)
        self._troubles.all_over()
        return self._changed(version, stats)

    def _changed(self, version: Version, stats: UpdateStats | None = None) -> Version:
        """A new version draws: groups that are now too old go, unless somebody has seen them or asked for them."""
        self.strip.want(version.number)
        self._news = True
        for group_id in self.stock.withdraw(version.number - self.settings.learn.max_staleness):
            self.store.drop_group(group_id)
            self._unscored.forget(group_id)
        changes: dict[str, Any] = {"policy_version": version.number, "version_created": version.created}
        if stats is not None:
            numbers = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(stats).items()}
            changes |= {"last_update": numbers, "freshness": stats.kept}
        self._recount(**changes)
        self.store.prune_training_state()
        return version

    def _recount(self, **changes: Any) -> None:
        """The counters from the store, and other changes, into the status."""
        with self._lock:
            c = self.store.counts()
            silent = c.no_signal + self.learner.silent
            self._tell(updates=c.updates, ratings=c.ratings, groups=c.groups, pending=c.pending, no_signal=silent, **changes)

    def _tell(self, **changes: Any) -> None:
        """Replaces the status as a whole."""
        with self._lock:
            changes |= self._troubles.newest(self.watch.alarm)
            self.status = replace(self.status, ready=len(self.stock), raters=self.stock.raters, time=time.time(), **changes)
