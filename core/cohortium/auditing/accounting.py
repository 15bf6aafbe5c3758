"""Comparison of the guarantee with the cost of the plan's mechanism.

It is arithmetic alone, without chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.auditing.findings import Finding
from cohortium.errors import PrivacyError
from cohortium.ledger.cost import run_costs
from cohortium.privacy.accounting import GaussianMechanism, compose

if TYPE_CHECKING:
    from cohortium.roles.sessions import PrivacyPlan
    from cohortium.roles.values import FederationSpec

SLACK = 0.99
"""Fraction of the composed ε that a guarantee must reach. It allows for the accountants'
rounding."""

ROUNDING = 0.01
"""Absolute shortfall that is allowed in addition. Numerical accountants have an absolute error."""


def audit_accounting(plan: PrivacyPlan, federation_spec: FederationSpec) -> Finding:
    """Compare the guarantee with the cost of the mechanisms over all attempts.

    At a large ε, measurement has little power over a whole run, and much over one attempt. The
    mechanism claims the cost of one attempt, and this check composes that cost over all attempts.

    Raises:
        PrivacyError: The plan names no mechanism.
    """
    guarantee, attempts = plan.guarantee, federation_spec.attempts
    assert guarantee is not None, "an audit begins with a claim"
    costs = run_costs(plan, federation_spec.rounds, federation_spec.retries)
    spends = [(cost.mechanism, n) for cost, n in costs.items() if cost.mechanism is not None]
    if len(spends) < len(costs):
        raise PrivacyError(
            "the privatizer's plan has a guarantee and names no mechanism, so there is nothing to "
            "compose; hold it to its contract with cohortium check."
        )
    claims = {guarantee.delta: guarantee.epsilon, 1e-5: guarantee.epsilon_at_1e_5}
    spent = compose(spends, *claims)
    is_exact = all(isinstance(mechanism, GaussianMechanism) for mechanism, _ in spends)
    return Finding(
        check="accounting",
        procedure=f"{attempts} attempts of the mechanism that the plan names, composed anew",
        observation="; ".join(
            f"ε = {point.epsilon:.4g} at δ = {delta:.3g}, where the guarantee says {epsilon:.4g}"
            for point, (delta, epsilon) in zip(spent, claims.items(), strict=True)
        )
        + ".",
        detection_limit=(
            "it is arithmetic: it finds a budget that was counted for fewer attempts than the run "
            "has, at any ε; the other checks test the mechanism itself."
            if is_exact
            else "the mechanism is known by a bound, which another accountant may well improve "
            "upon: nothing is refuted by this way."
        ),
        is_refuted=is_exact
        and any(
            epsilon < SLACK * point.epsilon - ROUNDING
            for point, epsilon in zip(spent, claims.values(), strict=True)
        ),
        claim=guarantee.epsilon,
    )
