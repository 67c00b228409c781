"""What the store knows -> lessons: every group's mixed advantages, its age, and what in it is new.

The bridge between ratings and learning: it chooses the baseline that belongs to the objective and hands the sources to `mix`.
It trains nothing. Plain numpy.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from loophil.advantages import Moments, leave_one_out, minus_mean, standardize
from loophil.config import Learn
from loophil.mixing import mix, pooled_std
from loophil.store import Taught
from loophil.types import HUMAN, Lesson, SourceValues

HUMAN_SCALE = 1.0  # one star


def lessons_of(taught: Sequence[Taught], *, learn: Learn, rewards: Mapping[str, float], scales: Mapping[str, float], version: int) -> list[Lesson]:
    """One lesson per group, in the order given, which must be the order of drawing.

    rewards   {reward: weight}, those of weight 0 or unknown are left out;  scales: {reward: nominal spread};  version: the published one
    """
    groups = [_sources(each, learn.human_weight, rewards, scales) for each in taught]
    stds = _pooled(groups)
    baseline = _Baseline(learn.objective, stds)
    lessons = []
    for each, sources in zip(taught, groups, strict=True):
        k = len(each.group.images)
        advantages, shares = np.zeros(k), dict[str, float]()
        if sources:
            advantages, shares = mix(sources, stds, learn.advantage_clip, advantage=partial(baseline.advantages, prompt=each.group.prompt))
        age = abs(version - each.group.policy_version)  # a version that was damaged and set aside may have drawn it: no less far away
        lessons.append(Lesson(each.group, advantages, shares, age, each.acts, each.fresh))
    return lessons


def _sources(taught: Taught, human_weight: float, rewards: Mapping[str, float], scales: Mapping[str, float]) -> list[SourceValues]:
    people = [SourceValues(HUMAN + rater, stars, human_weight, HUMAN_SCALE) for rater, stars in taught.ratings.items() if human_weight > 0]
    models = [SourceValues(name, taught.scores[name], w, scales[name]) for name, w in rewards.items() if w > 0 and name in taught.scores]
    return people + models


def _pooled(groups: Sequence[Sequence[SourceValues]]) -> dict[str, float]:
    """{source: pooled within-group standard deviation over all groups}."""
    values: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    scale: dict[str, float] = {}
    for source in (source for sources in groups for source in sources):
        values[source.source].append(source.values)
        scale[source.source] = source.scale
    return {name: pooled_std(each, scale[name]) for name, each in values.items()}


class _Baseline:
    """A source's own advantages in one group, by the objective: see the table in objectives.py. Remembers what came before.

    `mix` divides by the source's pooled standard deviation (`stds`), which is the unit of the leave-one-out and the running-mean
    baselines. PPO's is the standard deviation of the prompt, so what is handed to `mix` is multiplied by the other beforehand.
    """

    def __init__(self, objective: str, stds: Mapping[str, float]) -> None:
        self.objective, self.stds = objective, stds
        self.moments: dict[tuple[str, str], Moments] = defaultdict(Moments)

    def advantages(self, source: SourceValues, *, prompt: str) -> NDArray[np.float64]:
        """(k,), before they are divided by the source's pooled standard deviation."""
        if self.objective == "reinforce":
            past = self.moments[source.source, ""]
            self.moments[source.source, ""] = past.add(source.values)
            return minus_mean(source.values, past)
        if self.objective == "ppo":
            key = source.source, prompt
            self.moments[key] = self.moments[key].add(source.values)
            return standardize(source.values, self.moments[key]) * self.stds[source.source]
        return leave_one_out(source.values)
