"""SecAgg+: the coordinator learns the sum of what the sites release, and nothing of any one site.

    aggregator = SecAgg(reconstruction_threshold=4, num_shares=5)

Every two neighbours of a random graph agree on a mask that one adds and the other subtracts; every
site adds one more of its own.  The secrets behind the masks are shared among neighbours, so that
the masks of a site that drops out, at whatever stage, can still be taken off the sum.

Bell, Bonawitz, Gascón, Lepoint and Raykova (2020), "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", over Bonawitz et al. (2017), "Practical Secure Aggregation for
Privacy-Preserving Machine Learning".

By default it is built against a coordinator that follows the protocol and looks
(honest-but-curious), with some sites on its side.  With `adversary = "active"` it holds against one
that lies as well: sites sign their keys and the set of survivors, believe a pinned directory only,
and all share with all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le, lt

from cohortium.plugin import Aggregator, Offer, hookimpl

if TYPE_CHECKING:
    from cohortium.plugin import (
        AggregationConfig,
        CoordinatorSession,
        FederationSpec,
        Randomness,
        SiteContext,
        SiteSession,
    )
    from cohortium_secagg._sharing import Sharing

COHORTIUM_API = 1


@frozen
class SecAgg:
    """Pairwise and own masks with shared secrets, over a random graph of neighbours.

    A secret has `num_shares` shareholders, its site and the site's neighbours, or all the sites
    that take part where they are fewer.  (Where a graph of that degree cannot be, with an even
    number of shares over an odd number of sites, every site has one neighbour more.)  Against an
    active coordinator all that take part are shareholders of each other.

    Guarantees:
        An honest-but-curious coordinator and `cohort.max_colluding` sites together learn the sum
        over the other contributors, and nothing else about any of them: the graph of contributors
        is opened only if no `max_colluding` sites can cut it.  It rests on X25519, HKDF-SHA256,
        AES-256 and ChaCha20-Poly1305.  A sum has at least max(reconstruction_threshold,
        min_contributors, max_colluding + 2) contributors; a site refuses to help open a smaller
        one.  Every dropout is recovered, at any stage, while `reconstruction_threshold`
        shareholders answer for each secret that is needed; else the attempt fails and nothing is
        released.  An active coordinator and `cohort.max_colluding` sites together learn, in each
        attempt, the sum over one set of at least max(reconstruction_threshold, min_contributors,
        max_colluding + 2) sites, the colluding ones included, which it may choose by pretending
        that others dropped out; or nothing.  It rests also on Ed25519, and on a directory that is
        the same and true at every honest site.  Dropouts and colluding sites draw on the same
        neighbours: 4 of 5 shares survive one lost shareholder in a neighbourhood, or three
        colluding sites, but not both at once.  With `max_dropout_rate`, an attempt survives the
        loss of that fraction of its sites, at whatever stages, but for one in 2**20.  On a sparse
        graph the first guarantee then holds for all attempts of the run but with probability
        2**-security_bits: it rests on the graph, which is drawn independently of who colludes and
        who is lost (`_bounds` has the calculation).

    Attributes:
        reconstruction_threshold: Shareholders that recover a secret; fewer learn nothing about it.
            0 chooses 4, or the greatest that survives `max_dropout_rate`, or against an active
            coordinator the least t with 2t > m + max_colluding, for m sites.
        num_shares: Shareholders of a secret.  0 chooses 5, or the least that survive
            `max_dropout_rate`, or all.
        max_dropout_rate: The largest fraction of sites that may drop out of an attempt.  0 declares
            none.
        security_bits: The sparse graph that `max_dropout_rate` asks for may fail in one of
            2**security_bits runs.
        threads: How many mask and sum vectors, at each party for itself.  0 takes one for each
            core that the party's process may use.  The bits are the same whatever the number.
    """

    reconstruction_threshold: int = field(default=0, validator=[ge(0), le(1 << 16)])
    num_shares: int = field(default=0, validator=[ge(0), le(1 << 16)])
    max_dropout_rate: float = field(default=0.0, validator=[ge(0), lt(1)])
    security_bits: int = field(default=40, validator=[ge(1), le(256)])
    threads: int = field(default=0, validator=[ge(0), le(256)])

    def confidentiality(self, cohort: FederationSpec) -> Sharing:
        """What the coordinator and the colluding sites of `cohort` can learn, and its numbers.

        Raises:
            StudyError: It protects too little, or the cohort cannot meet it.
        """
        from cohortium_secagg._sharing import choose_parameters

        return choose_parameters(self, cohort)

    def coordinator_session(
        self, setting: AggregationConfig, secret: Randomness
    ) -> CoordinatorSession:
        """The coordinator's session of a run.

        Raises:
            StudyError: The threshold or the cohort is too small (the sentence names the least
                that would do), or the directory does not list the sites.
        """
        from cohortium_secagg._coordinator import SecAggCoordinator
        from cohortium_secagg._rules import ProtocolParameters
        from cohortium_secagg._vectors import available_cpus

        protocol = ProtocolParameters.agreed(self, setting)
        return SecAggCoordinator(protocol, secret, threads=self.threads or available_cpus())

    def site_session(self, setting: AggregationConfig, member: SiteContext) -> SiteSession:
        """One site's session of a run.

        Raises:
            StudyError: As for the coordinator: no site lends itself to what protects too little.
                Or the site's key is not the one that the directory lists.
        """
        from cohortium_secagg._rules import ProtocolParameters
        from cohortium_secagg._site import SecAggSite
        from cohortium_secagg._vectors import available_cpus

        protocol = ProtocolParameters.agreed(self, setting)
        return SecAggSite(protocol, member, threads=self.threads or available_cpus())


@hookimpl
def cohortium_aggregators() -> list[Offer[Aggregator]]:
    """Offer `secagg`."""
    return [
        Offer(
            "secagg", SecAgg, "Secure aggregation (SecAgg+): only the sum is seen; dropouts heal."
        )
    ]
