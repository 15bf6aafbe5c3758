"""Values that the roles exchange.

They are frozen, and public unless the docstring says otherwise.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attrs import field, frozen
from attrs.validators import ge, gt, le, optional

from cohortium.errors import PrivacyError, StudyError
from cohortium.storage.append_log import MemoryJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.crypto.randomness import Randomness
    from cohortium.crypto.signing import KeyDirectory, SigningKey
    from cohortium.data.examples import DataSpec
    from cohortium.privacy.guarantee import Unit
    from cohortium.ring.ring import Ring
    from cohortium.storage.append_log import Journal

ExampleIndices: TypeAlias = "NDArray[np.int64]"
"""Positions of examples at a site, shape (B,)."""

SiteId: TypeAlias = int
"""A site's number in the federation, from 0."""

PlanState: TypeAlias = tuple[float, ...]
"""State of a privacy plan in one round: at most 1,024 finite numbers, all of them public."""

Adversary: TypeAlias = Literal["honest-but-curious", "active"]
"""Behaviour of the coordinator.

It follows the protocol and looks, or it may also lie.
"""


@frozen(kw_only=True)
class FederationSpec:
    """The federation, as the study declares it.

    It is public, and the same at every party.

    Attributes:
        sites: Sites in the federation.
        cohort_size: Sites that are asked in each round.
        min_contributors: Fewest contributions of which a sum may be released.
        examples: Declared training examples over all sites.
        patients: Declared patients over all sites, where the data name the patient of each example.
        rounds: Rounds of the run.
        retries: Further attempts, over the whole run, at rounds that fail.
        adversary: What the coordinator may do.
        max_colluding: Sites that may share their knowledge with the coordinator.
        insecure_seeded_secrets: Whether secrets come from a public seed.  Such a simulation
            protects nothing.
    """

    sites: int = field(validator=ge(1))
    cohort_size: int = field(validator=ge(1))
    min_contributors: int = field(default=1, validator=ge(1))
    examples: int = field(validator=ge(1))
    patients: int | None = field(default=None, validator=optional(ge(1)))
    rounds: int = field(validator=ge(1))
    retries: int = field(default=0, validator=ge(0))
    adversary: Adversary = "honest-but-curious"
    max_colluding: int = field(default=0, validator=ge(0))
    insecure_seeded_secrets: bool = False

    @property
    def attempts(self) -> int:
        """Largest number of attempts that any site may be asked for."""
        return self.rounds + self.retries

    @property
    def examples_per_site(self) -> float:
        """The declared mean.

        It replaces a site's own number wherever that number must not show.
        """
        return self.examples / self.sites

    def num_units(self, unit: Unit) -> int:
        """Return the declared number of a `unit`.

        It is 0 for patients where the data name none.
        """
        if unit == "patient":
            return self.patients or 0
        return self.sites if unit == "site" else self.examples

    def min_honest_contributors(self) -> int:
        """Return the fewest honest sites in a sum.

        They share the noise that the sum needs.

        Raises:
            PrivacyError: There might be no honest site.
        """
        if not 1 <= self.max_colluding < self.min_contributors:
            raise PrivacyError(
                f"min_contributors is {self.min_contributors} and max_colluding "
                f"{self.max_colluding}: noise shared against the coordinator is sized for "
                "min_contributors less max_colluding honest sites, and every site knows its own "
                "share; set max_colluding to 1 or more, and min_contributors above."
            )
        return self.min_contributors - self.max_colluding


