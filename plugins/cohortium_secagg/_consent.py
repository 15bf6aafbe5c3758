"""A site against a coordinator that lies: whom it shares with, and which one sum it opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, frozen

from cohortium.plugin import RefusalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import SigningKey, SiteId
    from cohortium_secagg._messages import (
        ConfirmedUnmaskRequest,
        ConsistencyCheck,
        ConsistencyRequest,
        Keys,
        ShareKeysAmongAllRequest,
        SignedKeys,
        Unmasking,
    )
    from cohortium_secagg._party import Advertised, Masked, SiteAttempt
    from cohortium_secagg._statements import Statements


@frozen(eq=False)
class SurvivorSigner:
    """What a site signs and believes in one attempt.

    Attributes:
        identity: Signs for the site.
        statements: Of the attempt.
    """

    identity: SigningKey
    statements: Statements

    def sign(self, state: Advertised) -> SignedKeys:
        """The site's keys, for everyone to check."""
        return self.statements.sign_keys(self.identity, state.site_attempt.site, state.keys)

    def admit(
        self, state: Advertised, request: ShareKeysAmongAllRequest
    ) -> tuple[SiteAttempt, Mapping[SiteId, Keys]]:
        """The attempt among those on the roster, and the others' keys.

        Raises:
            RefusalError: The roster has other keys for this site, or keys that nobody signed.
        """
        site, roster = state.site_attempt.site, dict(request.roster)
        digest = self.statements.roster(roster)
        own = roster.pop(site, None)
        if own is None or (own.sealing, own.masking) != (state.keys.sealing, state.keys.masking):
            raise RefusalError("signature", "the roster does not have this site with its keys.")
        self.check_keys(roster)
        return evolve(state.site_attempt, roster=digest), roster

    def check_keys(self, roster: Mapping[SiteId, SignedKeys]) -> None:
        """Refuse keys that their site has not signed for this attempt."""
        for peer, keys in roster.items():
            if not self.statements.verify_keys(peer, keys):
                raise RefusalError(
                    "signature", f"the keys of site {peer} are not signed by it for this attempt."
                )

    def consent(
        self, state: Masked, request: ConsistencyRequest
    ) -> tuple[Confirmed, ConsistencyCheck]:
        """Agree to open the sum over the survivors that are named, and over no others."""
        state.check(request.survivors)
        confirmed = Confirmed(self, state, frozenset(request.survivors))
        site_attempt = state.site_attempt
        return confirmed, self.statements.sign_survivors(
            self.identity, site_attempt.site, site_attempt.roster, request.survivors
        )


@frozen(eq=False)
class Confirmed:
    """It has signed which sum it opens."""

    signer: SurvivorSigner
    masked: Masked
    survivors: frozenset[SiteId]

    def open(self, request: ConfirmedUnmaskRequest) -> Unmasking:
        """Give shares, once enough others have signed for the same sum.

        Raises:
            RefusalError: Fewer than `threshold` have.
        """
        self.check_signatures(request.signatures)
        return self.masked.shares_for(self.survivors)

    def check_signatures(self, signatures: Mapping[SiteId, bytes]) -> None:
        """Refuse to open what fewer than `threshold` survivors have agreed to."""
        site_attempt = self.masked.site_attempt
        # Its own is not in doubt, and more than it takes tell nothing.
        agreed, need = 1, site_attempt.protocol.threshold
        for site in sorted(self.survivors & signatures.keys() - {site_attempt.site}):
            if agreed == need:
                break
            agreed += self.signer.statements.verify_survivors(
                site, site_attempt.roster, self.survivors, signatures[site]
            )
        if agreed < need:
            raise RefusalError(
                "consent", f"{agreed} sites have signed for these survivors; it takes {need}."
            )
