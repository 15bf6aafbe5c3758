"""The run configuration: plugins and declared numbers, equal at every party."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from cohortium.catalog.networks import build_network
from cohortium.crypto.randomness import Randomness
from cohortium.errors import StudyError
from cohortium.ledger.cost import PlannedAttempts, run_costs
from cohortium.roles.values import AggregationConfig
from cohortium.statistics.measuring import MeasuringTrainer

if TYPE_CHECKING:
    from collections import Counter

    from torch import nn

    from cohortium.crypto.randomness import Seeds
    from cohortium.crypto.signing import KeyDirectory
    from cohortium.data.examples import DataSpec
    from cohortium.ledger.cost import AttemptCost
    from cohortium.roles.protocols import Aggregator, Model, Trainer
    from cohortium.roles.sessions import PrivacyPlan
    from cohortium.roles.values import FederationSpec, Workload
    from cohortium.statistics.statistic import Statistic


@frozen(kw_only=True)
class Sizes:
    """Sizes of the state written after a round, from a dry run.

    Attributes:
        site: Bytes that a trainer stores at a site, or 0 if it stores nothing.
        server: Bytes of the coordinator's state.
    """

    site: int = 0
    server: int = 0


@frozen(kw_only=True)
class RunConfig:
    """Plugins and declared numbers of a run, equal at every party.

    Attributes:
        session: 16 bytes that name the run.
        spec: Public facts about the data.
        federation_spec: The sites that take part, and the declared numbers.
        model: The model, built equally at every party.
        trainer: The training at each site.
        workload: The work that the trainer declared.
        plan: The rules for the values that may leave a site.
        aggregator: The aggregator, which sums the releases.
        seeds: The run's public seeds.
        directory: The sites' public keys, as every party has pinned them, or None without
            signatures.
        device: The device on which torch computes.
        sizes: Sizes of the state that is written after a round.
    """

    session: bytes
    spec: DataSpec
    federation_spec: FederationSpec
    model: Model
    trainer: Trainer
    workload: Workload
    plan: PrivacyPlan
    aggregator: Aggregator
    seeds: Seeds
    directory: KeyDirectory | None = None
    device: str = "cpu"
    sizes: Sizes = Sizes()

    def __attrs_post_init__(self) -> None:
        """Refuse a guarantee that the trainer or the aggregator breaks."""
        guarantee = self.plan.guarantee
        if guarantee is not None:
            self.workload.require_separate_examples(guarantee.unit)
        if guarantee is None or guarantee.against == "everyone":
            return
        confidentiality = self.aggregator.confidentiality(self.federation_spec)
        if confidentiality is None:
            raise StudyError(
                "the privatizer's guarantee is against a coordinator that sees sums, and the "
                "aggregator shows it every site's release; use aggregator 'secagg', or a "
                "privatizer whose noise is 'local'."
            )
        if confidentiality.min_contributors < guarantee.honest + guarantee.colluding:
            raise StudyError(
                f"the aggregator opens sums over {confidentiality.min_contributors} sites, and the "
                f"guarantee needs {guarantee.honest} honest ones and {guarantee.colluding} "
                "colluding; raise min_contributors."
            )

    @property
    def sum(self) -> AggregationConfig:
        """The aggregator's part of the configuration."""
        return AggregationConfig(
            session=self.session,
            ring=self.plan.ring,
            length=self.plan.length,
            federation_spec=self.federation_spec,
            directory=self.directory,
        )

    @property
    def statistic(self) -> Statistic | None:
        """The statistic that sites release in place of training, or None."""
        return self.trainer.statistic if isinstance(self.trainer, MeasuringTrainer) else None

    def costs(self) -> Counter[AttemptCost]:
        """Return the costs of all attempts of the run at one site."""
        return run_costs(self.plan, self.federation_spec.rounds, self.federation_spec.retries)

    def planned_attempts(self) -> PlannedAttempts:
        """Return the attempts that the run's guarantee covers."""
        spec = self.federation_spec
        return PlannedAttempts.of(self.plan, spec.rounds, spec.retries)

    @property
    def measured_units(self) -> int:
        """Number of rows in a statistic's sum, as declared.

        There is one for each example. Where patients are protected, one example of each counts.
        """
        guarantee = self.plan.guarantee
        is_by_patient = guarantee is not None and guarantee.unit == "patient"
        return self.federation_spec.num_units("patient" if is_by_patient else "example")

    def network(self) -> nn.Module:
        """Build the initial network on the run's device, equal at every party."""
        net = build_network(self.model, self.spec, self.seeds.integer("weights"))
        return net.to(self.device)

    def secret(self, purpose: str, *, private: bool) -> Randomness:
        """Return a party's source of secrets for `purpose`.

        If nothing is protected (`private` is false) or the study asks for seeded noise, the source
        is a function of the public seed. Such a run is therefore repeatable.
        """
        if private and not self.federation_spec.insecure_seeded_secrets:
            return Randomness.system()
        return Randomness.insecure_from_seed(self.seeds.root).derive(purpose)


class AdmissionPolicy(Protocol):
    """Limits of one site on the runs in which it takes part.

    Each method raises a `RefusalError` for a run beyond a limit.
    """

    def admit(self, run_config: RunConfig) -> None:
        """Refuse a run that offers less than the site demands."""
        ...

    def admit_parameters(self, parameters: int) -> None:
        """Refuse a model with too many parameters, before it is built."""
        ...

    def admit_memory(self, estimate: int) -> None:
        """Refuse training that takes too much memory, before it is tried.

        The estimate is in bytes.
        """
        ...
