"""The worker, which runs in a process of the cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cohortium.plugin import SiteFactory, SiteHandle, SiteId

TOGETHER = 1 << 20
"""Bytes of replies that are sent together.  A larger reply is sent alone."""


class Worker:
    """Some of the sites, which share one resident network and take turns."""

    def __init__(self, threads: int, path: Sequence[str]) -> None:
        """Use `threads` threads of torch, and import from `path` as well.

        Torch is not imported for this.
        """
        sys.path += [place for place in path if place not in sys.path]
        self._threads = threads
        self._sites: dict[SiteId, SiteHandle] = {}
        self._exchange = -1
        self._common = b""

    def open(self, recipes: Mapping[SiteId, SiteFactory]) -> None:
        """Create the sites."""
        for site, recipe in recipes.items():
            self._sites[site] = recipe.create(
                share_model_with=next(iter(self._sites.values()), None)
            )
        # Sites that compute have loaded torch.  Other sites do not spend the seconds that it takes.
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._threads)

    def answer(
        self, exchange: int, broadcast: Sequence[Any], each: Mapping[SiteId, bytes]
    ) -> list[tuple[SiteId, bytes]]:
        """Return the replies of the first sites in `each`.

        There are as many of them as are sent together.

        Args:
            exchange: Number of the exchange.  Its common part is fetched once.
            broadcast: A reference to the common part.
            each: The own part of each site.
        """
        if exchange != self._exchange:
            (self._common,) = ray.get(list(broadcast))
            self._exchange = exchange
        replies, size = list[tuple["SiteId", bytes]](), 0
        for site, own in each.items():
            replies.append((site, self._sites[site].answer(self._common, own)))
            size += len(replies[-1][1])
            if size >= TOGETHER:
                break
        return replies
