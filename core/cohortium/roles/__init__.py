"""The contracts: seven roles, the values that they exchange, and the hooks that offer them."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
    "dataset", "partitioner", "model", "trainer", "privatizer", "aggregator", "engine", "observer"
]
"""What a plugin can be, in the words of a study file."""

ROLES: tuple[Role, ...] = get_args(Role)
"""Every role, in the order in which a study names them."""
