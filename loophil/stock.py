"""Groups that are drawn and wait for somebody to rate them: in which order they are offered, to whom, and how many there should be.

In memory; the store keeps the groups. When more are drawn, loop.py decides. Any thread may call anything.

What is offered to one page is leased to it: no other page gets it until the lease has run out. A page asks again long before that; one that was
closed does not. When more pages come, each gets its share at its next asking.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from loophil.types import Group

AT_HAND = 2  # first groups of an offer, which a page shows or is about to show
LEASE_SECONDS = 30.0  # a page asks at least every 15 s
MOST_AHEAD = 16  # however many pages say that they are open: their names are chosen by whoever asks


def prefetch_target(prefetch: int, seconds_of_work: float, seconds_per_rating: float, pages: int = 1) -> int:
    """Groups to keep ahead, 1..prefetch: as many as are rated while the worker learns from one group and draws one, plus one.

    Deep for a fast rater (nobody waits), shallow for a slow one (the pictures are by a younger policy). At least one for each page that is
    open, and one more, even if `prefetch` is less: a page that has nothing waits for a whole drawing.
    """
    enough = max(1, min(prefetch, 1 + math.ceil(seconds_of_work / max(0.1, seconds_per_rating))))
    return enough if pages < 2 else max(enough, min(pages + 1, MOST_AHEAD))


@dataclass(frozen=True)
class Offer:
    """`wanted`: somebody asked for this very group; it comes first and does not go stale. `rater`: for them alone, "" = for anyone."""

    group: Group
    wanted: bool = False
    rater: str = ""


class Stock:
    """What `upcoming` offers. A group leaves when anyone has rated it, is taken out by a caller, or goes stale unseen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._offers: dict[str, Offer] = {}
        self._seen: set[str] = set()
        self._leases: dict[str, str] = {}  # group -> the page that has it
        self._asked: dict[str, tuple[float, str]] = {}  # page -> when it asked last, and for whom

    def __len__(self) -> int:
        """Groups for anyone."""
        with self._lock:
            return sum(not offer.rater for offer in self._offers.values())

    def add(self, group: Group, *, wanted: bool = False, rater: str = "") -> None:
        """Offers a group from now on."""
        with self._lock:
            self._offers[group.id] = Offer(group, wanted, rater)

    @property
    def pages(self) -> int:
        """How many pages hold leases or ask for groups."""
        with self._lock:
            self._expire()
            return len(self._asked)

    @property
    def raters(self) -> int:
        """How many people these pages belong to."""
        with self._lock:
            self._expire()
            return len({rater for _, rater in self._asked.values()})

    def offer(self, rater: str, limit: int, *, page: str = "") -> list[Group]:
        """The next groups for this rater's page ("" = the rater has one page), those asked for first, then the oldest.

        They stay in stock until they are rated, and are leased to the page.
        """
        page = page or rater
        with self._lock:
            self._asked[page] = (self._clock(), rater)
            self._expire()
            offers = self._for(rater, page)
            everybodys = sum(not offer.rater for offer in self._offers.values())
            share = min(limit, max(AT_HAND, math.ceil(everybodys / len(self._asked))) + sum(bool(offer.rater) for offer in offers))
            groups = [offer.group for offer in offers[:share]]
            self._leases = {group: holder for group, holder in self._leases.items() if holder != page} | {group.id: page for group in groups}
            self._seen.update(group.id for group in groups[:AT_HAND])
        return groups

    def show(self, limit: int) -> list[Group]:
        """Groups for somebody who only looks: the oldest, whoever has them, and nothing is leased."""
        with self._lock:
            return [offer.group for offer in self._offers.values() if not offer.rater][:limit]

    def take(self, rater: str) -> Group | None:
        """Takes the next group for this rater that no page holds out of the stock; None if there is none."""
        with self._lock:
            self._expire()
            mine = self._for(rater, "")
            return self._offers.pop(mine[0].group.id).group if mine else None

    def remove(self, group_id: str) -> None:
        """No longer offered: it was rated."""
        with self._lock:
            self._offers.pop(group_id, None)
            self._leases.pop(group_id, None)
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

    def _for(self, rater: str, page: str) -> list[Offer]:
        """What this page ("" = none) may have, in order; what it holds already stays before what nobody holds."""
        mine = [o for o in self._offers.values() if o.rater in ("", rater) and self._leases.get(o.group.id, page) == page]
        return sorted(mine, key=lambda offer: (not offer.wanted, offer.group.id not in self._leases))

    def _expire(self) -> None:
        """Forgets pages that have not asked for so long that they must be closed."""
        oldest = self._clock() - LEASE_SECONDS
        self._asked = {page: (at, rater) for page, (at, rater) in self._asked.items() if at >= oldest}
        self._leases = {group: page for group, page in self._leases.items() if page in self._asked}
