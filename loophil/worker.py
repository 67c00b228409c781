"""The one thread that owns the device: it runs jobs one after another and gives futures. It knows nothing of ratings.

A job is a function. One that returns a generator works in steps, and between two steps what people wait for slips in. When
nobody waits, the worker asks its plan what to do, and sleeps when there is nothing. Without a thread the same jobs run in
the same order inside the caller's call.
"""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from loophil.errors import LoopHILError

log = logging.getLogger(__name__)

LOOK_AGAIN = 5.0  # seconds; a plan may have work that only time brings up
CLOSING = 4.5  # seconds that a step gets to end


CLOSED = "The worker was closed."


class Stopped(Exception):
    """The worker was closed before this job was done."""


@dataclass(frozen=True, eq=False)
class Job:
    """`run()` gives the result, or a generator that returns it and yields how far it is. `alone`: never between the steps of another job."""

    name: str
    run: Callable[[], Any]
    alone: bool = False
    future: "Future[Any]" = field(default_factory=Future)


def stop(job: Job) -> None:
    """Fails a job that will not be run, unless whoever waited for it has given up."""
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(Stopped(CLOSED))


def _let_go(error: BaseException | None) -> None:
    """What failed holds on to its variables by its traceback, a model or its activations among them: these go, and the traceback stays."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class Plan(Protocol):
    """What the worker asks and tells, always in its own thread."""

    def next_job(self) -> Job | None:
        """What to do when nobody waits; None = nothing."""

    def between(self) -> Job | None:
        """What to slip in between two steps of a job; None = nothing."""

    def doing(self, what: str) -> None:
        """The worker does this from now on; "" = nothing."""

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job was done or failed; its future says so next."""


class Worker:
    """A named daemon thread with a queue; with `threaded=False` whoever submits or wakes runs the jobs."""

    def __init__(self, plan: Plan, *, threaded: bool = True) -> None:
        self._plan, self._threaded = plan, threaded
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running = threading.RLock()
        self._closed = self._woken = False
        self._doing = ""
        self._thread = threading.Thread(target=self._work, name="loophil-worker", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        if self._threaded:
            self._thread.start()
        else:
            self.wake()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, name: str, run: Callable[[], Any], *, alone: bool = False) -> "Future[Any]":
        """Runs `run` before anything that nobody waits for; the future has its result, its exception, or Stopped."""
        job = Job(name, run, alone)
        with self._changed:
            closed = self._closed
            if not closed:
                self._queue.append(job)
        if closed:
            stop(job)
        self.wake()
        return job.future

    def wake(self) -> None:
        """Something has changed: ask the plan again. Without a thread: do all there is to do, now."""
        with self._changed:
            self._woken = True
            self._changed.notify()
        if not self._threaded:
            with self._running:
                while not self._doing and self.run_one():  # a job that wakes the worker is already being run by it
                    pass

    def run_one(self) -> bool:
        """Does the next job in the calling thread; False if there is none."""
        with self._changed:
            if self._closed:
                return False
            self._woken = False
            job = self._queue.popleft() if self._queue else None
        job = job or self._ask(self._plan.next_job)
        if job is None:
            self._plan.doing("")
            return False
        self._do(job)
        return True

    def close(self) -> bool:
        """Stops after the current step and fails what is queued; whether the thread has ended in time. May be called again."""
        with self._changed:
            self._closed = True
            waiting, self._queue = self._queue, deque()
            self._changed.notify_all()
        for job in waiting:
            stop(job)
        if self.alive:
            self._thread.join(CLOSING)
        return not self.alive

    def _work(self) -> None:
        while not self._closed:
            if self.run_one():
                continue
            with self._changed:
                if not (self._queue or self._woken or self._closed):
                    self._changed.wait(LOOK_AGAIN)

    def _ask(self, source: Callable[[], Job | None]) -> Job | None:
        """The plan's job; a plan that fails must not end the thread."""
        try:
            return source()
        except Exception as error:
            self._end(Job("deciding", lambda: None), error)
            return None

    def _do(self, job: Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        outer, self._doing = self._doing, job.name
        self._plan.doing(job.name)
        result, error = None, None
        try:
            result = job.run()
            if isinstance(result, Generator):
                result = self._in_steps(job, result)
        except Exception as failure:
            error = failure
            _let_go(failure)
        except BaseException as failure:  # Ctrl+C where there is no thread: not for the plan to survive
            job.future.set_exception(failure)
            raise
        finally:
            self._doing = outer
        self._end(job, error, result)
        if outer:
            self._plan.doing(outer)

    def _end(self, job: Job, error: Exception | None, result: Any = None) -> None:
        """Tells the plan, then whoever holds the future."""
        if error is not None and not isinstance(error, Stopped):
            log.warning("%s failed: %s", job.name, error, exc_info=None if isinstance(error, LoopHILError) else error)
        try:
            self._plan.ended(job, error)
        except Exception:
            log.exception("after '%s'", job.name)
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

    def _in_steps(self, job: Job, steps: Generator[str, None, Any]) -> Any:
        while True:
            try:
                reached = next(steps)
            except StopIteration as end:
                return end.value
            if self._closed:
                steps.close()
                raise Stopped(CLOSED)
            while (urgent := self._urgent()) is not None:
                self._do(urgent)
            self._plan.doing(f"{job.name}, {reached}")

    def _urgent(self) -> Job | None:
        with self._changed:
            for job in self._queue:
                if not job.alone:
                    self._queue.remove(job)
                    return job
        return self._ask(self._plan.between)
