"""What this person likes: learned from ratings, given plain arrays of features.

A Gaussian process over features of pictures (frozen open_clip vectors, statistics of the pixels, scores of reward models) with the Plackett-Luce
likelihood of what was preferred within each group; it knows how sure it is. It loads no model, reads no run and stores nothing: features and
ratings come from the caller, and it is fitted anew when they change, in milliseconds.

    utility   f ~ N(0, K),  K = sum over blocks b of the features:  v_b (linear kernel) + u_b (squared exponential kernel)
    choices   p(stars | f) = product over rated images i of  exp f_i / (exp f_i + sum of exp f_j over the siblings j with fewer stars)

Only order within a group counts: generous and harsh raters say the same, a tie says nothing, and f is in logits (1: preferred 73 : 27). So f is
handled as k - 1 contrasts of each group. The posterior is Laplace's (Rasmussen and Williams 2006, chapter 3); the variances v_b and u_b climb the
evidence by MacKay's fixed point (1992), so that a block which tells nothing of this person is turned down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import krippendorff
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_solve, cholesky, helmert, solve_triangular
from scipy.special import betaincinv, stdtrit

from loophil.errors import ConfigError

Array = NDArray[np.float64]

PRIOR_VARIANCE = 4.0  # of utility among siblings, in squared logits, all kernels together
PRIOR_WEIGHT = 0.2  # degrees of freedom of evidence that the prior of a kernel's variance is worth
ROUNDS = 8  # of the fixed point, a Newton step each
NEWTON_STEPS = 20
CONVERGED = 1e-6  # nats of log posterior that a Newton step gains
LAST = 40  # choices over which agreement is measured


@dataclass(frozen=True)
class Choice:
    """What one rater said of one group. Raters of the same group hand in the same features and the same group id.

    features   (k, d), NaN = unknown, which counts as the siblings' mean
    stars      (k,), NaN = not rated; best and worst of four are 5, 3, 3, 1
    """

    group: str
    rater: str
    features: Array
    stars: Array

    @property
    def tells(self) -> bool:
        """Whether it prefers any image to another."""
        rated = self.stars[np.isfinite(self.stars)]
        return bool(rated.size and rated.min() < rated.max())


@dataclass(frozen=True)
class Agreement:
    """How often pairs of siblings that a person told apart are ordered alike: share with its 95% interval, over n choices."""

    share: float
    low: float
    high: float
    choices: int

    @property
    def beyond_chance(self) -> bool:
        """Whether it is more than guessing."""
        return self.low > 0.5


class Taste:
    """A fitted taste: mean and standard deviation of the utility of any image, and how well it agrees with who rated."""

    def __init__(self, choices: Sequence[Choice], fit: _Fit | None) -> None:
        self._choices, self._fit = choices, fit

    @classmethod
    def fit(cls, choices: Sequence[Choice], *, blocks: Sequence[int] = (), rater: str | None = None) -> Taste:
        """Learns from all raters' choices, or from one rater's alone. Order matters only to `agreement`: oldest first.

        blocks: how many columns each kind of feature has, as (512, 12, 3) for open_clip, pixel statistics, scores; default: all are one kind.
        Raises ConfigError where widths differ, as after a change of the open_clip model.
        """
        telling = [choice for choice in choices if choice.tells and rater in (None, choice.rater)]
        if not telling:
            return cls([], None)
        widths = {choice.features.shape[1] for choice in telling} | ({sum(blocks)} if blocks else set())
        if len(widths) > 1:
            raise ConfigError(f"A taste learns from features of one width, not of {sorted(widths)}: compute them all with one open_clip model.")
        return cls(telling, _Fit(telling, tuple(blocks) or tuple(widths)))

    def score(self, features: ArrayLike) -> tuple[Array, Array]:
        """Utility of n images (n, d), against the average image seen -> mean (n,), std (n,), in logits.

        NaN in the features counts as the mean of the other rows. Before any choice: mean 0, the prior's standard deviation.
        """
        rows = np.asarray(features, dtype=np.float64)
        if self._fit is None:
            return np.zeros(len(rows)), np.full(len(rows), PRIOR_VARIANCE**0.5)
        mean, covariance = self._fit.predict(rows)
        return mean, _std(covariance)

    def compare(self, features: ArrayLike) -> tuple[Array, Array]:
        """Utility of k siblings (k, d), against their mean -> mean (k,), std (k,): what the order within one group rests on.

        What the prompt does to all of them alike is no doubt about any of them, so std is mostly smaller than that of `score`.
        """
        rows = np.asarray(features, dtype=np.float64)
        k = len(rows)
        centre = np.eye(k) - 1 / k
        mean, covariance = (np.zeros(k), PRIOR_VARIANCE * np.eye(k)) if self._fit is None else self._fit.predict(rows)
        return centre @ mean, _std(centre @ covariance @ centre)

    def agreement(self, *, last: int = LAST, rater: str | None = None) -> Agreement | None:
        """Leave-one-group-out agreement with the last choices (of one rater), None = there are none.

        Each choice is foretold by the posterior without any rater's choice on that group, in closed form from the fit (the variances of the
        kernels, a few numbers, stay). A pair foretold as a tie counts half.
        """
        if self._fit is None:
            return None
        asked = [n for n, choice in enumerate(self._choices) if rater in (None, choice.rater)][-last:]
        if not asked:
            return None
        foretold = self._fit.left_out([self._choices[n].group for n in asked])
        counts = [_alike(self._choices[n].stars, foretold[n]) for n in asked]
        agreed, pairs = np.array(counts, dtype=np.float64).T
        return Agreement(float(agreed.sum() / pairs.sum()), *interval(agreed, pairs), len(asked))


def interval(agreed: Array, pairs: Array) -> tuple[float, float]:
    """95% interval of sum(agreed) / sum(pairs) where the pairs of a group depend on each other (Korn and Graubard 1998).

    Clopper and Pearson's interval at the effective number of pairs: their number, over the design effect (variance between groups against that
    of independent pairs), less what so few groups leave unsure. The design effect is taken to be at most that of pairs which are all alike
    within their group, and at least half of it: groups foretold by one fit depend on each other, too, and with the bound at 1 somebody who
    rated at random was found to be understood in 8% of the cases, not 2.5%.
    agreed, pairs: (groups,), of each group.
    """
    groups, n = len(pairs), float(pairs.sum())
    share = float(agreed.sum() / n)
    most = float((pairs**2).sum() / n)
    effect = most
    if groups > 1 and 0 < share < 1:
        between = groups / (groups - 1) * float(((agreed - share * pairs) ** 2).sum())
        effect = float(np.clip(between / (n * share * (1 - share)), max(1.0, most / 2), most))
    effective = max(1.0, n / effect * (1.96 / stdtrit(max(groups - 1, 1), 0.975)) ** 2)
    right = share * effective
    low = float(betaincinv(right, effective - right + 1, 0.025)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, effective - right, 0.975)) if share < 1 else 1.0
    return low, high


def raters_agreement(choices: Sequence[Choice]) -> float | None:
    """Krippendorff's alpha (ordinal) over the images that two raters or more rated: 1 alike, 0 as by chance; None = nothing to compare.

    Of a rater who rated a group twice the later stars count. Unlike the taste, it takes stars as they are: a harsh rater disagrees.
    """
    raters = sorted({choice.rater for choice in choices})
    images = {(c.group, i): n for n, (c, i) in enumerate((c, i) for c in choices for i in range(len(c.stars)))}
    table = np.full((len(raters), len(choices) and max(images.values()) + 1), np.nan)
    for choice in choices:
        table[raters.index(choice.rater), [images[choice.group, i] for i in range(len(choice.stars))]] = choice.stars
    table = table[:, np.isfinite(table).sum(axis=0) > 1]
    if len(np.unique(table[np.isfinite(table)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"))


class _Fit:
    """The posterior of G choices: f at m = G (k - 1) contrasts, each of a group of k (smaller groups are filled up with unrated images).

    alpha   (m,)       K^-1 f at the mode, also the gradient of the log-likelihood
    root    (G, k-1, k-1)  square roots of the blocks of W, the negative Hessian of the log-likelihood
    lower   (m, m)     Cholesky factor of B = I + root K root
    """

    def __init__(self, choices: Sequence[Choice], blocks: tuple[int, ...]) -> None:
        self.groups = [choice.group for choice in choices]
        features, stars = _stacked(choices)
        self.space = _Space.of(features, blocks)
        self.contrasts = helmert(stars.shape[1])  # (k-1, k), orthonormal
        self.images = self.space.place(features).reshape(-1, features.shape[2])  # (G k, d)
        self.preferences = _Preferences(stars, self.contrasts)
        kernels = np.array([self._contrast(self._contrast(kernel).T) for kernel in self.space.kernels(self.images, self.images)])
        self.units = np.trace(kernels, axis1=1, axis2=2) / kernels.shape[1]  # utility's variance among siblings is then v itself
        self.units[self.units < 1e-12] = np.inf
        kernels /= self.units[:, None, None]
        self.variances = np.full(len(kernels), PRIOR_VARIANCE / len(kernels))
        self.alpha = np.zeros(kernels.shape[1])
        for _ in range(ROUNDS):
            self._solve(np.tensordot(self.variances, kernels, 1), steps=1)
            self._reweigh(kernels)
        self.kernel = np.tensordot(self.variances, kernels, 1)
        self._solve(self.kernel, steps=NEWTON_STEPS)

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean (n,) and covariance (n, n) of the utility of n images."""
        images = self.space.place(features)
        weights = self.variances / self.units
        seen = self._contrast(np.tensordot(weights, self.space.kernels(self.images, images), 1))  # (m, n)
        own = np.tensordot(weights, self.space.kernels(images, images), 1)
        known = solve_triangular(self.lower, _times(self.root, seen), lower=True)
        return seen.T @ self.alpha, own - known.T @ known

    def left_out(self, groups: Sequence[str]) -> dict[int, Array]:
        """{number of a choice: (k,) utilities of its images, as foretold without all choices on its group}, for the choices on these groups.

        Taking the choices' Gaussian share (precision W, gradient alpha) out of the posterior N(f, S) leaves f - (I - S W)^-1 S alpha there.
        """
        explained = solve_triangular(self.lower, _times(self.root, self.kernel), lower=True)
        mode, size, foretold = self.kernel @ self.alpha, len(self.contrasts), dict[int, Array]()
        for group in set(groups):
            members = [n for n, each in enumerate(self.groups) if each == group]
            at = np.concatenate([np.arange(n * size, (n + 1) * size) for n in members])
            posterior = self.kernel[np.ix_(at, at)] - explained[:, at].T @ explained[:, at]
            precision = np.zeros_like(posterior)
            for i, n in enumerate(members):
                precision[i * size : (i + 1) * size, i * size : (i + 1) * size] = self.root[n] @ self.root[n]
            cavity = mode[at] - np.linalg.solve(np.eye(len(at)) - posterior @ precision, posterior @ self.alpha[at])
            foretold |= {n: cavity[i * size : (i + 1) * size] @ self.contrasts for i, n in enumerate(members)}
        return foretold

    def _solve(self, kernel: Array, *, steps: int) -> None:
        """Newton's ascent of the log posterior from where `alpha` is, which is concave; a step that would overshoot is halved."""
        value, gradient, curvature = self._posterior(kernel, self.alpha)
        for _ in range(steps):
            self._factor(kernel, curvature)
            wanted = _times(curvature, kernel @ self.alpha) + gradient
            target = wanted - _times(self.root, cho_solve((self.lower, True), _times(self.root, kernel @ wanted)))
            for step in (1.0, 0.5, 0.25, 0.1, 0.01):
                alpha = self.alpha + step * (target - self.alpha)
                reached, gradient, curvature = self._posterior(kernel, alpha)
                if reached >= value:
                    break
            gain, value, self.alpha = reached - value, reached, alpha
            if gain < CONVERGED:
                break
        self._factor(kernel, curvature)

    def _posterior(self, kernel: Array, alpha: Array) -> tuple[float, Array, Array]:
        f = kernel @ alpha
        value, gradient, curvature = self.preferences.log_likelihood(f)
        return value - 0.5 * float(alpha @ f), gradient, curvature

    def _factor(self, kernel: Array, curvature: Array) -> None:
        values, vectors = np.linalg.eigh(curvature)
        self.root = (vectors * np.sqrt(np.maximum(values, 0))[:, None, :]) @ vectors.transpose(0, 2, 1)
        self.lower = cholesky(np.eye(len(kernel)) + _times(self.root, _times(self.root, kernel).T), lower=True)

    def _reweigh(self, kernels: Array) -> None:
        """v <- v (v alpha' K alpha + p) / (v tr(R K) + p v / prior), R = (K + W^-1)^-1: where the evidence is largest both agree."""
        precision = _times(self.root, _times(self.root, cho_solve((self.lower, True), np.eye(len(self.lower)))).T)
        used = self.variances * (kernels @ self.alpha @ self.alpha)
        expected = self.variances * np.array([np.vdot(precision, kernel) for kernel in kernels])
        prior = PRIOR_VARIANCE / len(kernels)
        self.variances = self.variances * (used + PRIOR_WEIGHT) / (expected + PRIOR_WEIGHT * self.variances / prior)

    def _contrast(self, rows: Array) -> Array:
        """(G k, n) of images -> (m, n) of contrasts."""
        contrasts: Array = self.contrasts @ rows.reshape(len(self.groups), -1, rows.shape[1])
        return contrasts.reshape(-1, rows.shape[1])


