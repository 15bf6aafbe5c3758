"""The driver's side: a connection, and exchanges with the workers."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import ray
from attrs import define, field

from cohortium.plugin import StudyError
from cohortium_ray._worker_proxy import AT_ONCE, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cohortium.plugin import SiteFactory, SiteId
    from cohortium_ray import Ray


@define(eq=False)
class RayExchange:
    """Workers that keep their sites over the run.

    Attributes:
        workers: Workers, each with its sites.
        is_own: Whether the connection was made for this run.
    """

    workers: list[WorkerProxy]
    is_own: bool
    _count: int = field(default=0, init=False)

    @classmethod
    def opened(cls, engine: Ray, sites: Mapping[SiteId, SiteFactory]) -> RayExchange:
        """Connect, assign the sites to workers in turn, and await them."""
        import torch

        threads = torch.get_num_threads()
        is_own = not ray.is_initialized()
        if is_own:
            _connect(engine.address, engine.workers * threads)
        exchange = cls([], is_own)
        try:
            count = min(_workers(engine.workers, threads), len(sites))
            options = {"num_cpus": threads, "num_gpus": engine.gpus, "max_restarts": 0}
            chunks = [dict(list(sites.items())[place::count]) for place in range(count)]
            exchange.workers = [WorkerProxy(chunk, options, threads) for chunk in chunks]
            for worker in exchange.workers:
                worker.start()
            for worker in exchange.workers:
                worker.result()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Yield the replies as they come.

        Workers run in parallel, and the sites of one worker in turn.
        """
        self._count += 1
        exchange, shared = self._count, ray.put(broadcast)
        workers = [worker for worker in self.workers if worker.recipes.keys() & per_site.keys()]
        patience = float("inf") if timeout is None else timeout

        def submit_next(worker: WorkerProxy) -> None:
            """Submit the next request, or keep waiting for a busy worker."""
            worker.due = time.monotonic() + patience
            if worker.busy is None and worker.waiting:
                worker.submit(exchange, shared, most=AT_ONCE if timeout is None else 1)

        for worker in workers:
            worker.waiting = {site: per_site[site] for site in worker.recipes if site in per_site}
            worker.start()
            submit_next(worker)
        try:
            while workers := [worker for worker in workers if worker.waiting]:
                done = _first(workers)
                if done is not None:
                    replies = done.result()
                    # Its next request is sent before these replies are processed.
                    submit_next(done)
                    yield from replies
                for worker in workers:
                    if worker.waiting and time.monotonic() >= worker.due:
                        worker.cancel()
                        submit_next(worker)
        finally:
            for worker in workers:
                worker.waiting, worker.handed = {}, ()

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.stop()
        if self.is_own:
            self.is_own = False
            ray.shutdown()


def _first(workers: list[WorkerProxy]) -> WorkerProxy | None:
    """Return the first worker that is done.

    Return None if another one is late before.
    """
    left = min(worker.due for worker in workers) - time.monotonic()
    timeout = None if left == float("inf") else max(0.0, left)
    done, _ = ray.wait([worker.busy for worker in workers], num_returns=1, timeout=timeout)
    return next((worker for worker in workers if worker.busy in done), None)


def _connect(address: str, processors: int) -> None:
    """Join the cluster at `address`, or start one here.

    A cluster that is started here has `processors`, or all of this machine's if these are more.

    Raises:
        StudyError: There is no such cluster.
    """
    terms: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Any machine that reaches its ports can run code, so no other machine may reach them.
        terms |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        terms["num_cpus"] = max(processors, os.cpu_count() or 1)
    try:
        ray.init(address=address, **terms)
    except Exception as error:  # Ray raises exactly that if a cluster does not start in time
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].rstrip(".")
        raise StudyError(f"engine 'ray': no cluster at '{address}': {reason}.") from error


def _workers(wanted: int, threads: int) -> int:
    """Return how many workers of `threads` threads there will be."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    processors = int(resources.get("CPU", 0))
    most = processors // threads
    if most < max(wanted, 1):
        raise StudyError(
            f"engine 'ray': the cluster has {processors} processors, and {max(wanted, 1)} workers "
            f"of {threads} threads need {max(wanted, 1) * threads}; lower [engine] workers or "
            "[federation] threads."
        )
    return wanted or most
