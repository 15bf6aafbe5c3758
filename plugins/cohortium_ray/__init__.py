"""Sites in the worker processes of a Ray cluster, local or remote.

    engine = Ray(address="auto")

Every worker keeps one resident network and the sites that are assigned to it, for the whole run.
Only bytes travel.  Only the simulation's own recipes are pickled for the workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import Engine, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import SiteFactory, SiteId
    from cohortium_ray._exchange import RayExchange

COHORTIUM_API = 1


@frozen(kw_only=True)
class Ray:
    """Runs workers in parallel, and the sites of one worker in turn.

    A worker computes with as many threads of torch as the process that drives the run.  So the bits
    are the same.  `threads = 1` in a study gives the most workers.

    An existing Ray connection of the process is used, and left open.

    Guarantees:
        The global weights are put into the cluster's object store once an exchange, and each worker
        reads them once.  A worker computes one batch of replies at a time.  The batch ends with the
        first reply that makes it a mebibyte.  So the driver's memory does not grow with the sites.
        If a worker dies, its sites leave the exchange.  Their secrets are lost, so they also leave
        the attempt: they are not asked again for anything that they may have released.  They are
        created anew, with nothing but their data, when they are next asked.

    Attributes:
        address: Address of a cluster, as `ray.init` has it: "auto", "HOST:PORT", "ray://HOST:PORT".
            "local" starts one on this machine that ends with the run.
        workers: Number of workers. 0 takes as many as the cluster has processors for.
        gpus: GPUs of a worker, for a study on "cuda".  A fraction lets workers share one.
    """

    address: str = "local"
    workers: int = field(default=0, validator=[ge(0), le(1 << 16)])
    gpus: float = field(default=0.0, validator=[ge(0), le(1024)])

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> RayExchange:
        """Connect, start the workers, and have them create their sites.

        Raises:
            StudyError: The sites are hospitals, Ray is not installed, or there is no such cluster.
                Or the cluster has fewer processors than the workers need.
        """
        if sites is None:
            raise StudyError("the engine 'ray' simulates its sites and cannot serve hospitals.")
        try:
            from cohortium_ray._exchange import RayExchange
        except ImportError as error:
            raise StudyError(
                f"the engine 'ray' cannot be used ({error}); pip install 'cohortium[ray]'."
            ) from error
        return RayExchange.opened(self, sites)


@hookimpl
def cohortium_engines() -> list[Offer[Engine]]:
    """Offer `ray`."""
    return [Offer("ray", Ray, "Sites in the workers of a Ray cluster, local or not.")]
