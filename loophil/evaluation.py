"""Figures: does the tuned model win, by how much, is it still diverse, does it still do what the prompt says.

Base and tuned draw the same held-out prompts at the same seeds; everything is paired. It measures, it never trains, and what a
picture is worth (`utility`) or whether it follows its prompt (`follows`) comes from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from loophil.sampler import Sampler
    from loophil.types import DrawSettings

Pictures = list[list[Image.Image]]
Utility = Callable[[Image.Image, str], float]
Follows = Callable[[Image.Image, str], float | None]

SEEDS = (101, 102, 103, 104)


@dataclass(frozen=True)
class Figures:
    """What one measurement says; formulas in the README. None where nothing can be said."""

    win_rate: float
    effect: float
    diversity: float | None
    prompt_following: float | None
    base_prompt_following: float | None


class Examiner:
    """Held-out prompts x at least two fixed seeds, drawn by the base once and by the published adapter at each measurement."""

    def __init__(self, prompts: Sequence[str], settings: DrawSettings, utility: Utility, follows: Follows, *, seeds: Sequence[int] = SEEDS) -> None:
        self.prompts, self.settings, self.seeds = tuple(prompts), settings, tuple(seeds)
        self.utility, self.follows = utility, follows
        self._base: Pictures | None = None

    def measure(self, sampler: Sampler) -> Figures:
        """Figures of the published version against the base."""
        if self._base is None:
            self._base = self.draw(sampler, "base")
        tuned = self._base if sampler.policy.version == 0 else self.draw(sampler, "published")
        return self.compare(self._base, tuned)

    def draw(self, sampler: Sampler, who: str) -> Pictures:
        """One list of len(seeds) pictures per prompt."""
        return [sampler.pictures(prompt, self.settings, self.seeds, who=who) for prompt in self.prompts]

    def compare(self, base: Pictures, tuned: Pictures) -> Figures:
        """Figures of two sets of pictures of the same prompts and seeds."""
        before, after, base_spread = self._values(base), self._values(tuned), spread(base)
        return Figures(
            win_rate=win_rate(before, after),
            effect=effect(before, after),
            diversity=spread(tuned) / base_spread if base_spread > 0 else None,
            prompt_following=self._following(tuned),
            base_prompt_following=self._following(base),
        )

    def _values(self, pictures: Pictures) -> NDArray[np.float64]:
        return np.array([[self.utility(image, prompt) for image in row] for prompt, row in zip(self.prompts, pictures, strict=True)])

    def _following(self, pictures: Pictures) -> float | None:
        shares = [self.follows(image, prompt) for prompt, row in zip(self.prompts, pictures, strict=True) for image in row]
        known = [share for share in shares if share is not None and math.isfinite(share)]
        return float(np.mean(known)) if known else None


def win_rate(base: NDArray[np.float64], tuned: NDArray[np.float64]) -> float:
    """Share of pairs in which tuned beats base, ties half; both (prompts, seeds)."""
    return float(np.mean((tuned > base) + 0.5 * (tuned == base)))


def effect(base: NDArray[np.float64], tuned: NDArray[np.float64]) -> float:
    """mean(tuned - base) / pooled within-prompt standard deviation of base (ddof 1); both (prompts, seeds >= 2). 0 where base has no spread."""
    std = float(np.sqrt(base.var(axis=1, ddof=1).mean()))
    return float((tuned - base).mean() / std) if std > 0 else 0.0


def spread(pictures: Pictures) -> float:
    """Mean distance of two pictures of one prompt: root mean squared difference of 32x32 RGB pixels in 0..1, over all pairs."""
    distances = []
    for row in pictures:
        pixels = [np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX), float) / 255 for image in row]
        distances += [float(np.sqrt(np.mean((a - b) ** 2))) for i, a in enumerate(pixels) for b in pixels[:i]]
    return float(np.mean(distances))


def wilson(wins: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share `wins` / `n` (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = wins / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
