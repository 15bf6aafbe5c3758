"""A site's checks of a coordinator that lies, before opening a sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, frozen

from cohortium.plugin import RefusalError
from cohortium_secagg._codes import SecAggRefusalCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import SigningKey, SiteId
    from cohortium_secagg._messages import (
        ConfirmedUnmaskRequest,
        ConsistencyCheck,
        ConsistencyRequest,
        Keys,
        Shares,
        SignedKeys,
        Unmasking,
    )
    from cohortium_secagg._site_states import Advertised, Masked, SiteAttempt
    from cohortium_secagg._statements import Statements


@frozen(eq=False)
class SurvivorSigner:
    """Signer and verifier of one site's statements in one attempt.

    Attributes:
        identity: Key that signs for the site.
        statements: Statements of the attempt.
    """

    identity: SigningKey
    statements: Statements

    def sign(self, state: Advertised) -> SignedKeys:
        """Sign the site's keys, for everyone to check."""
        return self.statements.sign_keys(self.identity, state.site_attempt.site, state.keys)

    def admit(
        self, state: Advertised, signed: Mapping[SiteId, SignedKeys]
    ) -> tuple[SiteAttempt, Mapping[SiteId, Keys]]:
        """Return the attempt with the roster of `signed` keys, and the other sites' keys.

        Raises:
            RefusalError: The roster has other keys for this site, or keys that no site signed.
        """
        site, roster = state.site_attempt.site, dict(signed)
        digest = self.statements.roster_digest(roster)
        own = roster.pop(site, None)
        if own is None or (own.sealing, own.masking) != (state.keys.sealing, state.keys.masking):
            raise RefusalError(
                SecAggRefusalCode.SIGNATURE, "the roster does not have this site with its keys."
            )
        self.check_keys(roster)
        return evolve(state.site_attempt, roster_digest=digest), roster

    def check_keys(self, roster: Mapping[SiteId, SignedKeys]) -> None:
        """Refuse keys that their site has not signed for this attempt."""
        for peer, keys in roster.items():
            if not self.statements.verify_keys(peer, keys):
                raise RefusalError(
                    SecAggRefusalCode.SIGNATURE,
                    f"the keys of site {peer} are not signed by it for this attempt.",
                )

    def consent(
        self, state: Masked, request: ConsistencyRequest
    ) -> tuple[Confirmed, ConsistencyCheck]:
        """Sign that this site opens only the sum over the named survivors."""
        state.check(request.survivors)
        confirmed = Confirmed(self, state, frozenset(request.survivors))
        site_attempt = state.site_attempt
        return confirmed, self.statements.sign_survivors(
            self.identity, site_attempt.site, site_attempt.roster_digest, request.survivors
        )


@frozen(eq=False)
class Confirmed:
    """State after the site has signed which sum it opens."""

    signer: SurvivorSigner
    masked: Masked
    survivors: frozenset[SiteId]

    def open(self, request: ConfirmedUnmaskRequest, next_shares: Shares | None = None) -> Unmasking:
        """Return the shares once enough others have signed for the same sum.

        The sealed shares of the next attempt, `next_shares`, are sent with them.

        Raises:
            RefusalError: Fewer than `threshold` sites have signed.
        """
        self.check_signatures(request.signatures)
        return self.masked.shares_for(self.survivors, next_shares)

    def check_signatures(self, signatures: Mapping[SiteId, bytes]) -> None:
        """Refuse to open a sum with fewer than `threshold` signatures for it."""
        site_attempt = self.masked.site_attempt
        # This site does not doubt its own signature.  Signatures beyond the threshold add nothing.
        agreed, need = 1, site_attempt.protocol.threshold
        for site in sorted(self.survivors & signatures.keys() - {site_attempt.site}):
            if agreed == need:
                break
            agreed += self.signer.statements.verify_survivors(
                site, site_attempt.roster_digest, self.survivors, signatures[site]
            )
        if agreed < need:
            raise RefusalError(
                SecAggRefusalCode.CONSENT,
                f"{agreed} sites have signed for these survivors; it takes {need}.",
            )
