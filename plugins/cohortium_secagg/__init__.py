"""SecAgg+: the coordinator learns only the sum of the releases.

    aggregator = SecAgg(reconstruction_threshold=4, num_shares=5)

The coordinator learns nothing else of any one site.

Every two neighbours of a random graph agree on a mask.  One of them adds it and the other subtracts
it.  Every site adds one more mask of its own.  Each site shares the secrets behind its masks among
its neighbours.  So the coordinator can still take off the masks of a site that drops out at any
stage.

Bell, Bonawitz, Gascón, Lepoint and Raykova (2020), "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead".  It builds on Bonawitz et al. (2017), "Practical Secure Aggregation for
Privacy-Preserving Machine Learning".

By default it protects against an honest-but-curious coordinator: one that follows the protocol and
looks.  Some sites may collude with that coordinator.  With `adversary = "active"` it also protects
against a coordinator that lies.  Then sites sign their keys and the set of survivors, believe a
pinned directory only, and all share with all.
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
    from cohortium_secagg._parameter_selection import Sharing

COHORTIUM_API = 1


@frozen
class SecAgg:
    """Pairwise and own masks with shared secrets, over a random graph.

    A secret has `num_shares` shareholders: its site and the site's neighbours.  If fewer sites take
    part, all of them are shareholders.  With an even number of shares over an odd number of sites,
    no graph of that degree exists.  There, every site has one neighbour more.  Against an active
    coordinator, all sites that take part are shareholders of each other.

    Guarantees:
        An honest-but-curious coordinator and `max_colluding` sites together learn the sum
        over the other contributors.  They learn nothing else about any of them.  A sum is opened
        only if no `max_colluding` sites can cut the graph of contributors.  This rests on X25519,
        HKDF-SHA256, AES-256 and ChaCha20-Poly1305.
        A sum has at least max(reconstruction_threshold, min_contributors, max_colluding + 2)
        contributors.  A site refuses to help open a smaller one.
        Every dropout is recovered, at any stage, while `reconstruction_threshold` shareholders
        answer for each secret that is needed.  Otherwise the attempt fails and nothing is released.
        An active coordinator and `max_colluding` sites together learn one sum in each
        attempt, or nothing.  That sum is over at least max(reconstruction_threshold,
        min_contributors, max_colluding + 2) sites, the colluding ones included.  The coordinator
        may choose this set, by pretending that other sites dropped out.  This rests also on
        Ed25519, and on a directory that is the same and true at every honest site.
        Dropouts and colluding sites draw on the same neighbours.  For example, 4 of 5 shares
        survive one lost shareholder in a neighbourhood, or three colluding sites, but not both at
        once.
        With `max_dropout_rate`, an attempt survives the loss of that fraction of its sites, at any
        stage.  It fails to do so in at most one of 2**20 attempts.  On a sparse graph, the first
        guarantee then holds for all attempts of the run, except with probability 2**-security_bits.
        It rests on the graph, which is drawn independently of the choice of colluding and lost
        sites (`_bounds` has the calculation).

    Attributes:
        reconstruction_threshold: Number of shareholders that recover a secret.  Fewer learn nothing
            about it. 0 chooses 4, or the greatest number that survives `max_dropout_rate`.  Against
            an active coordinator, 0 chooses the least t with 2t > m + max_colluding, for m sites.
        num_shares: Shareholders of a secret. 0 chooses 5, or the least number that survives
            `max_dropout_rate`, or all.
        max_dropout_rate: The largest fraction of sites that may drop out of an attempt. 0 declares
            none.
        security_bits: The sparse graph that `max_dropout_rate` asks for may fail in one of
            2**security_bits runs.
        threads: Number of threads that mask and sum vectors, at each party. 0 takes one for each
            core that the party's process may use.  The bits are the same for any number.
    """

    reconstruction_threshold: int = field(default=0, validator=[ge(0), le(1 << 16)])
    num_shares: int = field(default=0, validator=[ge(0), le(1 << 16)])
    max_dropout_rate: float = field(default=0.0, validator=[ge(0), lt(1)])
    security_bits: int = field(default=40, validator=[ge(1), le(256)])
    threads: int = field(default=0, validator=[ge(0), le(256)])

    def confidentiality(self, federation_spec: FederationSpec) -> Sharing:
        """Return the guarantee against the coordinator and colluding sites of `federation_spec`.

        Raises:
            StudyError: It protects too little, or the cohort cannot meet it.
        """
        from cohortium_secagg._parameter_selection import choose_parameters

        return choose_parameters(self, federation_spec)

    def coordinator_session(
        self, config: AggregationConfig, secret: Randomness
    ) -> CoordinatorSession:
        """Build the coordinator's session of a run.

        Raises:
            StudyError: The threshold or the cohort is too small (the sentence names the least
                sufficient number), or the directory does not list the sites.
        """
        from cohortium_secagg._coordinator import SecAggCoordinator
        from cohortium_secagg._protocol_parameters import ProtocolParameters
        from cohortium_secagg._vectors import available_cpus

        protocol = ProtocolParameters.agreed(self, config)
        return SecAggCoordinator(protocol, secret, threads=self.threads or available_cpus())

    def site_session(self, config: AggregationConfig, site_context: SiteContext) -> SiteSession:
        """Build one site's session of a run.

        Raises:
            StudyError: As for the coordinator, since no site takes part if the protection is too
                weak.  Or the directory lists another key for the site.
        """
        from cohortium_secagg._protocol_parameters import ProtocolParameters
        from cohortium_secagg._site import SecAggSite
        from cohortium_secagg._vectors import available_cpus

        protocol = ProtocolParameters.agreed(self, config)
        return SecAggSite(protocol, site_context, threads=self.threads or available_cpus())


@hookimpl
def cohortium_aggregators() -> list[Offer[Aggregator]]:
    """Offer `secagg`."""
    return [
        Offer(
            "secagg", SecAgg, "Secure aggregation (SecAgg+): only the sum is seen; dropouts heal."
        )
    ]
