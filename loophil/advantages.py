"""Rewards of one group -> advantages: LOOP's leave-one-out baseline, and those of REINFORCE and PPO to compare it with.

Not where sources are mixed (mixing.py) or where losses live (objectives.py). Plain numpy, since k is 4: no device, no gradients.
In all of it NaN, or any reward that is not finite, means "not rated": left out of every baseline, advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def leave_one_out(rewards: ArrayLike) -> NDArray[np.float64]:
    """RLOO and LOOP: each image against the mean of its rated siblings, (k,) -> (k,).

        A_i = r_i - 1/(n-1) * sum_{j != i} r_j = n/(n-1) * (r_i - mean r)        over the n rated images

    Not divided by the group's standard deviation. One rated image alone has no siblings: 0. All tied: exactly 0.
    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; LOOP, arXiv 2503.00897.
    """
    rewards = np.asarray(rewards, dtype=np.float64)  # stars are whole numbers, their means are not
    rated = np.isfinite(rewards)
    advantages = np.zeros_like(rewards)
    n = int(rated.sum())
    if n > 1:
        r = rewards[rated] - rewards[rated][0]  # from a common origin, so that a tie is 0 to the last bit
        advantages[rated] = n / (n - 1) * (r - r.mean())
    return advantages


@dataclass(frozen=True)
class Moments:
    """What the baselines remember of the rewards so far: of the whole run (REINFORCE) or of one prompt (PPO)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def add(self, rewards: ArrayLike) -> Moments:
        """The moments with (k,) more rewards; the unrated do not count. Source: Welford 1962, by which equal rewards have exactly no spread."""
        count, mean, squares = self.count, self.mean, self.squares
        for r in np.asarray(rewards, dtype=np.float64):
            if np.isfinite(r):
                count, shift = count + 1, r - mean
                mean += shift / count
                squares += shift * (r - mean)
        return Moments(count, float(mean), float(squares))

    @property
    def std(self) -> float:
        """Population standard deviation, as DDPO takes it; 0 before the first reward."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


def minus_mean(rewards: ArrayLike, past: Moments) -> NDArray[np.float64]:
    """REINFORCE with a running mean: A_i = r_i - mean, (k,) -> (k,).

    `past` are the moments *before* this group, so that the baseline does not depend on what it judges; an empty past is plain REINFORCE, A = r.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    return np.where(np.isfinite(rewards), rewards - past.mean, 0.0)


def standardize(rewards: ArrayLike, moments: Moments) -> NDArray[np.float64]:
    """PPO as DDPO runs it: A_i = (r_i - mean) / std with the statistics of this prompt, (k,) -> (k,).

    `moments` are those of the prompt *with* this group added; where they have no spread there is no signal: 0.
    Source: Black et al. 2023, "Training Diffusion Models with Reinforcement Learning", arXiv 2305.13301, section 5.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if moments.std == 0:
        return np.zeros_like(rewards)
    return np.where(np.isfinite(rewards), (rewards - moments.mean) / moments.std, 0.0)
