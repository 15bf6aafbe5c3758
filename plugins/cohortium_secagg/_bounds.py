"""How likely a sparse random graph is to fail, and the least neighbourhood with which it holds.

Sites stand in a circle in random order, each joined to the k around it (`_graph`).  Which sites
collude, and which are lost, does not depend on that order.  So how many of them stand in given
places is hypergeometric, and what can go wrong is bounded by a sum over sites or pairs of places:

    exposed      t or more of an honest site's neighbours collude: they know its secrets
    split        the honest contributors fall into parts: the sum of each can be opened
    unrecovered  fewer than t holders of a secret that is needed are left: nothing can be opened

Bell et al. (2020) bound the same three events.  The hypergeometric tails in place of closed forms,
and the two gaps in the circle, are those of the parameter finder in Google's implementation
(google-parfait/federated-compute, fcp/secagg/server/graph_parameter_finder.cc).  Here a site is a
shareholder of its own secrets too, and the graph is drawn over the sites that sent keys.

All arithmetic is in integers: no figure is rounded to the insecure side.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb, perm
from typing import TYPE_CHECKING, NamedTuple

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

UNRECOVERED = Fraction(1, 1 << 20)
"""How often an attempt may fail though no more sites are lost than declared, as in that finder.

A failed attempt is tried again and reveals nothing, so this is not a matter of security.
"""


@frozen
class Hypergeometric:
    """How many of the `marked` are among `drawn`, taken from `population` at random."""

    population: int
    marked: int
    drawn: int

    def at_least(self, count: int) -> Fraction:
        """The probability of `count` or more."""
        ways = sum(ways for number, ways in self._downwards() if number >= count)
        return Fraction(ways, comb(self.population, self.drawn))

    def rare(self, odds: Fraction) -> int:
        """The least count that is reached, or exceeded, with probability `odds` at most."""
        allowed = odds.numerator * comb(self.population, self.drawn)
        reached = 0
        for number, ways in self._downwards():
            reached += ways
            if reached * odds.denominator > allowed:
                return number + 1
        return 0

    def _downwards(self) -> Iterator[tuple[int, int]]:
        """Each possible number of marked ones, the largest first, and in how many ways it comes."""
        others = self.population - self.marked
        number = min(self.marked, self.drawn)
        ways = comb(self.marked, number) * comb(others, self.drawn - number)
        while number >= 0 and ways:
            yield number, ways
            ways = ways * number * (others - self.drawn + number)
            number -= 1
            ways //= (self.marked - number) * (self.drawn - number)


def gap_probability(places: int, removed: int, reach: int) -> Fraction:
    """At least the probability that a circle without `removed` of its `places` falls apart.

    Sites at most `reach` places apart are joined.  To fall apart it must lose `reach` in a row, at
    two spots with someone between them on either side; the sum is over pairs of spots.
    """
    pairs = Fraction(places * max(0, places - 2 * reach - 1), 2)
    return pairs * Fraction(perm(removed, 2 * reach), perm(places, 2 * reach))


class ThresholdRange(NamedTuple):
    """The thresholds that do for one degree: from `least` they hide, up to `most` they recover."""

    least: int
    most: int


@frozen
class GraphRequirements:
    """What a graph is to hold against.

    Attributes:
        sites: That are asked in an attempt.
        colluding: Of them, chosen before the graph is drawn.
        lost: The most that drop out, at whatever stage, while the attempt is still to succeed.
        odds: The largest probability with which an attempt may expose a site or split the sum.
    """

    sites: int
    colluding: int
    lost: int
    odds: Fraction

    def degrees(self) -> Iterator[int]:
        """The even degrees, which every number of sites allows, and that of all with all."""
        yield from range(2, self.sites - 1, 2)
        yield self.sites - 1

    def window(self, degree: int) -> ThresholdRange | None:
        """The thresholds that do for a graph of `degree`, if any do."""
        if not self.is_connected(degree, self.sites - self.lost):
            return None
        window = ThresholdRange(self.hides(degree, self.sites - self.lost), self._recovers(degree))
        return window if window.least <= window.most else None

    def hides(self, degree: int, least: int) -> int:
        """The least threshold that is not met by an honest site's colluding neighbours.

        It holds for every attempt in which `least` of the sites or more have sent keys: the fewer
        they are, the more of them collude.
        """
        # An odd degree over an odd number of sites is rounded up (`Graph.draw`).
        others, degree = least - 1, degree + degree % 2
        honest = max(1, self.sites - self.colluding)
        draw = Hypergeometric(others, min(self.colluding, others), min(degree, others))
        return max(2, draw.rare(self.odds / 2 / honest))

    def is_connected(self, degree: int, least: int) -> bool:
        """Whether the honest among `least` contributors or more are not split.

        The more sites sent keys, the more of them have been lost since, and the likelier it is.
        """
        if degree >= self.sites - 1:
            return True
        removed = self.colluding + self.sites - least
        return gap_probability(self.sites, removed, degree // 2) <= self.odds / 2

    def fewest(self, degree: int, threshold: int) -> int:
        """The least number of contributors over which a sum may be opened."""
        low, high = self.colluding + 2, self.sites - self.lost
        while low < high:
            middle = (low + high) // 2
            if self.hides(degree, middle) <= threshold and self.is_connected(degree, middle):
                high = middle
            else:
                low = middle + 1
        return high

    def _recovers(self, degree: int) -> int:
        """The greatest threshold that the remaining holders of every needed secret meet."""
        others, degree = self.sites - 1, min(degree, self.sites - 1)
        if not self.lost:
            return degree + 1
        gone = Hypergeometric(others, self.lost, degree).rare(UNRECOVERED / 2 / self.sites) - 1
        beside = Hypergeometric(others, self.lost - 1, degree).rare(UNRECOVERED / 2 / self.lost) - 1
        # A site that is lost holds nothing of its own secrets any more.
        return min(degree + 1 - gone, degree - beside)
