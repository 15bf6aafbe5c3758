"""The seven roles.  A plugin fills one by having its methods: no base class, no registration call.

    A **Dataset** is dealt by a **Partitioner** to *sites*; each site trains a **Model** with a
    **Trainer** under a **Privatizer**; an **Aggregator** sums what the sites release; an
    **Engine** carries the messages.  An **Observer** is told what happened.

Every role instance is a frozen attrs value of plain parameters, cheap to make, to compare, to
pickle and to write as TOML.  Heavy libraries are imported inside methods, never on import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.accounting import Mechanism
    from cohortium.data import DataSpec, Examples, Splits
    from cohortium.events import Event
    from cohortium.guarantee import Guarantee
    from cohortium.randomness import Randomness
    from cohortium.ring import Ring, RingSum, RingVector
    from cohortium.vocabulary import (
        Ask,
        Cohort,
        Index,
        Member,
        Requests,
        Secrecy,
        SiteId,
        SumSetting,
        Task,
        Trained,
        Work,
    )


@runtime_checkable
class Dataset(Protocol):
    """Labelled images.

    Guarantees:
        `load` returns equal arrays whenever it is called with equal parameters.
    """

    def load(self) -> Splits:
        """Read, or draw, the data, into arrays of the caller's own.

        Raises:
            DataError: It is missing or damaged: one sentence that names the file and the remedy.
        """
        ...


@runtime_checkable
class Partitioner(Protocol):
    """Deals one data set to sites, in a simulation.

    Guarantees:
        No example goes to two sites.  The deal is a function of the arguments and `rng` alone.
    """

    def deal(self, examples: Examples, sites: int, rng: np.random.Generator) -> Sequence[Index]:
        """Positions for each of `sites` sites.

        Raises:
            StudyError: It cannot be dealt as asked; nothing was dealt.
        """
        ...


@runtime_checkable
class Model(Protocol):
    """A network, and what is done to an image before it.

    Guarantees:
        `prepare` is fixed, public and per image: example i of the result depends on image i alone.
        `build` gives equal weights for equal arguments, and leaves torch's global generator be.
    """

    def prepare(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), `float32` in [0, 1], as the network's input, shape (N, …)."""
        ...

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """A network that maps prepared images to logits, shape (N, classes)."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """What a site does with its data in a round, and the server with the mean of what they send.

    Guarantees:
        All training data reaches the update through `SitePrivacy.gradient`, and only so: with
        zero gradients, `vector`, `state` and every *other* example's loss are the same whatever
        any one example is.  The conformance kit checks exactly that.
    """

    def work(self, cohort: Cohort) -> Work:
        """The declaration that privacy is planned by.

        Raises:
            StudyError: The parameters contradict one another.
        """
        ...

    def train(self, task: Task, private: SitePrivacy) -> Trained:
        """Train `task.net` for one round.

        `private` yields the batches and sets `.grad` on the network's parameters: its `gradient`
        is called once for each batch that its `batches` yields, and `work().steps` times in all
        where batches are Poisson samples.  That is what the privacy is planned for.
        """
        ...

    def server(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """The optimizer that takes a step a round on the pseudo-gradient, and its schedule.

        The pseudo-gradient is minus the mean update, or the mean gradient.
        """
        ...

    def personal(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """The network a site would use itself, given its state; the global one by default."""
        ...


@runtime_checkable
class SitePrivacy(Protocol):
    """A privatizer at one site, for one attempt at one round."""

    def batches(self, examples: int) -> Iterator[Index]:
        """The round's batches over the site's `examples`.

        Under example-level privacy each is a Poisson sample from the site's secret generator:
        its size varies, and it may be empty.  Under patient-level privacy it is a Poisson sample
        of patients, one example of each.
        """
        ...

    def gradient(self, net: nn.Module, losses: Callable[[Index], Tensor], batch: Index) -> None:
        """Set `.grad` of every trainable parameter of `net`.

        Args:
            net: The network inside `losses`.
            losses: The loss of each example at some positions, shape (B,), differentiable.  The
                copies of an augmented example lie inside its one value.
            batch: A batch that `batches` yielded.

        Guarantees:
            Without privacy it is the mean gradient.  With it, what the privatizer's plan was
            made for: a sum of per-example gradients clipped to norm C, with noise where this
            site noises for itself, over a *declared* number of examples.  A non-finite
            per-example gradient counts as zero.
        """
        ...

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """The only thing that leaves the site: clipped, noised and encoded, in that order.

        Raises:
            RefusalError: A value is NaN or infinite, or outside what the ring was sized for.
        """
        ...


@runtime_checkable
class PrivacyPlan(Protocol):
    """The numbers of a run's privacy: public, alike at every party, fixed before the first round.

    Attributes:
        guarantee: What the whole run promises, all attempts included; None without privacy.
        mechanism: What one attempt costs a site; None without privacy.  A hospital's ledger keeps
            it, and composes it with those of other runs.
        ring: The narrowest in which the sum fits; under noise a wrap is less likely than 2⁻⁴⁰
            over the run.
        length: Elements of a release.
    """

    @property
    def guarantee(self) -> Guarantee | None: ...  # noqa: D102
    @property
    def mechanism(self) -> Mechanism | None: ...  # noqa: D102
    @property
    def ring(self) -> Ring: ...  # noqa: D102
    @property
    def length(self) -> int: ...  # noqa: D102

    def spent(self, attempts: int) -> Guarantee | None:
        """What `attempts` attempts promise so far."""
        ...

    def site(self, secret: Randomness, patients: Index | None = None) -> SitePrivacy:
        """The privatizer for one attempt at a site.

        Args:
            secret: That attempt's own secrets.
            patients: Whose each of the site's examples is, shape (N,), if the data say so.
        """
        ...

    def decode(self, total: RingSum) -> Tensor:
        """The mean that `total` encodes, shape (P,), `float32`."""
        ...


@runtime_checkable
class Privatizer(Protocol):
    """Decides what may leave a site, and what that promises.

    Guarantees:
        The plan's guarantee covers everything `SitePrivacy.release` lets out over
        `cohort.attempts` attempts, for whoever the guarantee says it is against.
    """

    def plan(self, work: Work, cohort: Cohort, parameters: int) -> PrivacyPlan:
        """Calibrate noise for the whole run, before its first step.

        Args:
            work: What the trainer declared.
            cohort: Who takes part.
            parameters: P, the length of the vector that will be released.

        Raises:
            PrivacyError: The target cannot be met for this work.
        """
        ...


@runtime_checkable
class CoordinatorSession(Protocol):
    """The coordinator's side of an aggregation; a state machine that lives for the run.

    For each attempt: `open`, then ask `requests` and `receive` replies until there are no more
    requests, then `total`.  A reply that has not come when `requests` is asked again is a
    dropout, whatever its cause.
    """

    def open(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002
        """Begin an attempt among `sites`, forgetting any earlier one."""
        ...

    def requests(self) -> Requests:
        """What to send now; empty when the attempt is complete, or cannot be."""
        ...

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take in one site's reply; vectors are folded into the sum and dropped.

        A site's first reply to a request stands; a further one is an error and changes nothing.

        Raises:
            MessageError: `reply` is not what was asked; the site counts as dropped.
        """
        ...

    def total(self) -> RingSum:
        """The exact sum over the contributors.

        Raises:
            TooFewSitesError: Too few answered; nothing is released.
        """
        ...


