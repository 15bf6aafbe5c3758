"""What sites sign against a coordinator that lies: their keys, and the survivors they agree to.

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
    from cohortium_secagg._rules import AttemptLabel


@frozen(eq=False)
class Statements:
    """The statements of one attempt, and who is believed.

    Guarantees:
        A signature is of one session, round, attempt, site and directory.  One that is shown in
        another place, or to a party that has pinned another directory, is not believed.

    Attributes:
        directory: Whose signatures are believed.
        scope: The attempt.
    """

    directory: KeyDirectory
    scope: AttemptLabel

    def of_keys(self, site: SiteId, keys: Keys) -> bytes:
        """What a site signs to say: these are my keys."""
        return self._about("signed keys", site) + keys.sealing + keys.masking

    def of_survivors(self, site: SiteId, roster: bytes, survivors: Iterable[SiteId]) -> bytes:
        """What a site signs to say: of this roster I open the sum over these, and no other."""
        return self._about("survivors", site) + roster + _numbers(sorted(survivors))

    def sign_keys(self, identity: SigningKey, site: SiteId, keys: Keys) -> SignedKeys:
        """The keys of a site, signed by it."""
        return SignedKeys(keys.sealing, keys.masking, identity.sign(self.of_keys(site, keys)))

    def sign_survivors(
        self, identity: SigningKey, site: SiteId, roster: bytes, survivors: Iterable[SiteId]
    ) -> ConsistencyCheck:
        """A site's consent to open the sum over `survivors`."""
        return ConsistencyCheck(identity.sign(self.of_survivors(site, roster, survivors)))

    def verify_keys(self, site: SiteId, keys: SignedKeys) -> bool:
        """Whether `site` signed `keys` for this attempt."""
        return self.directory.verify(site, keys.signature, self.of_keys(site, keys))

    def verify_survivors(
        self, site: SiteId, roster: bytes, survivors: Iterable[SiteId], signature: bytes
    ) -> bool:
        """Whether `site` signed that it opens the sum over `survivors`."""
        return self.directory.verify(site, signature, self.of_survivors(site, roster, survivors))

    def roster(self, members: Mapping[SiteId, Keys]) -> bytes:
        """A hash of who takes part, and with which keys: equal for those told the same only."""
        fingerprint = hashlib.sha256(self._about("roster"))
        for site in sorted(members):
            fingerprint.update(_numbers([site]) + members[site].sealing + members[site].masking)
        return fingerprint.digest()

    def _about(self, purpose: str, *sites: SiteId) -> bytes:
        return self.scope.label(purpose, *sites) + self.directory.fingerprint


def _numbers(sites: list[SiteId]) -> bytes:
    return struct.pack(f">{len(sites)}Q", *sites)
