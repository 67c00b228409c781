"""How soon the taste model knows what somebody likes: simulated people, pictures of the picture world, no diffusion model.

    python -m bench taste [--tastes brightness,...] [--seeds 0,1,2] [--random 200]

Groups of 4 pictures of one scene in varied styles. The person likes a measure of the pixels (bench/tastes.py), feels it with noise, set so that
they agree with themselves in 80% of the pairs, and says it in turns by best and worst and in stars, with lapses and skips. What is reported is
the share of pairs of siblings, in groups never rated, that the model puts in the order of the noise-free utility: the median over tastes
and seeds, with the quarters. Most of the tastes are near one of the pixel statistics, so of what these bring to real people it says little.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from bench.tastes import LAPSES, SKIPS, STARS_PER_STD, TASTES
from data.scenes import caption, render, sample_scene, sample_style
from loophil.taste import Choice, Taste
from rewards.features import pixel_statistics, shared_features

Array = NDArray[np.float64]
Learner = Callable[[Sequence[Choice], tuple[int, ...]], Callable[[Array], Array]]

SIZES = (8, 16, 32, 64)  # groups rated
HELD_OUT = 60  # groups
K = 4
SELF_AGREEMENT = 0.8
PENALTIES = np.geomspace(0.01, 100, 9)


def run(argv: list[str]) -> int:
    """Prints the table, then what the model says of people who rate at random."""
    parser = argparse.ArgumentParser(prog="python -m bench taste", description=__doc__)
    parser.add_argument("--tastes", default=",".join(TASTES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--random", type=int, default=200, help="people who rate at random")
    given = parser.parse_args(argv)
    right: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    by_taste: dict[str, list[float]] = {name: [] for name in given.tastes.split(",")}
    said: list[tuple[float, float]] = []
    worlds = [_World(int(seed)) for seed in given.seeds.split(",")]
    for world in worlds:
        for name in by_taste:
            utilities = world.utilities(name)
            stars = _Person(utilities[: max(SIZES)]).rate(np.random.default_rng(world.seed + 100))
            for variant, (blocks, learner) in VARIANTS.items():
                right[variant].append([world.measure(learner, blocks, stars[:size], utilities) for size in SIZES])
            by_taste[name].append(right[DEFAULT][-1][-1])
            agreement = Taste.fit(world.choices(BOTH, stars), blocks=world.widths(BOTH)).agreement(last=max(SIZES))
            said += [(agreement.low, agreement.high)] if agreement else []
    _report(right, by_taste)
    print(f"\nleave-one-group-out interval after {max(SIZES)} groups, mean: {np.mean(said, axis=0)[0]:.0%} to {np.mean(said, axis=0)[1]:.0%}")
    for size in (8, 40):
        beyond = sum(_understands_at_random(worlds[0], size, np.random.default_rng(n)) for n in range(given.random))
        print(f"{size} groups rated at random: said to be understood beyond chance: {beyond} of {given.random} people")
    return 0


class _World:
    """Pictures of 64 groups to be rated and of 60 held out, with their features."""

    def __init__(self, seed: int) -> None:
        self.seed, rng = seed, np.random.default_rng(seed)
        scenes = [sample_scene(rng) for _ in range(max(SIZES) + HELD_OUT)]
        self.prompts = [caption(scene, rng)[0] for scene in scenes]
        self.images = [[render(scene, sample_style(rng), rng) for _ in range(K)] for scene in scenes]
        flat = [image for group in self.images for image in group]
        self.kinds = {"clip": shared_features().images(flat), "pixels": pixel_statistics(flat)}

    def features(self, kinds: tuple[str, ...]) -> Array:
        """(groups, k, d)."""
        return np.hstack([self.kinds[kind] for kind in kinds]).reshape(len(self.images), K, -1)

    def widths(self, kinds: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.kinds[kind].shape[1] for kind in kinds)

    def choices(self, kinds: tuple[str, ...], stars: Array) -> list[Choice]:
        return [Choice(str(n), "", features, rated) for n, (features, rated) in enumerate(zip(self.features(kinds), stars, strict=False))]

    def utilities(self, name: str) -> Array:
        """(groups, k), without noise."""
        return np.array([[TASTES[name].utility(i, prompt) for i in group] for group, prompt in zip(self.images, self.prompts, strict=True)])

    def measure(self, learner: Learner, kinds: tuple[str, ...], stars: Array, utilities: Array) -> float:
        """Share of the pairs of held-out siblings in the order of the utility."""
        predict = learner(self.choices(kinds, stars), self.widths(kinds))
        shares = list(_same_order(utilities[-HELD_OUT:], np.array([predict(group) for group in self.features(kinds)[-HELD_OUT:]])))
        return float(np.mean(shares))


class _Person:
    """Rates groups by their utilities (groups, k), as consistently as SELF_AGREEMENT says."""

    def __init__(self, utilities: Array) -> None:
        apart = utilities - utilities.mean(axis=1, keepdims=True)
        self.felt = apart / (np.sqrt((apart**2).sum() / (apart.size - len(apart))) or 1.0)
        low, high = 0.02, 5.0
        for _ in range(12):
            self.noise = float(np.sqrt(low * high))
            low, high = (self.noise, high) if self._agrees_with_itself() > SELF_AGREEMENT else (low, self.noise)

    def rate(self, rng: np.random.Generator) -> Array:
        """Stars (groups, k): best and worst of every other group, stars of the rest."""
        felt = self.felt + self.noise * rng.standard_normal(self.felt.shape)
        stars = np.clip(np.round(3 + STARS_PER_STD * felt), 1, 5)
        stars[::2] = 3 + 2.0 * (felt == felt.max(axis=1, keepdims=True))[::2] - 2.0 * (felt == felt.min(axis=1, keepdims=True))[::2]
        chance = rng.random(stars.shape)
        stars = np.where(chance < LAPSES, rng.integers(1, 6, stars.shape), stars)
        return np.where((chance >= LAPSES) & (chance < LAPSES + SKIPS), np.nan, stars)

    def _agrees_with_itself(self) -> float:
        rng = np.random.default_rng(0)
        return float(np.mean([share for _ in range(10) for share in _same_order(self.rate(rng), self.rate(rng))]))


def _same_order(first: Array, second: Array) -> Iterator[float]:
    """1, 0.5 or 0 for each pair of siblings that the first tells apart and the second knows; (groups, k) both."""
    better = first[:, :, None] > first[:, None, :]
    gap = (second[:, :, None] - second[:, None, :])[better]
    yield from np.where(gap == 0, 0.5, gap > 0)[np.isfinite(gap)].tolist()


def _taste(choices: Sequence[Choice], blocks: tuple[int, ...]) -> Callable[[Array], Array]:
    fitted = Taste.fit(choices, blocks=blocks)
    return lambda group: fitted.score(group)[0]


def _ridge(choices: Sequence[Choice], blocks: tuple[int, ...]) -> Callable[[Array], Array]:
    """Ridge regression of stars on features, both against their siblings' mean; the penalty by leave-one-out error."""
    scale = _scale(choices, blocks)
    rows = np.concatenate([(c.features - c.features[np.isfinite(c.stars)].mean(axis=0))[np.isfinite(c.stars)] for c in choices if c.tells]) * scale
    stars = np.concatenate([(c.stars - np.nanmean(c.stars))[np.isfinite(c.stars)] for c in choices if c.tells])
    left, sizes, right = np.linalg.svd(rows, full_matrices=False)

    def error(penalty: float) -> float:
        kept = left * (sizes**2 / (sizes**2 + penalty))
        return float((((stars - kept @ (left.T @ stars)) / (1 - (kept * left).sum(axis=1))) ** 2).mean())

    best = min(PENALTIES, key=error)
    weights = right.T @ (sizes / (sizes**2 + best) * (left.T @ stars))
    return lambda group: np.asarray(group * scale @ weights)