@frozen(kw_only=True)
class Workload:
    """A trainer's declaration of each round's work, made before the run starts.

    Attributes:
        output: "update" (new weights minus old) or "gradient" (of one batch).
        steps: Batches a round.  Under example-level privacy it is the same at every site.
        sampling_rate: Probability q of each example (or patient) to be in a batch, where batches
            are drawn by Poisson sampling.
        batch_size: Examples in a batch, where batches are drawn by shuffling instead.
        epochs: Shuffled passes a round.  Replaces `steps` where batches are shuffled.
        fewest: Examples that a batch needs where it hides nothing.  It is 2 where the network
            cannot train on one example, as with batch normalisation.  A trainer need not declare
            it: Cohortium finds it by a trial of the network.
        max_site_share: Largest share of all declared units that one site's batch may have, where
            its sum may take any value up to it.  A privatizer sizes its ring for it, and cuts
            larger values off.  None stands for the mean share, one over the cohort.
        has_mixed_examples: Whether the loss of one example depends on others of its batch, as in
            MixUp.  Then a clip bounds no example, and Cohortium refuses the trainer under
            privacy of examples or patients.
        find_noise_response: Function that returns `noise_response`.  A trainer need not declare it:
            Cohortium tries the server optimizer.
    """

    output: Literal["update", "gradient"]
    steps: int = field(validator=ge(1))
    sampling_rate: float = field(validator=[gt(0), le(1)])
    batch_size: int | None = None
    epochs: int | None = None
    fewest: int = field(default=1, validator=ge(1))
    max_site_share: float | None = field(default=None, validator=optional([gt(0), le(1)]))
    has_mixed_examples: bool = False
    find_noise_response: Callable[[], tuple[float, ...]] = tuple

    @cached_property
    def noise_response(self) -> tuple[float, ...]:
        """For each round, how far the server optimizer carries noise of size 1.

        This is the root of the summed squares of the noise's part in the weights after each round.
        Empty where the server optimizer is not linear.  The trial of the optimizer takes
        time, and the first privatizer that asks starts it.
        """
        return self.find_noise_response()

    def require_separate_examples(self, unit: Unit) -> None:
        """Refuse a trainer that mixes examples, under privacy of one example or patient.

        A privatizer that searches its noise calls it before that. Cohortium calls it for every
        plan.

        Args:
            unit: The unit of the guarantee.

        Raises:
            StudyError: The trainer mixes examples, and the unit is not the site.
        """
        if self.has_mixed_examples and unit != "site":
            raise StudyError(
                "the trainer mixes the examples of a batch (MixUp), so a mixed example depends on "
                "two patients and the clip of its gradient no longer bounds the effect of one "
                f"{unit}; set trainer.mixup_alpha to 0, or use the privatizer's unit 'site' or "
                "privatizer 'none'."
            )


@frozen(eq=False, kw_only=True)
class LocalTask:
    """One round's task at one site.

    Attributes:
        net: The resident network with the round's global weights loaded.  Trained in place.
        images: Preprocessed inputs of the site's examples, shape (N, …), on the network's device.
        labels: Shape (N, …), in the form of the data set's task.
        spec: Public facts about the data, with the data set's task.
        round: From 0.
        rounds: Rounds of the whole run.
        workload: The trainer's declaration.
        generator: Generator for augmentation, on the CPU.  Under example-level privacy it is
            secret, because the treatment of one example depends on the other examples drawn.
        state: The trainer's state at this site after its last round.  Empty at first.
        server_state: The vector that the server publishes with the round's weights, shape (S,),
            `float32`, on the CPU.  None if the trainer is no `ServerStateTrainer`.
        groups: The group of each example, by column of groups, shape (N,) each.  -1 stands for an
            unknown group.
    """

    net: nn.Module
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    spec: DataSpec
    round: int
    rounds: int
    workload: Workload
    generator: torch.Generator
    state: Mapping[str, Tensor] = field(repr=False)
    server_state: Tensor | None = field(default=None, repr=False)
    groups: Mapping[str, Tensor] = field(factory=dict, repr=False)


@frozen(eq=False, kw_only=True)
class LocalResult:
    """Result of a trainer's round at one site.

    Attributes:
        vector: The update or gradient, in `flatten`'s order, shape (P,), `float32`.
        weight: Weight in the mean: the number of examples behind it.  A privatizer with a guarantee
            ignores it and uses the declared number.
        state: State that stays at the site.  It is durable and never sent.
        extra: Further numbers of the release, shape (E,), `float32`.  A `ServerStateTrainer`
            declares E.  None stands for none.
    """

    vector: Tensor = field(repr=False)
    weight: float
    state: Mapping[str, Tensor] = field(factory=dict, repr=False)
    extra: Tensor | None = field(default=None, repr=False)


