"""Failure probabilities of a sparse random graph, and the least sufficient neighbourhood.

Sites stand in a circle in random order.  Each is joined to the k around it (`_graph`).  The
colluding and the lost sites do not depend on that order.  So the number of them in given places is
hypergeometric.  Each failure is bounded by a sum over sites or pairs of places:

    exposed      t or more of an honest site's neighbours collude: they know its secrets
    split        the honest contributors fall into parts: the sum of each can be opened
    unrecovered  fewer than t holders of a secret that is needed are left: nothing can be opened

Bell et al. (2020) bound the same three events.  Two things are those of the parameter finder in
Google's implementation (google-parfait/federated-compute,
fcp/secagg/server/graph_parameter_finder.cc).  These are the hypergeometric tails in place of closed
forms, and the two gaps in the circle.  Here a site is a shareholder of its own secrets too, and the
graph is drawn over the sites that sent keys.

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
"""Probability with which an attempt may fail although no more sites are lost than declared.

The value is that of the finder named above.  A failed attempt is tried again and reveals nothing,
so this is not a matter of security.
"""


@frozen
class Hypergeometric:
    """Number of successes in a sample without replacement.

    Attributes:
        population: Size of the population.
        successes: Number of successes in it.
        drawn: Size of the sample.
    """

    population: int
    successes: int
    drawn: int

    def tail_probability(self, count: int) -> Fraction:
        """Return the probability of `count` or more."""
        ways = sum(ways for number, ways in self._downwards() if number >= count)
        return Fraction(ways, comb(self.population, self.drawn))

    def upper_tail_quantile(self, probability: Fraction) -> int:
        """Return the least count that is reached with probability at most `probability`.

        To reach a count is to have that many or more.
        """
        allowed = probability.numerator * comb(self.population, self.drawn)
        reached = 0
        for number, ways in self._downwards():
            reached += ways
            if reached * probability.denominator > allowed:
                return number + 1
        return 0

    def _downwards(self) -> Iterator[tuple[int, int]]:
        """Yield each possible number of successes, and in how many ways.

        The largest number comes first.
        """
        others = self.population - self.successes
        number = min(self.successes, self.drawn)
        ways = comb(self.successes, number) * comb(others, self.drawn - number)
        while number >= 0 and ways:
            yield number, ways
            ways = ways * number * (others - self.drawn + number)
            number -= 1
            ways //= (self.successes - number) * (self.drawn - number)


def gap_probability(places: int, removed: int, reach: int) -> Fraction:
    """Return an upper bound on the probability that a circle falls apart.

    The circle has `places`, of which `removed` are taken away.  Sites at most `reach` places apart
    are joined.  To fall apart, the circle must lose `reach` places in a row, at two spots with a
    site left between them on either side.  The sum is over pairs of spots.
    """
    pairs = Fraction(places * max(0, places - 2 * reach - 1), 2)
    return pairs * Fraction(perm(removed, 2 * reach), perm(places, 2 * reach))


class ThresholdRange(NamedTuple):
    """Thresholds for one degree: from `least` they hide, to `most` they recover."""

    least: int
    most: int


@frozen
class GraphRequirements:
    """Requirements that a graph has to meet.

    Attributes:
        sites: Number of sites that are asked in an attempt.
        colluding: How many of them collude, chosen before the graph is drawn.
        lost: The most sites that drop out, at any stage, while the attempt is still to succeed.
        failure_probability: The largest probability with which an attempt may expose a site or
            split the sum.
    """

    sites: int
    colluding: int
    lost: int
    failure_probability: Fraction

    def degrees(self) -> Iterator[int]:
        """Yield the even degrees, then the degree of a complete graph.

        An even degree suits every number of sites.
        """
        yield from range(2, self.sites - 1, 2)
        yield self.sites - 1

    def window(self, degree: int) -> ThresholdRange | None:
        """Return the thresholds that are sufficient at `degree`, if there are any."""
        if not self.is_connected(degree, self.sites - self.lost):
            return None
        window = ThresholdRange(self.hides(degree, self.sites - self.lost), self._recovers(degree))
        return window if window.least <= window.most else None

    def hides(self, degree: int, least: int) -> int:
        """Return the least threshold that an honest site's colluding neighbours miss.

        It holds for every attempt in which at least `least` of the sites have sent keys.  The fewer
        sites these are, the larger is the part of them that colludes.
        """
        # An odd degree over an odd number of sites is rounded up (`Graph.draw`).
        others, degree = least - 1, degree + degree % 2
        honest = max(1, self.sites - self.colluding)
        draw = Hypergeometric(others, min(self.colluding, others), min(degree, others))
        return max(2, draw.upper_tail_quantile(self.failure_probability / 2 / honest))

    def is_connected(self, degree: int, least: int) -> bool:
        """Return whether the honest among `least` or more contributors stay connected.

        The more sites sent keys, the more of them have been lost since, and the likelier is a
        split.
        """
        if degree >= self.sites - 1:
            return True
        removed = self.colluding + self.sites - least
        return gap_probability(self.sites, removed, degree // 2) <= self.failure_probability / 2

    def fewest(self, degree: int, threshold: int) -> int:
        """Return the least number of contributors to a sum that is opened."""
        low, high = self.colluding + 2, self.sites - self.lost
        while low < high:
            middle = (low + high) // 2
            if self.hides(degree, middle) <= threshold and self.is_connected(degree, middle):
                high = middle
            else:
                low = middle + 1
        return high

    def _recovers(self, degree: int) -> int:
        """Return the greatest threshold that the remaining holders of every secret meet."""
        others, degree = self.sites - 1, min(degree, self.sites - 1)
        if not self.lost:
            return degree + 1
        gone = (
            Hypergeometric(others, self.lost, degree).upper_tail_quantile(
                UNRECOVERED / 2 / self.sites
            )
            - 1
        )
        beside = (
            Hypergeometric(others, self.lost - 1, degree).upper_tail_quantile(
                UNRECOVERED / 2 / self.lost
            )
            - 1
        )
        # A lost site no longer holds a share of its own secrets.
        return min(degree + 1 - gone, degree - beside)
