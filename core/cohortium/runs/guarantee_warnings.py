"""Warnings about a guarantee, for a careful reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.ledger.cost import PrivacyScope, run_costs
from cohortium.privacy.guarantee import rounded_up

if TYPE_CHECKING:
    from cohortium.roles.sessions import PrivacyPlan
    from cohortium.roles.values import FederationSpec

SLACK = 1e-3
"""Relative difference of two bounds on ε that have different numerical errors."""


def guarantee_warnings(plan: PrivacyPlan, federation_spec: FederationSpec) -> tuple[str, ...]:
    """Return what a reader of a plan's guarantee should know.

    A privatizer states its own bound, and may know more about its mechanisms than their names tell.
    A hospital's ledger composes the mechanisms. So a smaller ε than the ledger's rests on the
    privatizer alone, and the sentence says so.
    """
    guarantee = plan.guarantee
    if guarantee is None:
        return ()
    found = guarantee.warnings(federation_spec.num_units(guarantee.unit))
    costs = run_costs(plan, federation_spec.rounds, federation_spec.retries)
    counted = PrivacyScope.of(costs).epsilon(costs, guarantee.delta)
    if counted <= guarantee.epsilon * (1 + SLACK):
        return found
    sentence = (
        f"the privatizer states ε = {rounded_up(guarantee.epsilon)}, and its mechanisms compose to "
        f"{rounded_up(counted)}, which a hospital's ledger counts; ask the author of the "
        "privatizer for a proof of the smaller one."
    )
    return (*found, sentence)
