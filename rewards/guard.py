"""A reward model that cannot hold up or stop whoever asks it: loaded at its first use, given so many seconds, left alone while it is broken.

    hangs     missing once its seconds are over; it is not asked again before it has answered. Its late answer is thrown away
    fails     missing with its reason; after FAILURES in a row it is not asked for a while, twice as long each time, up to LONGEST_REST
    is back   asked as before

Not here: which pictures are asked for again, which is the loop's. A call that hangs cannot be ended, so it keeps its thread and what it has
on the device until the program closes.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from PIL import Image

from rewards.base import Reward, RewardFailure, Scores, ask

logger = logging.getLogger(__name__)

SECONDS = 60.0  # for one group
FIRST_SECONDS = 120.0  # for the first, which loads: a download that takes longer goes on, and the scores are missing until it is done
FAILURES = 3
FIRST_REST, LONGEST_REST = 30.0, 1800.0

Answer = tuple[Scores, str | None]


class Guard:
    """One reward model in a thread of its own. `score` may be called from one thread at a time.

    name: for the reasons;  load: makes the reward, in its thread;  seconds, first_seconds: how long an answer, and the first one, may take;
    clock: monotonic seconds
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Reward],
        *,
        seconds: float = SECONDS,
        first_seconds: float = FIRST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._load, self._seconds, self._first_seconds, self._clock = load, seconds, first_seconds, clock
        self._reward: Reward | None = None
        self._questions: SimpleQueue[tuple[Future[Answer], Sequence[Image.Image], Sequence[str]]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._answer: Future[Answer] = Future()
        self._asked = self._rest_until = 0.0
        self._answered = False
        self._failures = 0
        self._last = ""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Answer:
        """(scores (n,), None), or with the reason why some or all are missing."""
        now = self._clock()
        if self._thread is not None and not self._answer.done():
            doing = "answered" if self._answered else "loaded"
            return self._missing(images, f"'{self.name}' has not {doing} for {now - self._asked:.0f} s; it is asked again when it has.")
        if now < self._rest_until:
            return self._missing(images, self._resting(self._rest_until - now))
        try:
            answer = self._ask(images, prompts)
        except TimeoutError:
            return self._missing(images, self._failed(f"'{self.name}' gave no answer within {self._patience:g} s."))
        except RewardFailure as failure:
            return self._missing(images, self._failed(str(failure)))
        self._failures = 0
        return answer

    @property
    def _patience(self) -> float:
        return self._seconds if self._answered else self._first_seconds

    def _ask(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Answer:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=f"reward-{self.name}", daemon=True)
            self._thread.start()
        self._answer, self._asked = Future(), self._clock()
        self._questions.put((self._answer, images, prompts))
        return self._answer.result(self._patience)

    def _serve(self) -> None:
        """The reward's thread: one question after another."""
        while True:
            answer, images, prompts = self._questions.get()
            try:
                answer.set_result(self._answered_by(images, prompts))
            except BaseException as error:  # whatever it is, whoever asked has to hear of it, and the thread goes on
                answer.set_exception(error if isinstance(error, RewardFailure) else RewardFailure(f"'{self.name}' failed: {error!r}"))

    def _answered_by(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Answer:
        if self._reward is None:
            try:
                self._reward = self._load()
            except Exception as error:  # a reward is anybody's code
                logger.warning("Reward %s cannot be loaded", self.name, exc_info=True)
                raise RewardFailure(f"'{self.name}' cannot be loaded: {error}") from error
        answer = ask(self._reward, images, prompts)
        self._answered = True
        return answer

    def _missing(self, images: Sequence[Image.Image], reason: str) -> Answer:
        return Scores.missing(len(images)), reason

    def _failed(self, reason: str) -> str:
        """Counts it; the reason, with when the reward is asked again if that is not at once."""
        self._failures, self._last = self._failures + 1, reason
        if self._failures < FAILURES:
            return reason
        rest = min(FIRST_REST * 2 ** (self._failures - FAILURES), LONGEST_REST)
        self._rest_until = self._clock() + rest
        return self._resting(rest)

    def _resting(self, seconds: float) -> str:
        return f"{self._last.rstrip('.')}, {self._failures} times in a row; it is asked again in {seconds:.0f} s."
