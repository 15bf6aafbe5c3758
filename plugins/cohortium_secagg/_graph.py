"""Who is whose neighbour: a random k-regular graph that is hard to cut.

Sites stand in a circle in random order; each is joined to those at most `reach` places away, and,
where the degree is odd, to the one opposite: Harary's graph (1962) of connectivity k, the one of
Bell et al. (2020), section 3.
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
        reach: How many places to either side a site is joined to.
        opposite: Whether it is joined to the site across as well.
    """

    circle: tuple[SiteId, ...]
    reach: int
    opposite: bool

    @classmethod
    def draw(cls, sites: Sequence[SiteId], degree: int, stream: KeyStream) -> Graph:
        """A random graph in which each of `sites` has `degree` neighbours.

        It is complete where `sites` are too few.  An odd degree over an odd number of sites
        cannot be: there every site has one neighbour more.  The least degree is 2, a ring:
        pairs would not hang together.
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
        """Neighbours of a site, which is also how many removals it takes to cut the graph."""
        return min(2 * self.reach + self.opposite, len(self.circle) - 1)

    def neighbours(self) -> dict[SiteId, frozenset[SiteId]]:
        """The neighbours of every site."""
        count = len(self.circle)
        steps = {step for near in range(1, self.reach + 1) for step in (near, -near)}
        if self.opposite:
            steps.add(count // 2)
        return {
            site: frozenset(self.circle[(place + step) % count] for step in steps) - {site}
            for place, site in enumerate(self.circle)
        }

    def is_connected_after_removing(self, present: Collection[SiteId], *, without: int) -> bool:
        """Whether `present` hang together however up to `without` of them are taken away.

        Guarantees:
            Exact where the degree is even.  Edges to the site opposite are left out of account
            once removals reach the degree, which errs towards False.
        """
        count, reach = len(self.circle), self.reach
        removed = count - len(present)
        if removed + without < self.degree or self.degree == count - 1 or not present:
            return True
        # An edge spans at most `reach` places.  So a cut is two gaps of `reach` places in a row,
        # each emptied of whoever is present there, with someone left on either side.
        places = [place for place, site in enumerate(self.circle * 3) if site in present]
        cost = [
            bisect_left(places, start + reach) - bisect_left(places, start)
            for start in range(count)
        ]
        # Where the second gap may start; both ends of that range move on with the first gap, so
        # each start comes and goes once.  A start that a later one undercuts never counts again.
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
    """The largest part of `sites` in which each has, with itself, `quorum` in its neighbourhood."""
    kept = set(sites)
    waiting = list(kept)
    while waiting:
        site = waiting.pop()
        if site in kept and len(neighbours[site] & kept) + 1 < quorum:
            kept.remove(site)
            waiting += neighbours[site] & kept
    return frozenset(kept)
