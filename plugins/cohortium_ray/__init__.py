"""Sites in the worker processes of a Ray cluster: on this machine's other cores, or on others.

    engine = Ray(address="auto")

Every worker keeps one resident network and the sites that are dealt to it, for the whole run.
What travels is bytes; what is pickled to the workers is the simulation's own recipes.
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
    """Runs sites side by side, those of one worker in turn.

    A worker computes with as many threads of torch as the process that drives the run, so that the
    bits are the same; `threads = 1` in a study gives the most workers.

    A Ray connection that the process has already is used, and left open.

    Guarantees:
        The global weights are put into the cluster's object store once an exchange, and read once
        by a worker.  A worker has one batch of replies under way, which ends with the first that
        makes it a mebibyte: what the driver holds does not grow with the sites.
        A worker that dies takes its sites out of the exchange, and with the secrets that they held
        out of the attempt: they are not asked again for what they may have released.  They are made
        anew, with nothing but their data, when they are next asked.

    Attributes:
        address: Of a cluster, as `ray.init` has it: "auto", "HOST:PORT", "ray://HOST:PORT".
            "local" starts one on this machine that ends with the run.
        workers: How many; 0 takes as many as the cluster has processors for.
        gpus: Of a worker, for a study on "cuda"; a fraction lets workers share one.
    """

    address: str = "local"
    workers: int = field(default=0, validator=[ge(0), le(1 << 16)])
    gpus: float = field(default=0.0, validator=[ge(0), le(1024)])

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> RayExchange:
        """Connect, start the workers, and have them make their sites.

        Raises:
            StudyError: The sites are hospitals, Ray is not installed, there is no such cluster, or
                it has not the processors that the workers need.
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
