"""The plan of a run's first round."""

from __future__ import annotations

from typing import Any


def first_round(plan: Any) -> Any:
    return plan.at_round(0, plan.initial_state)
