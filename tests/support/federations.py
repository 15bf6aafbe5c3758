"""A tiny federation, and an engine that misbehaves on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from attrs import field, frozen
from torch import nn

from cohortium import Federation
from cohortium.data.examples import Examples
from cohortium.data.splits import Splits
from cohortium.plugin import Event, Multiclass
from cohortium.roles.sessions import EngineSession, SiteFactory
from cohortium_fedavg import FedAvg
from cohortium_inline import Inline


@frozen
class QuadrantImages:
    """Four classes of grey images, told apart by the bright quarter; easy and quick."""

    examples: int = 240

    def load(self) -> Splits:
        def part(n: int, seed: int) -> Examples:
            rng = np.random.default_rng(seed)
            labels = np.arange(n) % 4
            images = rng.integers(0, 120, (n, 1, 8, 8))
            for k in range(4):
                y, x = 4 * (k // 2), 4 * (k % 2)
                images[labels == k, :, y : y + 4, x : x + 4] += 80
            return Examples(images.astype(np.uint8), labels, labels + 4 * (np.arange(n) % 2))

        return Splits(
            name="squares",
            task=Multiclass(("a", "b", "c", "d")),
            train=part(self.examples, 0),
            validation=part(40, 1),
            test=part(80, 2),
        )


class SmallConvNet(nn.Sequential):
    """A network that is no plugin, for any number of channels and classes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, classes),
        )  # fmt: skip


Tamper = Callable[[int, int, bytes], bytes | None]
"""From (exchange, site, reply) to what arrives, None for nothing."""


@frozen
class FaultyEngine:
    """The inline engine with a fault: `tamper` sees every reply; exchanges count over the run."""

    tamper: Tamper = field(eq=False)
    log: list[tuple[bytes, Mapping[int, bytes]]] = field(factory=list, eq=False)

    def connect(self, sites: Mapping[int, SiteFactory] | None) -> FaultySession:
        return FaultySession(Inline().connect(sites), self)


class FaultySession:
    def __init__(self, inner: EngineSession, engine: FaultyEngine) -> None:
        self.inner, self.engine, self.count = inner, engine, -1

    def exchange(
        self, broadcast: bytes, per_site: Mapping[int, bytes], timeout: float | None = None
    ) -> Iterator[tuple[int, bytes]]:
        self.count += 1
        self.engine.log.append((broadcast, per_site))
        for site, reply in self.inner.exchange(broadcast, per_site, timeout):
            arrived = self.engine.tamper(self.count, site, reply)
            if arrived is not None:
                yield site, arrived

    def close(self) -> None:
        self.inner.close()


class RecordingObserver:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def start_run(self) -> Callable[[Event], None]:
        return self.events.append

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def tiny_federation(**changes: Any) -> Federation:
    """A small federation without privacy; `changes` replace its parts."""
    parts: dict[str, Any] = {
        "dataset": QuadrantImages(),
        "partitioner": "iid",
        "model": "cnn",
        "trainer": FedAvg(learning_rate=0.2, optimizer_options={"momentum": 0.9}),
        "privatizer": "none",
        "aggregator": "plain",
        "sites": 6,
        "rounds": 2,
    }
    return Federation(**(parts | changes))
