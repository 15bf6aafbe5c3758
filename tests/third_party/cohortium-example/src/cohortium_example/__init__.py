"""One small plugin of every role.

The classes are light to import: torch is imported inside the methods that need it.
"""

from __future__ import annotations

from cohortium.plugin import (
    Aggregator,
    Dataset,
    Engine,
    Model,
    Observer,
    Offer,
    Partitioner,
    Privatizer,
    Trainer,
    hookimpl,
)
from cohortium_example.aggregator import Committed
from cohortium_example.dataset import Squares
from cohortium_example.engine import AnyOrder
from cohortium_example.model import Linear
from cohortium_example.observer import Counting
from cohortium_example.partitioner import Alternating
from cohortium_example.privatizer import Rounding
from cohortium_example.trainer import SignSGD

COHORTIUM_API = 1


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `squares`."""
    return [Offer("squares", Squares, "Red, green and blue squares.")]


@hookimpl
def cohortium_partitioners() -> list[Offer[Partitioner]]:
    """Offer `alternating`."""
    return [Offer("alternating", Alternating, "Examples in turn, one site after the other.")]


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `linear`."""
    return [Offer("linear", Linear, "One linear layer on the pixels.")]


@hookimpl
def cohortium_trainers() -> list[Offer[Trainer]]:
    """Offer `sign-sgd`."""
    return [Offer("sign-sgd", SignSGD, "Local steps along the sign of the gradient.")]


@hookimpl
def cohortium_privatizers() -> list[Offer[Privatizer]]:
    """Offer `rounding`."""
    return [Offer("rounding", Rounding, "No privacy: updates rounded to a grid.")]


@hookimpl
def cohortium_aggregators() -> list[Offer[Aggregator]]:
    """Offer `committed`."""
    return [Offer("committed", Committed, "Sums in the clear, after all have committed.")]


@hookimpl
def cohortium_engines() -> list[Offer[Engine]]:
    """Offer `any-order`."""
    return [Offer("any-order", AnyOrder, "Sites in this process, in shuffled order.")]


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `counting`."""
    return [
        Offer("counting", Counting, "How many rounds each site has contributed to, in counts.json.")
    ]
