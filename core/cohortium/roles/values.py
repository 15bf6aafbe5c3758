"""What the roles say to one another: frozen values, public unless the docstring says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import field, frozen
from attrs.validators import ge, gt, le, optional

from cohortium.errors import PrivacyError
from cohortium.storage.append_log import MemoryJournal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.crypto.randomness import Randomness
    from cohortium.crypto.signing import KeyDirectory, SigningKey
    from cohortium.privacy.guarantee import Unit
    from cohortium.ring.ring import Ring
    from cohortium.storage.append_log import Journal

ExampleIndices: TypeAlias = "NDArray[np.int64]"
"""Positions of examples at a site, shape (B,)."""

SiteId: TypeAlias = int
"""A site's number in the federation, from 0."""

Adversary: TypeAlias = Literal["honest-but-curious", "active"]
"""What the coordinator may do: follow the protocol and look, or also lie."""


@frozen(kw_only=True)
class FederationSpec:
    """Who takes part, as declared by the study: public, and alike at every party.

    Attributes:
        sites: Hospitals in the federation.
        cohort_size: How many of them are asked each round.
        min_contributors: Fewest contributions of which a sum may be released.
        examples: Declared training examples over all sites.
        patients: Declared patients over all sites, where the data say whose each example is.
        rounds: Rounds of the run.
        retries: Further attempts, over the whole run, at rounds that fail.
        adversary: What the coordinator may do.
        max_colluding: How many sites may pool what they know with it.
        insecure_seeded_secrets: Secrets come from a public seed: a simulation that protects
            nothing.
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
        """The most rounds that any site may ever be asked to answer."""
        return self.rounds + self.retries

    @property
    def examples_per_site(self) -> float:
        """The declared mean, which stands for a site's own number wherever that must not show."""
        return self.examples / self.sites

    def num_units(self, unit: Unit) -> int:
        """How many of a `unit` there are, as declared; 0 patients where none are named."""
        if unit == "patient":
            return self.patients or 0
        return self.sites if unit == "site" else self.examples

    def min_honest_contributors(self) -> int:
        """The fewest honest sites in a sum, who can share the noise that it needs.

        Raises:
            PrivacyError: There might be none.
        """
        if not 1 <= self.max_colluding < self.min_contributors:
            raise PrivacyError(
                f"min_contributors is {self.min_contributors} and max_colluding "
                f"{self.max_colluding}: noise shared "
                "against the coordinator is sized for min_contributors less max_colluding honest "
                "sites, and "
                "every site knows its own share; set max_colluding to 1 or more, and "
                "min_contributors above."
            )
        return self.min_contributors - self.max_colluding


@frozen(kw_only=True)
class Workload:
    """What a site's trainer will do each round, declared before it starts.

    Attributes:
        output: "update" (new weights minus old) or "gradient" (of one batch).
        steps: Batches a round.  Under example-level privacy it is alike at every site.
        sampling_rate: Chance q of each example (or patient) to be in a batch, where batches are
            drawn by Poisson sampling.
        batch_size: Examples in a batch, where batches are drawn by shuffling instead.
        epochs: Shuffled passes a round; replaces `steps` where batches are shuffled.
        fewest: Examples that a batch needs where it hides nothing: 2 where the network cannot be
            trained on one, as batch normalisation cannot.  No trainer need declare it: it is found
            by trying the network.
    """

    output: Literal["update", "gradient"]
    steps: int = field(validator=ge(1))
    sampling_rate: float = field(validator=[gt(0), le(1)])
    batch_size: int | None = None
    epochs: int | None = None
    fewest: int = field(default=1, validator=ge(1))


@frozen(eq=False, kw_only=True)
class LocalTask:
    """One round's work at one site.

    Attributes:
        net: The resident network with the round's global weights loaded; trained in place.
        images: Prepared inputs of the site's examples, shape (N, …), on the network's device.
        labels: Shape (N,), `int64`.
        classes: How many there are.
        round: From 0.
        rounds: In the whole run.
        workload: What the trainer declared.
        generator: For augmentation, on the CPU.  Under example-level privacy it is secret: what
            happens to one example depends on which others were drawn.
        state: What the trainer kept at this site after its last round; empty at first.
    """

    net: nn.Module
    images: Tensor
    labels: Tensor
    classes: int
    round: int
    rounds: int
    workload: Workload
    generator: torch.Generator
    state: Mapping[str, Tensor]


@frozen(eq=False, kw_only=True)
class LocalResult:
    """What a trainer hands back.

    Attributes:
        vector: The update or gradient, in `flatten`'s order, shape (P,), `float32`.
        weight: How much it counts in the mean: the examples behind it.  A privatizer with a
            guarantee ignores it and uses the declared one.
        state: Stays at the site, durable, never sent.
    """

    vector: Tensor
    weight: float
    state: Mapping[str, Tensor] = field(factory=dict)


@frozen(eq=False)
class StageRequests:
    """What a coordinator sends at once: a part for every site, and one for each that must answer.

    False when there is nothing left to ask.

    Attributes:
        broadcast: The part for every site.
        per_site: The part for each site that must answer.
        stage: What people call this exchange: "keys", "vectors", …
    """

    broadcast: bytes = b""
    per_site: Mapping[SiteId, bytes] = field(factory=dict)
    stage: str = ""

    def __bool__(self) -> bool:
        """Whether anyone is asked anything."""
        return bool(self.per_site)


@frozen(eq=False, kw_only=True)
class SiteRequest:
    """One request as it reaches a site's session; all of it is untrusted.

    Attributes:
        round: From 0.
        attempt: From 0 over the run; every attempt has keys, masks, batches and noise of its own.
        broadcast: The part that all sites were sent.
        own: The part for this site alone.
    """

    round: int
    attempt: int
    broadcast: bytes
    own: bytes


@frozen(kw_only=True)
class AggregationGuarantee:
    """What an aggregation hides in each attempt: all of a release but its part in one sum.

    Attributes:
        min_contributors: Fewest sites in a sum that is opened.
        reconstruction_threshold: Shareholders of a secret, on the coordinator's side, that would
            undo it.
        max_dropouts: Sites that may be lost, whichever they are, with the sum still to be had.
        statistical_security_bits: It fails in at most one of 2**statistical_security_bits runs;
            None where it never does.
    """

    min_contributors: int = field(validator=ge(2))
    reconstruction_threshold: int = field(validator=ge(1))
    max_dropouts: int = field(validator=ge(0))
    statistical_security_bits: int | None = None


@frozen(kw_only=True)
class AggregationConfig:
    """What both sides of an aggregation agree on for the whole run.

    Attributes:
        session: 16 bytes that name the run; every derived key is bound to them.
        ring: Where the sum is taken.
        length: Elements of a release.
        cohort: Who takes part.
        directory: The sites' public keys, as every party has pinned them; None where nobody
            signs, because the coordinator is trusted to pass messages on as they are.
    """

    session: bytes
    ring: Ring
    length: int
    cohort: FederationSpec
    directory: KeyDirectory | None = None


@frozen(eq=False, kw_only=True)
class SiteContext:
    """One site, as its own session of an aggregation sees it: what it has to itself.

    Attributes:
        site: Its number.
        secret: Its source of secrets.
        identity: Signs for it; None where the setting has no directory.
        journal: What its session must not forget over a restart.
    """

    site: SiteId
    secret: Randomness
    identity: SigningKey | None = None
    journal: Journal = field(factory=MemoryJournal)
