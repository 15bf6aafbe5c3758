"""A study's numbers before training: noise, ε by round, bytes and dropouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from cohortium.errors import RequestError
from cohortium.privacy.mechanisms import GaussianMechanism
from cohortium.rounds.server_state import extra_length, initial_server_state
from cohortium.runs.guarantee_warnings import guarantee_warnings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.protocols import Privatizer
    from cohortium.roles.sessions import PrivacyPlan
    from cohortium.roles.values import AggregationGuarantee, FederationSpec, Workload
    from cohortium.runs.prepare import PreparedStudy

BYTES_A_VALUE = 4
"""Bytes of a weight in a request, a `float32`."""

REPORTED_POINTS = 4
"""Number of times that ε is reported over a run."""


@frozen(kw_only=True)
class Forecast:
    """Forecast of a study for one budget.

    Attributes:
        guarantee: Guarantee of the whole run, or None without privacy.
        spent: ε after some rounds, if none is retried: pairs of a number of rounds and ε.
        noise_by_round: Noise multiplier of some rounds, where the rounds differ: pairs of a round,
            counted from 1, and its multiplier.
        steps: Number of batches that a site uses in a round.
        batch: Declared number of units in a batch, which is a mean if batches are Poisson samples.
        sampling_rate: Probability that a unit is in a batch.
        parameters: Number of the network's parameters, P.
        bits: Number of bits that a value takes in an upload.
        vector_bytes: Bytes of a site's vector in each round, without keys and shares.
        weights_bytes: Bytes of the global weights that a site receives in each round, with the
            trainer's server state.
        aggregation: Guarantee of the aggregator, or None.
        dropouts: Number of sites, in any selection, that may be missing in a round.
        warnings: Warnings for a careful reader.
    """

    guarantee: Guarantee | None
    spent: tuple[tuple[int, float], ...]
    noise_by_round: tuple[tuple[int, float], ...]
    steps: int
    batch: float
    sampling_rate: float
    parameters: int
    bits: int
    vector_bytes: int
    weights_bytes: int
    aggregation: AggregationGuarantee | None
    dropouts: int
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return attrs.asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Return labels and values, for people."""
        promise, hidden = self.guarantee, self.aggregation
        rows = []
        if promise is not None:
            others = str(promise.colluding) if promise.against == "coordinator" else "all"
            rows += [
                ("ε of the whole run", f"{promise.epsilon:.3f}"),
                ("at δ", f"{promise.delta:.3g}"),
                ("ε at δ = 1e-5", f"{promise.epsilon_at_1e_5:.3f}"),
                ("hidden", f"one {promise.unit}"),
                ("from", _whom(promise)),
                ("sites that may conspire", others),
                ("noise / sensitivity", f"{promise.noise_multiplier:.3f}"),
                *((f"the same in round {n}", f"{noise:.3f}") for n, noise in self.noise_by_round),
                ("honest noise shares", str(promise.honest)),
                *(
                    (f"ε after {count} round{'s' * (count > 1)}", f"{epsilon:.3f}")
                    for count, epsilon in self.spent
                ),
            ]
        rows += [
            ("steps, a round", f"{self.steps:,}"),
            ("batch", f"{self.batch:,.4g}"),
            ("sampling rate", f"{self.sampling_rate:.4g}"),
            ("parameters", f"{self.parameters:,}"),
            ("bits per value", str(self.bits)),
            ("vector bytes, site and round", f"{self.vector_bytes:,}"),
            ("weights bytes, site and round", f"{self.weights_bytes:,}"),
            ("fewest sites in a sum", "1" if hidden is None else str(hidden.min_contributors)),
            ("max dropouts per round", str(self.dropouts)),
        ]
        if hidden is not None:
            rows.append(("sites that undo masks", str(hidden.reconstruction_threshold)))
        return rows


def _whom(guarantee: Guarantee) -> str:
    return "everyone" if guarantee.against == "everyone" else "who sees sums"


