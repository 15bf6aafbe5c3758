"""Signed statements against a coordinator that lies: keys and agreed survivors.

Bonawitz et al. (2017), section 4, figure 4: the signed key advertisement and the consistency check.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium_secagg._messages import ConsistencyCheck, SignedKeys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cohortium.plugin import KeyDirectory, SigningKey, SiteId
    from cohortium_secagg._messages import Keys
    from cohortium_secagg._protocol_parameters import AttemptLabel


@frozen(eq=False)
class Statements:
    """The statements of one attempt, and the directory that verifies them.

    Guarantees:
        A signature is of one session, round, attempt, site and directory.  A signature that is
        shown in another place is not believed.  Nor does a party believe it that has pinned another
        directory.

    Attributes:
        directory: Directory whose signatures are believed.
        scope: Label of the attempt.
    """

    directory: KeyDirectory
    scope: AttemptLabel

    def of_keys(self, site: SiteId, keys: Keys) -> bytes:
        """Return the statement with which a site declares its keys."""
        return self._about("signed keys", site) + keys.sealing + keys.masking

    def of_survivors(
        self, site: SiteId, roster_digest: bytes, survivors: Iterable[SiteId]
    ) -> bytes:
        """Return the statement with which a site agrees to one sum.

        It says: of this roster I open the sum over these survivors, and no other.
        """
        return self._about("survivors", site) + roster_digest + _numbers(sorted(survivors))

    def sign_keys(self, identity: SigningKey, site: SiteId, keys: Keys) -> SignedKeys:
        """Sign the keys of a site."""
        return SignedKeys(keys.sealing, keys.masking, identity.sign(self.of_keys(site, keys)))

    def sign_survivors(
        self, identity: SigningKey, site: SiteId, roster_digest: bytes, survivors: Iterable[SiteId]
    ) -> ConsistencyCheck:
        """Sign a site's agreement to open the sum over `survivors`."""
        return ConsistencyCheck(identity.sign(self.of_survivors(site, roster_digest, survivors)))

    def verify_keys(self, site: SiteId, keys: SignedKeys) -> bool:
        """Return whether `site` signed `keys` for this attempt."""
        return self.directory.verify(site, keys.signature, self.of_keys(site, keys))

    def verify_survivors(
        self, site: SiteId, roster_digest: bytes, survivors: Iterable[SiteId], signature: bytes
    ) -> bool:
        """Return whether `site` signed that it opens the sum over `survivors`."""
        return self.directory.verify(
            site, signature, self.of_survivors(site, roster_digest, survivors)
        )

    def roster_digest(self, members: Mapping[SiteId, Keys]) -> bytes:
        """Return a hash of the participating sites and their keys.

        Only sites that received the same roster compute the same hash.
        """
        fingerprint = hashlib.sha256(self._about("roster"))
        for site in sorted(members):
            fingerprint.update(_numbers([site]) + members[site].sealing + members[site].masking)
        return fingerprint.digest()

    def _about(self, purpose: str, *sites: SiteId) -> bytes:
        return self.scope.label(purpose, *sites) + self.directory.fingerprint


def _numbers(sites: list[SiteId]) -> bytes:
    return struct.pack(f">{len(sites)}Q", *sites)