def _bradley_terry(choices: Sequence[Choice], blocks: tuple[int, ...]) -> Callable[[Array], Array]:
    """Logistic regression of every pair on the difference of its features; weights of unit prior variance."""
    scale = _scale(choices, blocks)
    pairs = [(c.features[i] - c.features[j]) * scale for c in choices for i, j in np.argwhere(c.stars[:, None] > c.stars[None, :])]
    rows = np.array(pairs).reshape(len(pairs), -1)

    def loss(weights: Array) -> tuple[float, Array]:
        margin = rows @ weights
        return float(np.logaddexp(0, -margin).sum() + 0.5 * weights @ weights), weights - rows.T @ expit(-margin)

    weights = minimize(loss, np.zeros(len(scale)), jac=True, method="L-BFGS-B").x
    return lambda group: np.asarray(group * scale @ weights)


def _scale(choices: Sequence[Choice], blocks: tuple[int, ...]) -> Array:
    """(d,) that gives every column the same spread among siblings, and every block the variance 1."""
    apart = np.concatenate([c.features - c.features.mean(axis=0) for c in choices])
    return np.asarray(1 / (apart.std(axis=0) + 1e-9) / np.sqrt(np.repeat(blocks, blocks)))


def _understands_at_random(world: _World, size: int, rng: np.random.Generator) -> bool:
    """Whether a person who names best and worst by dice is said to be understood."""
    stars = np.array([rng.permutation([5.0, 3.0, 3.0, 1.0]) for _ in range(size)])
    agreement = Taste.fit(world.choices(BOTH, stars), blocks=world.widths(BOTH)).agreement()
    return agreement is not None and agreement.beyond_chance


def _report(right: dict[str, list[list[float]]], by_taste: dict[str, list[float]]) -> None:
    print("| model | features | " + " | ".join(f"{size} groups" for size in SIZES) + " |\n|---|---|" + "---|" * len(SIZES))
    for variant, rows in right.items():
        cells = [f"{middle:.0%} ({low:.0%} to {high:.0%})" for low, middle, high in np.percentile(rows, (25, 50, 75), axis=0).T]
        print(f"| {variant} | {' + '.join(VARIANTS[variant][0])} | " + " | ".join(cells) + " |")
    print(f"\n{DEFAULT}, after {max(SIZES)} groups: " + ", ".join(f"{name} {np.median(shares):.0%}" for name, shares in by_taste.items()))


BOTH = ("clip", "pixels")
DEFAULT = "taste model"
VARIANTS: dict[str, tuple[tuple[str, ...], Learner]] = {
    DEFAULT: (BOTH, _taste),
    "taste model without statistics": (("clip",), _taste),
    "taste model without CLIP": (("pixels",), _taste),
    "ridge on stars": (BOTH, _ridge),
    "linear Bradley-Terry": (BOTH, _bradley_terry),
}