class _Preferences:
    """Plackett and Luce's likelihood of G groups' stars (G, k): each rated image against those with fewer stars."""

    def __init__(self, stars: Array, contrasts: Array) -> None:
        below: NDArray[np.bool_] = np.less(stars[:, None, :], stars[:, :, None])  # [g, i, j]: j has fewer stars than i
        self.wins: NDArray[np.bool_] = np.any(below, axis=2)
        self.rivals = (below | np.eye(stars.shape[1], dtype=bool)) & self.wins[:, :, None]
        self.contrasts = contrasts

    def log_likelihood(self, f: Array) -> tuple[float, Array, Array]:
        """Value, gradient (m,) and negative Hessian (G, k-1, k-1) at the contrasts f (m,)."""
        utility = f.reshape(len(self.wins), -1) @ self.contrasts
        top = utility.max(axis=1, keepdims=True)
        odds = np.where(self.rivals, np.exp(np.maximum(utility - top, -500))[:, None, :], 0.0)
        total = np.where(self.wins, odds.sum(axis=2), 1.0)
        chances = odds / total[:, :, None]
        value = float(((utility - top - np.log(total)) * self.wins).sum())
        expected = chances.sum(axis=1)
        spread = expected[:, :, None] * np.eye(expected.shape[1]) - chances.transpose(0, 2, 1) @ chances
        return value, ((self.wins - expected) @ self.contrasts.T).ravel(), self.contrasts @ spread @ self.contrasts.T


