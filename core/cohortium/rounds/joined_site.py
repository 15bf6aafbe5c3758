"""A simulated site that takes part in several runs at a time, as a hospital does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.errors import MessageError
from cohortium.messages import codec
from cohortium.messages.run import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.roles.sessions import SiteHandle
    from cohortium.rounds.site import SimulatedSiteFactory, Site


@frozen(eq=False)
class JoinedSite:
    """One site in several runs.

    Guarantees:
        Each run has a site of its own, which refuses requests of another run.

    Attributes:
        sites: The site of each run, by session.
    """

    sites: Mapping[bytes, Site]

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """Return the reply of the run that the request belongs to (see `Site.answer`)."""
        try:
            session = codec.decode(broadcast, Request).session
        except MessageError:
            session = b""
        # The first run refuses a request that belongs to none.
        site = self.sites.get(session) or next(iter(self.sites.values()))
        return site.answer(broadcast, own)


@frozen
class JoinedSiteFactory:
    """Factory of one site in several runs (see `protocols.SiteFactory`).

    Attributes:
        factories: The factory of each run.
    """

    factories: tuple[SimulatedSiteFactory, ...] = field(repr=False)

    def create(self, share_model_with: SiteHandle | None = None) -> JoinedSite:
        """Create the sites, sharing the networks in memory of `share_model_with`."""
        others = share_model_with.sites if isinstance(share_model_with, JoinedSite) else {}
        return JoinedSite(
            {
                factory.run_config.session: factory.create(others.get(factory.run_config.session))
                for factory in self.factories
            }
        )
