"""The worker: one thread, jobs in order, nothing that fails ends it, nothing waits for ever.

Threads meet at events and futures, never at a sleep; a test that would hang fails by its timeout instead.
"""

import functools
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import loophil.worker
from loophil.errors import LearningError
from loophil.worker import Job, Stopped, Worker

SOON = 10.0  # seconds; reached only by a test that fails


class Notes:
    """A plan that does what it is given, and remembers what it was told."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.urgent: deque[Job] = deque()
        self.told: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.idle = threading.Event()
        self.asked = 0
        self.fault: Exception | None = None

    def next_job(self) -> Job | None:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return self.jobs.popleft() if self.jobs else None

    def between(self) -> Job | None:
        return self.urgent.popleft() if self.urgent else None

    def doing(self, what: str) -> None:
        self.told.append(what)
        if not what:
            self.idle.set()

    def ended(self, job: Job, error: Exception | None) -> None:
        if error is not None:
            self.failed.append((job.name, str(error)))


@pytest.fixture
def plan() -> Notes:
    return Notes()


@pytest.fixture
def worker(plan: Notes) -> Iterator[Worker]:
    made = Worker(plan)
    made.start()
    yield made
    assert made.close()


def fail(error: BaseException) -> Callable[[], Any]:
    def run() -> Any:
        raise error

    return run


def steps(log: list[str], name: str, *hold: threading.Event, n: int = 3) -> Callable[[], Generator[str, None, str]]:
    """A job of n steps that write into the log; the events are waited for before the first."""

    def run() -> Generator[str, None, str]:
        for event in hold:
            assert event.wait(SOON)
        for i in range(n):
            log.append(f"{name}{i}")
            yield f"{i + 1} of {n}"
        return name

    return run


def result(future: "Future[Any]") -> Any:
    return future.result(timeout=SOON)


def test_jobs_run_in_order_on_one_named_thread(worker: Worker) -> None:
    names: list[tuple[int, str]] = []

    def note(i: int) -> None:
        names.append((i, threading.current_thread().name))

    for future in [worker.submit("note", functools.partial(note, i)) for i in range(5)]:
        result(future)
    assert names == [(i, "loophil-worker") for i in range(5)]


def test_future_has_the_result_or_the_exception(worker: Worker) -> None:
    assert result(worker.submit("adding", lambda: 1 + 1)) == 2
    with pytest.raises(ZeroDivisionError):
        result(worker.submit("dividing", lambda: 1 // 0))


def test_thread_goes_on_after_a_failure_and_the_plan_is_told_before_the_future(worker: Worker, plan: Notes) -> None:
    future = worker.submit("learning", fail(LearningError("not finite")))
    assert isinstance(future.exception(timeout=SOON), LearningError)
    assert plan.failed == [("learning", "not finite")]
    assert result(worker.submit("adding", lambda: 2)) == 2


def test_plan_that_fails_to_decide_does_not_end_the_thread_nor_spin(plan: Notes) -> None:
    plan.fault = RuntimeError("no plan")
    worker = Worker(plan)
    worker.start()
    assert plan.idle.wait(SOON)
    assert plan.failed == [("deciding", "no plan")]
    asked = plan.asked
    assert result(worker.submit("adding", lambda: 3)) == 3
    assert asked == 1
    assert worker.close()


def test_plan_that_fails_to_listen_does_not_lose_the_result(worker: Worker, plan: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ended", lambda job, error: 1 // 0)
    assert result(worker.submit("adding", lambda: 4)) == 4
    assert result(worker.submit("adding", lambda: 5)) == 5


def test_what_was_submitted_comes_before_the_plan(plan: Notes) -> None:
    log: list[str] = []
    plan.jobs.append(Job("own", lambda: log.append("own")))
    worker = Worker(plan)
    worker.submit("waited for", lambda: log.append("waited for"))
    while worker.run_one():
        pass
    assert log == ["waited for", "own"]


def test_sleeping_worker_is_woken_for_the_plan(worker: Worker, plan: Notes) -> None:
    assert plan.idle.wait(SOON)
    job = Job("own", lambda: 6)
    plan.jobs.append(job)
    worker.wake()
    assert result(job.future) == 6


def test_submitted_jobs_slip_between_steps_and_alone_ones_do_not(plan: Notes) -> None:
    log: list[str] = []
    worker = Worker(plan)

    def update() -> Generator[str, None, None]:
        worker.submit("rolling back", lambda: log.append("alone"), alone=True)
        worker.submit("comparing", lambda: log.append("compared"))
        yield from steps(log, "step")()

    plan.jobs.append(Job("updating", update))
    plan.urgent.append(Job("drawing", lambda: log.append("between")))
    while worker.run_one():
        pass
    assert log == ["step0", "compared", "between", "step1", "step2", "alone"]


def test_slipped_in_failure_does_not_break_the_job_around_it(plan: Notes) -> None:
    log: list[str] = []
    worker = Worker(plan)
    outer = Job("update", steps(log, "step"))
    plan.jobs.append(outer)
    plan.urgent.append(Job("drawing", fail(ValueError("no"))))
    assert worker.run_one()
    assert (result(outer.future), log, plan.failed) == ("step", ["step0", "step1", "step2"], [("drawing", "no")])


def test_step_that_fails_fails_the_job(plan: Notes) -> None:
    def run() -> Generator[None, None, None]:
        yield
        raise LearningError("loss")

    worker = Worker(plan)
    job = Job("updating", run)
    plan.jobs.append(job)
    worker.run_one()
    with pytest.raises(LearningError):
        result(job.future)


def test_plan_hears_what_is_being_done(plan: Notes) -> None:
    log: list[str] = []
    worker = Worker(plan)
    plan.jobs.append(Job("updating", steps(log, "step", n=2)))
    plan.urgent.append(Job("drawing", lambda: None))
    while worker.run_one():
        pass
    assert plan.told == ["updating", "drawing", "updating", "updating, 1 of 2", "updating, 2 of 2", ""]


def test_job_that_nobody_waits_for_any_more_is_not_run(plan: Notes) -> None:
    ran: list[int] = []
    worker = Worker(plan)
    worker.submit("comparing", lambda: ran.append(1)).cancel()
    worker.submit("comparing", lambda: ran.append(2))
    while worker.run_one():
        pass
    assert ran == [2]


def test_closing_stops_after_the_step_and_fails_what_waits(plan: Notes) -> None:
    begun, closing, closed = threading.Event(), threading.Event(), []

    def endless() -> Generator[None, None, None]:
        begun.set()
        assert closing.wait(SOON)
        try:
            while True:
                yield
        finally:
            closed.append("cleaned up")

    worker = Worker(plan)
    worker.start()
    running = worker.submit("updating", endless)
    assert begun.wait(SOON)
    queued = worker.submit("rolling back", lambda: 1, alone=True)
    stopper = threading.Thread(target=worker.close)
    stopper.start()
    with pytest.raises(Stopped):
        result(queued)
    closing.set()
    stopper.join(SOON)
    with pytest.raises(Stopped):
        result(running)
    assert closed == ["cleaned up"]
    assert plan.failed == [("updating", "The worker was closed.")]
    assert worker.close()


def test_closing_does_not_wait_for_a_step_that_takes_too_long(plan: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loophil.worker.CLOSING < 5
    begun, free = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert free.wait(SOON)
        return "late"

    worker = Worker(plan)
    worker.start()
    future = worker.submit("drawing", slow)
    assert begun.wait(SOON)
    monkeypatch.setattr(loophil.worker, "CLOSING", 0.01)
    assert not worker.close()
    free.set()
    assert result(future) == "late"
    monkeypatch.setattr(loophil.worker, "CLOSING", SOON)
    assert worker.close()


@pytest.mark.parametrize("threaded", [True, False])
def test_closed_worker_refuses(plan: Notes, threaded: bool) -> None:
    worker = Worker(plan, threaded=threaded)
    worker.start()
    assert worker.close()
    with pytest.raises(Stopped, match="closed"):
        result(worker.submit("drawing", lambda: 1))
    assert not worker.run_one()


def test_without_a_thread_everything_is_done_inside_the_call(plan: Notes) -> None:
    log: list[str] = []
    worker = Worker(plan, threaded=False)
    plan.jobs.append(Job("loading", lambda: log.append(threading.current_thread().name)))
    worker.start()
    assert log == [threading.current_thread().name]
    plan.jobs.append(Job("updating", steps(log, "step", n=1)))
    assert worker.submit("drawing", lambda: 7).done()
    assert log[1:] == ["step0"]
    assert worker.submit("failing", fail(ValueError("no"))).exception() is not None


def test_job_that_wakes_the_worker_without_a_thread_is_not_run_inside_itself(plan: Notes) -> None:
    log: list[str] = []
    worker = Worker(plan, threaded=False)

    def run() -> None:
        plan.jobs.append(Job("next", lambda: log.append("next")))
        worker.wake()
        log.append("this")

    worker.submit("this", run)
    assert log == ["this", "next"]


def test_ctrl_c_without_a_thread_reaches_the_caller(plan: Notes) -> None:
    worker = Worker(plan, threaded=False)
    with pytest.raises(KeyboardInterrupt):
        worker.submit("drawing", fail(KeyboardInterrupt()))
    assert worker.submit("drawing", lambda: 8).result() == 8


def test_what_a_failed_job_held_is_let_go_and_where_it_failed_stays_known() -> None:
    class Held:
        """A model, or its activations."""

    alive: list[weakref.ref[Held]] = []

    def job() -> None:
        held = Held()
        alive.append(weakref.ref(held))
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise ValueError("out of memory") from cause

    worker = Worker(Notes(), threaded=False)
    error = worker.submit("drawing", job).exception()
    assert [ref() for ref in alive] == [None]
    assert error is not None
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "job"