@dataclass(frozen=True)
class _Space:
    """Features as the kernels want them: known, in units of their usual spread among siblings, in blocks of a kind.

    centre, scale (d,); edges of the blocks; spans: mean squared distance of two images seen, by block.
    """

    centre: Array
    scale: Array
    edges: tuple[tuple[int, int], ...]
    spans: tuple[float, ...] = ()

    @classmethod
    def of(cls, groups: Array, blocks: tuple[int, ...]) -> _Space:
        """Fitted to groups of siblings (G, k, d). A column that never differs among siblings says nothing: its scale is 0."""
        known = np.isfinite(groups)
        apart = np.where(known, groups - _mean_of_known(groups), 0)
        freedom = np.maximum(known.sum(axis=1) - 1, 0).sum(axis=0)
        std = np.sqrt((apart**2).sum(axis=(0, 1)) / np.maximum(freedom, 1))
        largest = np.where(known, np.abs(groups), 0).max(axis=(0, 1))
        scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 1e-9 * largest)
        centre = np.nan_to_num(_mean_of_known(groups.reshape(-1, groups.shape[2]))[0])
        ends = np.cumsum(blocks).tolist()
        space = cls(centre, scale, tuple(zip([0, *ends[:-1]], ends, strict=True)))
        spread = space.place(groups).var(axis=(0, 1))
        return replace(space, spans=tuple(2 * float(spread[start:end].sum()) for start, end in space.edges))

    def place(self, features: Array) -> Array:
        """(k, d) of siblings or (G, k, d) -> the same shape: what is unknown is their mean, or the centre where none of them knows."""
        width = features.shape[-1]
        if width != len(self.centre):
            raise ConfigError(f"This taste knows features of width {len(self.centre)}, not {width}: use the open_clip model that it learned by.")
        known = np.where(np.isfinite(features), features, _mean_of_known(features))
        placed: Array = (known - self.centre) * self.scale
        return np.nan_to_num(placed)

    def kernels(self, first: Array, second: Array) -> Array:
        """(2 blocks, n, m): the linear and the squared exponential kernel of each block, for n and m placed images."""
        kernels = []
        for (start, end), span in zip(self.edges, self.spans, strict=True):
            a, b = first[:, start:end], second[:, start:end]
            inner = a @ b.T
            distance = np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * inner, 0)
            kernels += [inner, np.exp(-distance / (2 * span)) if span > 0 else np.zeros_like(inner)]
        return np.array(kernels)


