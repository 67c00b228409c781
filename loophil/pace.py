"""How long drawing, learning and rating take here, and whose turn the device is. Seconds, as they were measured; it keeps no clock."""

from __future__ import annotations

import statistics
from itertools import pairwise

USUAL_RATING = 2.5
REMEMBERED = 8  # ratings that say how fast somebody rates
NEWEST = 0.3  # share of the newest measurement in what is expected


class Pace:
    """Of one loop. Any thread may call `rated`, the others are the worker's.

    draw, update    for one group
    owed            seconds of updating to come before the next drawing, while there is something to learn; below 0 the drawing has its turn
    """

    def __init__(self) -> None:
        self.draw, self.update, self.owed = 2.0, 3.0, 0.0
        self._rated_at: tuple[float, ...] = ()

    @property
    def rating(self) -> float:
        """Median time between the last few ratings."""
        return statistics.median(later - earlier for earlier, later in pairwise(at)) if len(at := self._rated_at) > 1 else USUAL_RATING

    def rated(self, now: float) -> None:
        """Somebody rated, at this time."""
        self._rated_at = (*self._rated_at, now)[-REMEMBERED:]

    def drew(self, seconds: float) -> None:
        """A group was drawn: at least half of the time is the learner's, and it keeps up with what is drawn."""
        self.draw += NEWEST * (seconds - self.draw)
        price = max(seconds, self.update)
        self.owed = min(self.owed + price, price)

    def learned(self, seconds: float) -> None:
        """So long a step of an update took."""
        self.owed = max(self.owed - seconds, -self.draw)

    def updated(self, seconds: float) -> None:
        """An update is done, which took so long for each group that was new."""
        self.update += NEWEST * (seconds - self.update)
