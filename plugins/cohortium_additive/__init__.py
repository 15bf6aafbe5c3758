"""Additive secret sharing, n of n.

PriMIA (Kaissis et al. 2021) sums updates in this way.

There, a trusted dealer is a party next to the sites.  Adding needs no dealer, so this plugin has
none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import AggregationGuarantee, Aggregator, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from cohortium.plugin import AggregationConfig, FederationSpec, Randomness, SiteContext
    from cohortium_additive._coordinator import AdditiveCoordinator
    from cohortium_additive._site import AdditiveSite

COHORTIUM_API = 1


@frozen
class Additive:
    """Every site splits its vector into n shares with that sum.

    Each site gets one share.  A share for another site is the key stream of a fresh seed, so 32
    sealed bytes carry it.  The site's own share is the remainder.  Each site adds the shares that
    it received.  The sum of those sums is the sum of the vectors.

    Guarantees:
        An honest-but-curious coordinator with any of the sites learns the sum of the other sites'
        vectors and nothing more.  Otherwise they must break X25519, HKDF-SHA256, ChaCha20-Poly1305
        or AES-256.  Sites refuse to sum over fewer than are asked each round.  There is no defence
        against a coordinator that lies, because it hands out the keys.  If one site is lost, at any
        stage, there is no sum.  A round then takes a retry.
    """

    def confidentiality(self, federation_spec: FederationSpec) -> AggregationGuarantee:
        """Return the guarantee: all sites that are asked, or no sum.

        Raises:
            StudyError: Too few sites are asked, or the coordinator may lie.
        """
        if federation_spec.adversary == "active":
            raise StudyError(
                "additive: nobody signs the keys, so it does not hold against a coordinator that "
                "lies; use aggregator 'secagg' with adversary 'active'."
            )
        least = max(2, federation_spec.max_colluding + 2)
        if federation_spec.cohort_size < least:
            raise StudyError(
                f"additive: {federation_spec.cohort_size} sites are asked, but it takes at least "
                f"{least}, so that two honest sites remain."
            )
        return AggregationGuarantee(
            min_contributors=federation_spec.cohort_size,
            reconstruction_threshold=federation_spec.cohort_size - 1,
            max_dropouts=0,
        )

    def coordinator_session(
        self,
        config: AggregationConfig,
        secret: Randomness,  # noqa: ARG002
    ) -> AdditiveCoordinator:
        """Build the coordinator's session, which has no secret.

        Raises:
            StudyError: As for `confidentiality`.
        """
        from cohortium_additive._coordinator import AdditiveCoordinator

        self.confidentiality(config.federation_spec)
        return AdditiveCoordinator(config)

    def site_session(self, config: AggregationConfig, site_context: SiteContext) -> AdditiveSite:
        """Build a site's session.

        Raises:
            StudyError: As for `confidentiality`.
        """
        from cohortium_additive._site import AdditiveSite

        self.confidentiality(config.federation_spec)
        return AdditiveSite(config, site_context)


@hookimpl
def cohortium_aggregators() -> list[Offer[Aggregator]]:
    """Offer `additive`."""
    return [Offer("additive", Additive, "n-of-n additive sharing: no dealer, no dropouts.")]