@runtime_checkable
class SiteSession(Protocol):
    """A site's side of an aggregation; a state machine that lives for the run."""

    def answer(self, ask: Ask, vector: Callable[[], RingVector]) -> bytes:
        """The reply to one request.

        Args:
            ask: The request; the site has checked that it is of this run and not of an attempt
                that is over.
            vector: Trains and releases.  Called at most once an attempt, when a vector is due.

        Raises:
            RefusalError: The request is one that an honest coordinator would not make.
            MessageError: It is not a well-formed request.
        """
        ...


@runtime_checkable
class Aggregator(Protocol):
    """Sums ring vectors over sites.

    Guarantees:
        `total` is the exact sum over its contributors, or an error; never a wrong sum.
        What the coordinator and colluding sites learn beside it is the plugin's to state.
    """

    def secrecy(self, cohort: Cohort) -> Secrecy | None:
        """What is hidden from a coordinator as `cohort` declares it; None: it sees each release.

        Raises:
            StudyError: As for the coordinator.
        """
        ...

    def coordinator(self, setting: SumSetting, secret: Randomness) -> CoordinatorSession:
        """The coordinator's session of a run.

        Raises:
            StudyError: The cohort is too small, or a threshold does not hold what it should; the
                sentence names the least value.
        """
        ...

    def site(self, setting: SumSetting, member: Member) -> SiteSession:
        """The session of a run at the site that `member` is.

        Raises:
            StudyError: As for the coordinator.
        """
        ...


class OpenSite(Protocol):
    """A site ready to answer."""

    def answer(self, common: bytes, own: bytes) -> bytes:
        """The reply to one exchange; a refusal, too, is a message."""
        ...


class SiteRecipe(Protocol):
    """How to make a simulated site in any process; it can be pickled."""

    def open(self, beside: OpenSite | None = None) -> OpenSite:
        """Make the site; it shares the resident network of `beside`, a site of this process."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Carries messages between the coordinator and the sites, and nothing else.

    Guarantees:
        It neither reads nor changes a message.  Replies may come in any order, or not at all.
    """

    def open(self, sites: Mapping[SiteId, SiteRecipe] | None) -> Exchange:
        """Get ready.  `sites` is None in a deployment, where the sites build themselves."""
        ...


class Exchange(Protocol):
    """An engine at work."""

    def exchange(
        self, common: bytes, each: Mapping[SiteId, bytes]
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Send `common` and its own part to every site in `each`; yield replies as they come."""
        ...

    def close(self) -> None:
        """Let go of processes and connections."""
        ...


@runtime_checkable
class Observer(Protocol):
    """Is told of the run's events, and can change nothing.

    An error in a listener ends the run, and the run waits while one works: be quick, above all
    with `SiteAnswered`, which comes for every site in every exchange.
    """

    def watch(self) -> Callable[[Event], None]:
        """A listener for one run, which passes over the events that it has no use for."""
        ...