def forecast(prepared: PreparedStudy, epsilons: Sequence[float] = ()) -> tuple[Forecast, ...]:
    """Return the forecast of a study for several budgets, or its own.

    Raises:
        RequestError: A budget is not valid, or the privatizer has no parameter `epsilon`.
        PrivacyError: A budget cannot be met.
    """
    if not epsilons:
        return (_forecast_plan(prepared, prepared.run_config.plan),)
    run_config = prepared.run_config
    length = prepared.parameters + extra_length(
        run_config.trainer, run_config.workload, prepared.parameters
    )
    plans: list[PrivacyPlan] = [
        privatizer.plan(run_config.workload, run_config.federation_spec, length)
        for privatizer in with_budgets(prepared.federation.privatizer, epsilons)
    ]
    return tuple(_forecast_plan(prepared, plan) for plan in plans)


def with_budgets(privatizer: Privatizer, epsilons: Sequence[float]) -> tuple[Privatizer, ...]:
    """Return the same privatizer for each of several budgets.

    Raises:
        RequestError: A budget is not valid, or the privatizer of given budgets has no parameter
            `epsilon`.
    """
    given: Any = privatizer
    if epsilons and "epsilon" not in {f.name for f in attrs.fields(type(given))}:
        raise RequestError(
            f"{type(given).__name__} has no parameter epsilon to plan several budgets by; "
            "leave --epsilon out, or choose privatizer 'gaussian'."
        )
    try:
        return tuple(attrs.evolve(given, epsilon=each) for each in epsilons)
    except ValueError as error:
        raise RequestError(f"--epsilon: {error}; give an ε above 0, such as 6.") from error


def _forecast_plan(prepared: PreparedStudy, plan: PrivacyPlan) -> Forecast:
    federation_spec, guarantee = prepared.run_config.federation_spec, plan.guarantee
    confidentiality = prepared.run_config.aggregator.confidentiality(federation_spec)
    missing = federation_spec.cohort_size - federation_spec.min_contributors
    workload = prepared.run_config.workload
    return Forecast(
        guarantee=guarantee,
        spent=_epsilon_by_round(plan, federation_spec),
        noise_by_round=_noise_by_round(plan, federation_spec),
        steps=workload.steps,
        batch=_batch(workload, federation_spec, guarantee),
        sampling_rate=workload.sampling_rate,
        parameters=prepared.parameters,
        bits=plan.ring.bits,
        vector_bytes=plan.ring.bytes_for(plan.length),
        weights_bytes=_weights_bytes(prepared),
        aggregation=confidentiality,
        dropouts=missing if confidentiality is None else min(missing, confidentiality.max_dropouts),
        warnings=(
            *guarantee_warnings(plan, federation_spec),
            *prepared.warnings,
        ),
    )


def _weights_bytes(prepared: PreparedStudy) -> int:
    """Return the bytes of the weights and the server state that a site receives in a round."""
    published = initial_server_state(prepared.run_config.trainer, prepared.parameters)
    values = prepared.parameters + (0 if published is None else published.numel())
    return BYTES_A_VALUE * values


def _batch(
    workload: Workload, federation_spec: FederationSpec, guarantee: Guarantee | None
) -> float:
    """Return a batch's number of patients if they are protected, else examples."""
    if guarantee is None or guarantee.unit == "site":
        return workload.batch_size or workload.sampling_rate * federation_spec.examples_per_site
    return (
        workload.sampling_rate * federation_spec.num_units(guarantee.unit) / federation_spec.sites
    )


def _reported(rounds: int) -> list[int]:
    """Return the numbers of rounds that are reported."""
    points = (rounds * n // REPORTED_POINTS for n in range(1, REPORTED_POINTS + 1))
    return sorted({1, *points} - {0})


def _noise_by_round(
    plan: PrivacyPlan, federation_spec: FederationSpec
) -> tuple[tuple[int, float], ...]:
    found = []
    for number in _reported(federation_spec.rounds):
        mechanism = plan.at_round(number - 1, plan.initial_state).mechanism
        if not isinstance(mechanism, GaussianMechanism):
            return ()
        found.append((number, mechanism.noise_multiplier))
    return tuple(found) if len({noise for _, noise in found}) > 1 else ()


def _epsilon_by_round(
    plan: PrivacyPlan, federation_spec: FederationSpec
) -> tuple[tuple[int, float], ...]:
    counts = _reported(federation_spec.rounds)
    spent = [(count, plan.guarantee_after(range(count))) for count in counts]
    return tuple((count, promise.epsilon) for count, promise in spent if promise is not None)
