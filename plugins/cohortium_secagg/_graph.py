"""The neighbours of each site: a random k-regular graph, hard to cut.

Sites stand in a circle in random order.  Each is joined to those at most `reach` places away and,
where the degree is odd, to the one opposite.  This is Harary's graph (1962) of connectivity k, the
one of Bell et al. (2020), section 3.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from cohortium.plugin import KeyStream, SiteId


@frozen
class Graph:
    """A graph of sites.

    Attributes:
        circle: The sites in their random order.
        reach: Number of places to either side within which a site is joined to others.
        opposite: Whether a site is also joined to the one across the circle.
    """

    circle: tuple[SiteId, ...]
    reach: int
    opposite: bool

    @classmethod
    def draw(cls, sites: Sequence[SiteId], degree: int, stream: KeyStream) -> Graph:
        """Draw a random graph in which each of `sites` has `degree` neighbours.

        The graph is complete if `sites` are too few.  An odd degree over an odd number of sites is
        impossible.  There, every site has one neighbour more.  The least degree is 2, a ring,
        because separate pairs would not be connected.
        """
        count = len(sites)
        reach, odd = divmod(min(max(degree, 2), count - 1), 2)
        opposite = bool(odd) and count % 2 == 0
        if odd and not opposite:
            reach += 1
        rank = {site: stream.bytes(16) for site in sorted(sites)}
        return cls(tuple(sorted(sites, key=rank.__getitem__)), reach, opposite)

    @property
    def degree(self) -> int:
        """Number of a site's neighbours, and of removals that cut the graph."""
        return min(2 * self.reach + self.opposite, len(self.circle) - 1)

    def neighbours(self) -> dict[SiteId, frozenset[SiteId]]:
        """Return the neighbours of every site."""
        count = len(self.circle)
        steps = {step for near in range(1, self.reach + 1) for step in (near, -near)}
        if self.opposite:
            steps.add(count // 2)
        return {
            site: frozenset(self.circle[(place + step) % count] for step in steps) - {site}
            for place, site in enumerate(self.circle)
        }

    def is_connected_after_removing(self, present: Collection[SiteId], *, without: int) -> bool:
        """Return whether `present` stay connected if any `without` of them are removed.

        Guarantees:
            Exact where the degree is even.  Edges to the site opposite are not counted once
            removals reach the degree, which errs towards False.
        """
        count, reach = len(self.circle), self.reach
        removed = count - len(present)
        if removed + without < self.degree or self.degree == count - 1 or not present:
            return True
        # An edge spans at most `reach` places.  So a cut is two gaps of `reach` places in a row.
        # Each gap is emptied of all present sites, and some site is left on either side.
        places = [place for place, site in enumerate(self.circle * 3) if site in present]
        cost = [
            bisect_left(places, start + reach) - bisect_left(places, start)
            for start in range(count)
        ]
        # Where the second gap may start.  Both ends of that range advance with the first gap, so
        # each start enters and leaves once.  A start that a later and cheaper one replaces never
        # counts again.
        cheapest: deque[int] = deque()
        come = 0
        for one in range(count):
            first = places[bisect_left(places, one + reach)] + 1
            last = places[bisect_left(places, one + count) - 1] - reach
            for two in range(come, last + 1):
                while cheapest and cost[cheapest[-1] % count] >= cost[two % count]:
                    cheapest.pop()
                cheapest.append(two)
            come = max(come, last + 1)
            while cheapest and cheapest[0] < first:
                cheapest.popleft()
            if cheapest and cost[one] + cost[cheapest[0] % count] <= without:
                return False
        return True


def k_core(
    neighbours: Mapping[SiteId, frozenset[SiteId]], sites: Collection[SiteId], quorum: int
) -> frozenset[SiteId]:
    """Return the largest part of `sites` whose secrets can all be recovered.

    In it, each site has `quorum` sites of that part in its neighbourhood, itself included.
    """
    kept = set(sites)
    waiting = list(kept)
    while waiting:
        site = waiting.pop()
        if site in kept and len(neighbours[site] & kept) + 1 < quorum:
            kept.remove(site)
            waiting += neighbours[site] & kept
    return frozenset(kept)
