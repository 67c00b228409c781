"""Groups that are drawn and wait for somebody to rate them: in which order they are offered, and how many there should be.

In memory; the store keeps the groups. When more are drawn, loop.py decides. Any thread may call anything.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from loophil.types import Group

AT_HAND = 2  # first groups of an offer, which a page shows or is about to show


def prefetch_target(prefetch: int, seconds_of_work: float, seconds_per_rating: float) -> int:
    """Groups to keep ahead, 1..prefetch: as many as are rated while the worker learns from one group and draws one, plus one.

    Deep for a fast rater (nobody waits), shallow for a slow one (the pictures are by a younger policy).
    """
    return max(1, min(prefetch, 1 + math.ceil(seconds_of_work / max(0.1, seconds_per_rating))))


@dataclass(frozen=True)
class Offer:
    """`wanted`: somebody asked for this very group; it comes first and does not go stale. `rater`: for them alone, "" = for anyone."""

    group: Group
    wanted: bool = False
    rater: str = ""


class Stock:
    """What `upcoming` offers. A group leaves when anyone has rated it, is taken out by a caller, or goes stale unseen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offers: dict[str, Offer] = {}
        self._seen: set[str] = set()

    def __len__(self) -> int:
        """Groups for anyone."""
        with self._lock:
            return sum(not offer.rater for offer in self._offers.values())

    def add(self, group: Group, *, wanted: bool = False, rater: str = "") -> None:
        """Offers a group from now on."""
        with self._lock:
            self._offers[group.id] = Offer(group, wanted, rater)

    def offer(self, rater: str, limit: int) -> list[Group]:
        """The next groups for this rater, those asked for first, then the oldest. They stay in stock until they are rated."""
        with self._lock:
            groups = [offer.group for offer in self._for(rater)[:limit]]
            self._seen.update(group.id for group in groups[:AT_HAND])
        return groups

    def take(self, rater: str) -> Group | None:
        """Takes the next group for this rater out of the stock; None if there is none."""
        with self._lock:
            mine = self._for(rater)
            return self._offers.pop(mine[0].group.id).group if mine else None

    def remove(self, group_id: str) -> None:
        """No longer offered: it was rated."""
        with self._lock:
            self._offers.pop(group_id, None)
            self._seen.discard(group_id)

    def withdraw(self, oldest: int) -> list[str]:
        """Takes out what was drawn by versions before `oldest`, unless somebody asked for it or may be looking at it; the ids."""
        with self._lock:
            stale = [
                key
                for key, offer in self._offers.items()
                if offer.group.policy_version < oldest and not offer.wanted and not offer.rater and key not in self._seen
            ]
            for key in stale:
                del self._offers[key]
        return stale

    def _for(self, rater: str) -> list[Offer]:
        mine = [offer for offer in self._offers.values() if offer.rater in ("", rater)]
        return sorted(mine, key=lambda offer: not offer.wanted)
