"""The data's own division by hospital, scanner or patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from cohortium.plugin import Offer, Partitioner, StudyError, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.plugin import Examples

COHORTIUM_API = 1


@frozen(kw_only=True)
class Natural:
    """Whole clients to each site, by the client column of the data.

    If there are more clients than sites, clients are merged by the longest-first rule (Graham
    1969).  Then the largest site has at most 4/3 of the least size that any merging could reach.
    Sites are numbered by their lowest client.  With as many sites as clients, site k is client k.
    """

    def partition(
        self,
        examples: Examples,
        num_sites: int,
        rng: np.random.Generator,  # noqa: ARG002 - the data's own division leaves nothing to chance
    ) -> list[NDArray[np.int64]]:
        """Return ascending positions for each site.

        Raises:
            StudyError: The data have no client column, or fewer clients than there are sites.
        """
        if examples.clients is None:
            raise StudyError(
                "natural: the data set does not say which client an example came from; choose "
                "another partitioner, or a file with an array 'train_clients'."
            )
        _, client, sizes = np.unique(examples.clients, return_inverse=True, return_counts=True)
        if num_sites > len(sizes):
            raise StudyError(
                f"natural: the data have {len(sizes)} clients, too few for {num_sites} sites; "
                f"lower sites to at most {len(sizes)}."
            )
        site = _merge(sizes, num_sites)[client]
        return [np.flatnonzero(site == k).astype(np.int64) for k in range(num_sites)]


def _merge(sizes: NDArray[np.intp], sites: int) -> NDArray[np.intp]:
    """Return the site of each client, shape (clients,).

    The largest clients come first.  Each goes to the site with the fewest examples.
    """
    owner = np.empty(len(sizes), dtype=np.intp)
    loads = np.zeros(sites, dtype=np.intp)
    for client in np.argsort(-sizes, kind="stable"):
        owner[client] = loads.argmin()
        loads[owner[client]] += sizes[client]
    _, lowest = np.unique(owner, return_index=True)
    return np.argsort(np.argsort(lowest))[owner]


@hookimpl
def cohortium_partitioners() -> list[Offer[Partitioner]]:
    """Offer `natural`."""
    return [Offer("natural", Natural, "By the data's own clients, merged where there are more.")]
