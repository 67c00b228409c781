"""What the loop understands of the people's taste: a taste model on all ratings, how often it agrees with them, and what it thinks of pictures.

Ratings that were imported come before the run's own, and teach here alone.

It keeps pictures' features and asks the engine for those it does not have, so it lives in the worker's thread; all but `look` and `judge` only
reads. What the taste is made of is in taste.py, when it is asked in loop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from loophil.store import Store, Taught
from loophil.taste import Agreement, Choice, Taste, raters_agreement
from loophil.types import Group

EVERYBODY = ""  # whose taste is pooled; no rater has this name
TASTE = "taste"  # its name among the sources of a reward
SCALE = 1.0  # nominal spread of its scores among siblings, in logits
FEWEST = 8  # choices before it is trusted, whatever they say
CAUTION = 0.5  # standard deviations that a score lies below the mean: what it does not know it does not praise
REMEMBERED = 128  # groups: the newest that were rated, and the newest automatic ones

Array = NDArray[np.float64]
Describe = Callable[[Group], Sequence[Array]]  # (k, d) of each kind of feature


class Understanding:
    """Of one run, as of the last `look`: of all raters together, or with pooling off of each alone.

    between: Krippendorff's alpha of raters who rated the same images, None = none did
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._features: dict[str, Sequence[Array]] = {}
        self._fitted: tuple[object, ...] = ()
        self._tastes: dict[str, Taste] = {}  # by rater; EVERYBODY's where they are pooled
        self._agreements: dict[str, Agreement] = {}
        self.between: float | None = None

    @property
    def share(self) -> float | None:
        """How often it agrees, the mean over raters; None = nobody has preferred anything yet."""
        return float(np.mean([agreement.share for agreement in self._agreements.values()])) if self._agreements else None

    @property
    def weight(self) -> float:
        """How much it may say, 0..1: how far its agreement is beyond chance, 0 while that may be luck; the mean over raters."""
        return float(np.mean([_trust(agreement) for agreement in self._agreements.values()])) if self._agreements else 0.0

    def of(self, rater: str) -> Agreement | None:
        """How well this rater is understood, or all of them where they are pooled; None = they have preferred nothing yet."""
        return self._agreements.get(EVERYBODY) or self._agreements.get(rater)

    def sentence(self, *, rewards: bool) -> str:
        """Why it may teach in automatic rounds, or why not. rewards: reward models judge them, too, so that they go on without it."""
        if max((agreement.choices for agreement in self._agreements.values()), default=0) < FEWEST:
            begin = "Your taste has a say in automatic rounds" if rewards else "Automatic rounds begin"
            return f"{begin} once {FEWEST} groups with a preference are rated."
        if not self.weight:
            stop = "Reward models alone judge automatic rounds" if rewards else "Automatic rounds have stopped"
            return f"{stop}: how well your taste is understood may be luck. Go on rating."
        return "Automatic rounds go on by themselves while nobody waits."

    def look(self, describe: Describe, *, pooled: bool = True) -> None:
        """Learns the taste anew, if ratings have come or gone. pooled: all raters have one taste; else each has their own."""
        own = [taught for taught in self._store.learnable_groups() if taught.ratings]
        rated = [*self._store.imported(REMEMBERED), *own][-REMEMBERED:]
        acts = (pooled, *((taught.group.id, taught.acts) for taught in rated))
        if acts == self._fitted:
            return
        self._features = {name: known for name, known in self._features.items() if name in self._kept(rated)}
        choices = [choice for taught in rated for choice in self._choices(taught, describe)]
        widths = [part.shape[1] for part in self._features[choices[0].group]] if choices else []
        raters = sorted({choice.rater for choice in choices})
        self._tastes = {EVERYBODY: Taste.fit(choices, blocks=widths)} if pooled else {r: Taste.fit(choices, blocks=widths, rater=r) for r in raters}
        agreements = {rater: taste.agreement() for rater, taste in self._tastes.items()}
        self._agreements = {rater: agreement for rater, agreement in agreements.items() if agreement is not None}
        self.between = raters_agreement(choices)
        self._fitted = acts

    def judge(self, group: Group, describe: Describe) -> None:
        """Its opinion of a group becomes the group's scores, if it counts."""
        if self.weight:
            self._store.add_scores(group.id, TASTE, self._opinion(self._of(group, describe)))

    def with_opinion(self, taught: Taught) -> Taught:
        """What is known of a group, with what it thinks of it now instead of then."""
        if TASTE in taught.scores and taught.group.id in self._features and self._agreements:
            taught.scores[TASTE] = self._opinion(self._features[taught.group.id])
        return taught

    def _opinion(self, features: Sequence[Array]) -> Array:
        """(k,): of each image among its siblings; the raters' in the mean, weighted by how well each is understood."""
        rows, opinions, trusts = np.hstack(features), [], []
        for rater, agreement in self._agreements.items():
            mean, std = self._tastes[rater].compare(rows)
            opinions.append(mean - CAUTION * std)
            trusts.append(_trust(agreement))
        opinion: Array = np.average(opinions, axis=0, weights=trusts if any(trusts) else None)
        return opinion

    def _choices(self, taught: Taught, describe: Describe) -> list[Choice]:
        try:
            features = np.hstack(self._of(taught.group, describe))
        except OSError:  # a picture is lost: what was said of it says nothing now
            return []
        return [Choice(taught.group.id, rater, features, stars) for rater, stars in taught.ratings.items()]

    def _of(self, group: Group, describe: Describe) -> Sequence[Array]:
        if group.id not in self._features:
            self._features[group.id] = describe(group)
        return self._features[group.id]

    def _kept(self, rated: Sequence[Taught]) -> set[str]:
        """The groups whose features stay in memory."""
        mine = {taught.group.id for taught in rated}
        return mine | set([name for name in self._features if name not in mine][-REMEMBERED:])


def _trust(agreement: Agreement) -> float:
    """0..1: how far beyond chance, 0 while that may be luck."""
    return 2 * agreement.share - 1 if agreement.choices >= FEWEST and agreement.beyond_chance else 0.0