def _mean_of_known(features: Array) -> Array:
    """(..., n, d) -> (..., 1, d), NaN where no row knows."""
    known = np.isfinite(features)
    count = known.sum(axis=-2, keepdims=True)
    total = np.where(known, features, 0).sum(axis=-2, keepdims=True)
    mean: Array = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean


def _stacked(choices: Sequence[Choice]) -> tuple[Array, Array]:
    """Features (G, k, d) and stars (G, k); smaller groups are filled up with images of which nothing is known."""
    k = max(len(choice.stars) for choice in choices)
    features = np.full((len(choices), k, choices[0].features.shape[1]), np.nan)
    stars = np.full((len(choices), k), np.nan)
    for n, choice in enumerate(choices):
        features[n, : len(choice.stars)], stars[n, : len(choice.stars)] = choice.features, choice.stars
    return features, stars


def _times(blocks: Array, rows: Array) -> Array:
    """Block-diagonal (G, c, c) times (G c,) or (G c, n)."""
    return (blocks @ rows.reshape(len(blocks), blocks.shape[1], -1)).reshape(rows.shape)


def _std(covariance: Array) -> Array:
    return np.sqrt(np.maximum(np.diagonal(covariance), 0))


def _alike(stars: Array, foretold: Array) -> tuple[float, int]:
    """(pairs foretold in the order of the stars, pairs that the stars tell apart)."""
    better = stars[:, None] > stars[None, :]
    utility = foretold[: len(stars)]
    gap = (utility[:, None] - utility[None, :])[better]
    return float((gap > 0).sum() + 0.5 * (gap == 0).sum()), len(gap)
