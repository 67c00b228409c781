"""The one thread that owns the device: it runs jobs one after another and gives futures. It knows nothing of ratings.

A job is a function. One that returns a generator works in steps, and between two steps the worker slips in what people wait
for. When nobody waits it asks `next_job` what to do, and sleeps until `wake` when there is nothing.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The worker was closed before or while this job ran."""


@dataclass(frozen=True)
class Job:
    """`run()` gives the result, or a generator that returns it.

    alone    never runs between the steps of another;  waited: somebody holds the future
    """

    name: str
    run: Callable[[], Any]
    alone: bool = False
    waited: bool = False
    future: "Future[Any]" = field(default_factory=Future)


class Worker:
    """A named daemon thread with a queue; with `threaded=False` everything runs inside the caller's call instead.

    next_job    what to do when the queue is empty: a Job, or None to sleep
    between     what to slip in between two steps of a job when the queue is empty: a Job, or None
    on_error    called with a job and its exception, in the worker; the thread goes on
    """

    def __init__(
        self,
        next_job: Callable[[], Job | None],
        *,
        between: Callable[[], Job | None] = lambda: None,
        on_error: Callable[[Job, BaseException], None] = lambda job, error: None,
        threaded: bool = True,
    ) -> None:
        self._next_job, self._between, self._on_error = next_job, between, on_error
        self._threaded = threaded
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._inline = threading.RLock()
        self._closed = self._woken = False
        self.doing = ""
        self._thread = threading.Thread(target=self._work, name="loophil-worker", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        if self._threaded:
            self._thread.start()
        else:
            self.wake()

    @property
    def alive(self) -> bool:
        """Whether jobs are still being run."""
        return not self._closed and (not self._threaded or self._thread.is_alive())

    def submit(self, name: str, run: Callable[[], Any], *, alone: bool = False) -> "Future[Any]":
        """Runs `run` as soon as possible, before anything that nobody waits for; its result or exception is in the future."""
        job = Job(name, run, alone, waited=True)
        if not self._threaded:
            with self._inline:
                self._do(job)
            return job.future
        with self._changed:
            if self._closed:
                job.future.set_exception(Stopped("The worker is closed."))
            else:
                self._queue.append(job)
                self._changed.notify()
        return job.future

    def wake(self) -> None:
        """Something has changed: ask `next_job` again. Without a thread: do all there is to do, now."""
        if not self._threaded:
            with self._inline:
                while not self._closed and (job := self._next_job()) is not None:
                    self._do(job)
            return
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> bool:
        """Stops after the current step, fails what is queued; whether the thread has ended in time. May be called again."""
        with self._changed:
            self._closed = True
            waiting, self._queue = list(self._queue), deque()
            self._changed.notify_all()
        for job in waiting:
            job.future.set_exception(Stopped("The worker was closed."))
        if self._threaded and self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._closed:
            with self._changed:
                self._woken = False
                job = self._queue.popleft() if self._queue else None
            job = job or self._ask(self._next_job)
            if job is not None:
                self._do(job)
                continue
            with self._changed:
                if not (self._queue or self._woken or self._closed):
                    self._changed.wait(timeout=5.0)

    def _ask(self, source: Callable[[], Job | None]) -> Job | None:
        """The source's job; a source that fails must not end the thread."""
        try:
            return source()
        except Exception as error:
            log.exception("deciding what to do next failed")
            self._on_error(Job("deciding", lambda: None), error)
            return None

    def _do(self, job: Job) -> None:
        outer, self.doing = self.doing, job.name
        try:
            result = job.run()
            if isinstance(result, Generator):
                result = self._in_steps(result)
            job.future.set_result(result)
        except BaseException as error:
            job.future.set_exception(error)
            if not isinstance(error, Stopped):
                log.warning("%s failed: %s", job.name, error, exc_info=not isinstance(error, ValueError))
                self._on_error(job, error)
        finally:
            self.doing = outer

    def _in_steps(self, steps: Generator[Any, None, Any]) -> Any:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            if self._closed:
                steps.close()
                raise Stopped("The worker was closed.")
            while (job := self._urgent()) is not None:
                self._do(job)

    def _urgent(self) -> Job | None:
        with self._changed:
            for job in self._queue:
                if not job.alone:
                    self._queue.remove(job)
                    return job
        return self._ask(self._between)
