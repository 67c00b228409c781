"""Ratings and scores of one group -> one advantage per image, and each source's share in it.

A source is one rater ("human:anna") or one reward model ("clip_score"). Sources differ in scale and in which images they know, so what is
summed is never their values but their own advantages, each in units of that source's usual spread. Not a place for state: the caller keeps
the past groups and hands them in.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loophil.advantages import leave_one_out
from loophil.errors import ConfigError
from loophil.types import HUMAN, SourceValues

PRIOR_GROUPS = 2


def pooled_std(groups: Iterable[ArrayLike], nominal: float) -> float:
    """A source's usual spread within a group: the pooled standard deviation of all its groups so far, always > 0.

        s^2 = (sum_g SS_g + 2 d nominal^2) / (sum_g (n_g - 1) + 2 d)        SS_g = sum_i (r_gi - mean_g)^2,  d = mean of n_g - 1

    over the groups with n_g >= 2 rated images (ddof 1; ties count, with SS = 0). The prior is worth 2 average groups at the nominal scale,
    so that the first group cannot be its own yardstick and a run of ties cannot bring it to 0.

    groups: the source's values of each group, (k,) with NaN = unrated.  nominal: the spread it states, in its own units.
    Raises ConfigError where the nominal spread is not a positive number.
    """
    if not (np.isfinite(nominal) and nominal > 0):
        raise ConfigError(f"A source's nominal scale must be a number above 0, not {nominal}: state the usual spread of its values within a group.")
    rated = [r[np.isfinite(r)] for r in (np.asarray(g, dtype=np.float64) for g in groups)]
    rated = [r for r in rated if r.size > 1]
    if not rated:
        return float(nominal)
    squares = sum(float(((r - r.mean()) ** 2).sum()) for r in rated)
    freedom = sum(r.size - 1 for r in rated)
    prior = PRIOR_GROUPS * freedom / len(rated)
    return float(np.sqrt((squares + prior * nominal**2) / (freedom + prior)))


def mix(
    sources: Sequence[SourceValues],
    stds: Mapping[str, float],
    clip: float,
    *,
    advantage: Callable[[SourceValues], NDArray[np.float64]] = lambda source: leave_one_out(source.values),
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """A_i = sum_s w_s * clip(A_i^s / std_s, -clip, clip): each source's own advantages, weighted -> (k,) and {source: share}.

    A source that says nothing about an image adds 0 there and is left out of its own baseline, so the image stands neither above nor below
    its siblings for it. The raters of a group share the human weight equally: w = weight / number of raters.

    sources: at least one, all of the same k.  stds: pooled_std of each; a source without a past has its nominal scale.
    clip: in standard deviations.  advantage: the baseline; LOOP's and RLOO's unless a comparison needs another.
    shares: each source's part of sum |w A|, adding up to 1, or all 0 where no source says anything.
    """
    raters = sum(map(_compares, sources))
    parts = {s.source: _weight(s, raters) * np.clip(advantage(s) / stds.get(s.source, s.scale), -clip, clip) for s in sources}
    said = {source: float(np.abs(part).sum()) for source, part in parts.items()}
    total = sum(said.values())
    return np.sum(list(parts.values()), axis=0), {source: part / total if total else 0.0 for source, part in said.items()}


def _compares(source: SourceValues) -> bool:
    """Whether this is a rater who rated two images or more: who rated fewer compares nothing and must not halve the others' weight."""
    return source.source.startswith(HUMAN) and int(np.isfinite(source.values).sum()) > 1


def _weight(source: SourceValues, raters: int) -> float:
    return source.weight / max(raters, 1) if source.source.startswith(HUMAN) else source.weight
