"""The contracts of plugins: eight roles and the observer, with their values and hooks.

A Dataset states its Task. A Partitioner splits it over sites. Each site trains a Model with a
Trainer under a Privatizer. An Aggregator sums the sites' releases. An Engine carries the messages.
"""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
    "dataset",
    "task",
    "partitioner",
    "model",
    "trainer",
    "privatizer",
    "aggregator",
    "engine",
    "observer",
]
"""The roles of a plugin, as a study file names them."""

ROLES: tuple[Role, ...] = get_args(Role)
"""Every role, in the order in which a study names them."""