@frozen(eq=False, kw_only=True)
class ReleasedMean:
    """The mean of a round's releases, from which a trainer computes its server state.

    Attributes:
        vector: The mean of the networks' vectors, shape (P,), `float32`, on the CPU.
        extra: The mean of the further numbers, shape (E,), `float32`, on the CPU.
        round: From 0.
        rounds: Rounds of the whole run.
        steps: Batches a round, as the trainer declared them.
        share: Sites in the mean, over all sites of the federation.
    """

    vector: Tensor = field(repr=False)
    extra: Tensor = field(repr=False)
    round: int
    rounds: int
    steps: int
    share: float


@frozen(eq=False)
class StageRequests:
    """Requests of a coordinator in one stage.

    A part goes to every site, and a part to each site that must answer.  The value is false when
    there is nothing left to ask.

    Attributes:
        broadcast: The part for every site.
        per_site: The part for each site that must answer.
        stage: Name of the stage, for people: "keys", "vectors", …
    """

    broadcast: bytes = b""
    per_site: Mapping[SiteId, bytes] = field(factory=dict)
    stage: str = ""

    def __bool__(self) -> bool:
        """Return whether any site is asked anything."""
        return bool(self.per_site)


@frozen(eq=False, kw_only=True)
class SiteRequest:
    """One request as a site's session receives it.

    All of it is untrusted.

    Attributes:
        round: From 0.
        attempt: From 0 over the run.  Every attempt has keys, masks, batches and noise of its own.
        broadcast: The part that all sites were sent.
        own: The part for this site alone.
    """

    round: int
    attempt: int
    broadcast: bytes
    own: bytes


@frozen(kw_only=True)
class AggregationGuarantee:
    """Confidentiality guarantee of an aggregator.

    In each attempt, the coordinator learns one sum and nothing else about any single release.

    Attributes:
        min_contributors: Fewest sites in a sum that the coordinator opens.
        reconstruction_threshold: Number of shareholders of a secret that must side with the
            coordinator to unmask a release.
        max_dropouts: Number of sites, any of them, that may drop out without loss of the sum.
        statistical_security_bits: The guarantee fails in at most one of
            2**statistical_security_bits runs.  None where it never fails.
    """

    min_contributors: int = field(validator=ge(2))
    reconstruction_threshold: int = field(validator=ge(1))
    max_dropouts: int = field(validator=ge(0))
    statistical_security_bits: int | None = None


@frozen(kw_only=True)
class AggregationConfig:
    """Configuration of an aggregation.

    Both sides agree on it for the whole run.

    Attributes:
        session: 16 bytes that name the run.  Every derived key is bound to them.
        ring: Ring in which the sum is computed.
        length: Elements of a release.
        federation_spec: The federation, as declared.
        directory: The sites' public keys, as every party has pinned them.  None where nobody
            signs, because the coordinator is trusted to forward messages unchanged.
    """

    session: bytes
    ring: Ring
    length: int
    federation_spec: FederationSpec
    directory: KeyDirectory | None = None


@frozen(eq=False, kw_only=True)
class SiteContext:
    """A site's number and private state, for its aggregation session.

    Attributes:
        site: Its number.
        secret: Its source of secrets.
        identity: Key that signs for the site.  None where the configuration has no directory.
        journal: Durable record that the session needs after a restart.
        shared: Objects by name, which the run's sites in this process share.  A simulation saves
            work with them.  A hospital's site is alone in its process, and shares with nobody.
    """

    site: SiteId
    secret: Randomness
    identity: SigningKey | None = None
    journal: Journal = field(factory=MemoryJournal)
    shared: dict[str, Any] = field(factory=dict, repr=False)
