"""The contracts of plugins: seven roles and the observer, with their values and hooks."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
    "dataset", "partitioner", "model", "trainer", "privatizer", "aggregator", "engine", "observer"
]
"""The roles of a plugin, as a study file names them."""

ROLES: tuple[Role, ...] = get_args(Role)
"""Every role, in the order in which a study names them."""
