"""Groups whose scores are asked for: new ones at once, those with missing scores again after a while, and then they are left as they are.

Asking again takes at most half of the worker's time, and never as many as would pile up. What is lost with the process is asked for when the
run is opened again, if nothing has learned from the group yet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from loophil.types import Group

WAITS = (30.0, 120.0, 480.0, 1920.0)  # seconds before each time that a group is asked for again
KEPT = 256  # groups with missing scores; of more, the oldest are left as they are


@dataclass(frozen=True, eq=False)
class Question:
    """A group to be scored, not before `due`, for the `tries`-th time after the first; `since`: the moment of the last."""

    group: Group
    tries: int = 0
    since: float = -math.inf
    due: float = -math.inf


class Unscored:
    """The groups to score next. For the worker's thread, save `hurry`. `len()`: how many are new.

    clock: monotonic seconds
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._new: deque[Question] = deque()
        self._again: deque[Question] = deque(maxlen=KEPT)
        self._quiet_until = self._hurried = -math.inf

    def __len__(self) -> int:
        return len(self._new)

    def add(self, group: Group) -> None:
        """A group that has not been scored."""
        self._new.append(Question(group))

    def next(self) -> Question | None:
        """What to score now, new groups first; None = nothing yet. It is no longer in here."""
        if self._new:
            return self._new.popleft()
        question = self._due()
        if question is not None:
            self._again.remove(question)
        return question

    @property
    def again_due(self) -> bool:
        """Whether a group is to be asked for again now."""
        return self._due() is not None

    def asked(self, question: Question, seconds: float, *, missing: bool) -> None:
        """What became of it in `seconds`: with scores missing it comes back later, unless it has come back often enough."""
        now = self._clock()
        if missing or question.tries:
            self._quiet_until = now + seconds
        if missing and question.tries < len(WAITS):
            self._again.append(Question(question.group, question.tries + 1, now, now + WAITS[question.tries]))

    def hurry(self) -> None:
        """All that are to be asked for again are due."""
        self._hurried = self._clock()

    def forget(self, group_id: str) -> None:
        """A group that was dropped."""
        self._new = deque(question for question in self._new if question.group.id != group_id)
        self._again = deque((question for question in self._again if question.group.id != group_id), maxlen=KEPT)

    def _due(self) -> Question | None:
        now = self._clock()
        if now < self._quiet_until:
            return None
        return next((question for question in self._again if question.due <= now or question.since <= self._hurried), None)
