"""What a reward model is to the loop: a name, a nominal spread, and scores for pictures with prompts.

Not here: weights and mixing, which are the loop's. A score that is not known is NaN, "missing", never 0: `score_safely` turns
whatever goes wrong in a reward into that, with a sentence that says why, so that no reward can stop the loop.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

logger = logging.getLogger(__name__)


class RewardError(ValueError):
    """A reward that cannot be used as it was asked for: unknown, no such file or function, weights missing."""


class RewardFailure(Exception):
    """A reward gave no scores at all: a sentence that says what it did instead."""


@dataclass(frozen=True)
class Scores:
    """Scores of n pictures: value (n,), NaN = missing; std (n,) = how unsure each is, None = unknown."""

    value: NDArray[np.float64]
    std: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        std_shape = self.value.shape if self.std is None else self.std.shape
        if self.value.ndim != 1 or std_shape != self.value.shape:
            raise ValueError(f"Scores are one number for each picture, not of shape {self.value.shape} with std of shape {std_shape}.")

    @classmethod
    def missing(cls, count: int) -> "Scores":
        """`count` scores that nobody knows."""
        return cls(np.full(count, np.nan))


class Reward(Protocol):
    """A reward model. `scale` is the spread to expect among pictures of one prompt, in the reward's own unit."""

    @property
    def name(self) -> str: ...

    @property
    def scale(self) -> float: ...

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        """One score for each picture and its prompt; higher is better."""
        ...


def ask(reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str]) -> tuple[Scores, str | None]:
    """(scores (n,), None), or with a reason where some are no numbers. RewardFailure: an exception, or another count."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} pictures came with {len(prompts)} prompts; each needs its own.")
    try:
        scores = reward.score(images, prompts)
        values = np.array(scores.value, dtype=np.float64)
        std = None if scores.std is None else np.array(scores.std, dtype=np.float64)
    except Exception as error:  # a reward is anybody's code: whatever it raises must not stop the loop
        logger.warning("Reward %s failed", reward.name, exc_info=True)
        raise RewardFailure(f"'{reward.name}' failed: {type(error).__name__}: {error}") from error
    if len(values) != len(images):
        raise RewardFailure(f"'{reward.name}' gave {len(values)} scores for {len(images)} pictures.")
    unknown = ~np.isfinite(values)
    if not unknown.any():
        return Scores(values, std), None
    if std is not None:
        std[unknown] = np.nan
    values[unknown] = np.nan
    return Scores(values, std), f"'{reward.name}' has no score for {unknown.sum()} of {len(images)} pictures."


def score_safely(reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str]) -> tuple[Scores, str | None]:
    """As `ask`, and where the reward failed all scores are missing, with the reason."""
    try:
        return ask(reward, images, prompts)
    except RewardFailure as failure:
        return Scores.missing(len(images)), str(failure)
