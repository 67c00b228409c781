"""The numbers of one update, gathered while it goes on: how far it is, what its passes came to, and what was learned from. It trains nothing."""

import math
from collections.abc import Collection, Iterable, Sequence

from loophil.types import Lesson, UpdateStats

Done = tuple[int, int, *tuple[str, ...]]  # micro-batches of an update that are done, and in all; what else the status should say


class Meter:
    """Of one update. `summary` is that of the last trajectory pass, whether or not it led to a step.

    length: micro-batches, if no pass is cut short;  words: what the status should say besides
    """

    def __init__(self, length: int, words: tuple[str, ...]) -> None:
        self._done, self._length, self._words = 0, length, words
        self.loss = 0.0
        self.grad_norm = math.nan
        self.summary: dict[str, float] = {}
        self.taught: dict[str, set[str]] = {}

    def tick(self) -> Done:
        """One more micro-batch is done."""
        self._done += 1
        return self.reached()

    def reached(self, *words: str) -> Done:
        """How far it is."""
        return (self._done, max(self._done, self._length), *(self._words + words))

    def stepped(self, loss: float, grad_norm: float, objective: str, lessons: Iterable[Lesson]) -> None:
        """An optimizer step of this objective was taken, on these groups; the gradient's norm is that before clipping."""
        self.loss += loss
        self.grad_norm = grad_norm
        self.taught.setdefault(objective, set()).update(lesson.group.id for lesson in lessons)

    def stats(self, lessons: Sequence[Lesson], young: Collection[str], seconds: float) -> UpdateStats:
        """Of the whole update; young: the groups whose transitions were trained. `kept` is of what no version had learned from: replays are old."""
        fresh = [lesson for lesson in lessons if lesson.fresh]
        usable = _images(lesson for lesson in fresh if lesson.group.id in young) / max(1, _images(fresh))
        shares: dict[str, float] = {}
        for lesson in lessons:
            for source, share in lesson.shares.items():
                shares[source] = shares.get(source, 0.0) + share / len(lessons)
        return UpdateStats(
            loss=self.loss,
            ratio_mean=self.summary.get("ratio_mean", math.nan),
            ratio_std=self.summary.get("ratio_std", math.nan),
            clipfrac_pos=self.summary.get("clipfrac_pos", math.nan),
            clipfrac_neg=self.summary.get("clipfrac_neg", math.nan),
            approx_kl=self.summary.get("approx_kl", math.nan),
            grad_norm=self.grad_norm,
            kept=usable * self.summary.get("kept", 1.0),
            images=_images(lessons),
            no_signal=sum(not lesson.advantages.any() for lesson in lessons),
            seconds=seconds,
            shares=shares,
            taught={objective: sorted(groups) for objective, groups in self.taught.items()},
        )


def _images(lessons: Iterable[Lesson]) -> int:
    return sum(len(lesson.advantages) for lesson in lessons)
