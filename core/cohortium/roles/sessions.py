"""What the roles make for one run: plans, sessions, exchanges.  These may hold state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from cohortium.crypto.randomness import Randomness
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.ring.ring import Ring, RingSum, RingVector
    from cohortium.roles.values import ExampleIndices, SiteId, SiteRequest, StageRequests


@runtime_checkable
class SitePrivatizer(Protocol):
    """A privatizer at one site, for one attempt at one round."""

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """The round's batches over the site's `examples`.

        Under example-level privacy each is a Poisson sample from the site's secret generator:
        its size varies, and it may be empty.  Under patient-level privacy it is a Poisson sample
        of patients, one example of each.
        """
        ...

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
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

        Args:
            vector: What the trainer hands back, shape (P,).
            weight: The examples behind it; a privatizer with a guarantee ignores it.

        Raises:
            RefusalError: A value is NaN or infinite, or outside what the ring was sized for.
        """
        ...


@runtime_checkable
class PrivacyPlan(Protocol):
    """The numbers of a run's privacy: public, alike at every party, fixed before it starts."""

    @property
    def guarantee(self) -> Guarantee | None:
        """What the whole run promises, all attempts included; None without privacy."""
        ...

    @property
    def mechanism(self) -> Mechanism | None:
        """What one attempt costs a site; None without privacy.

        A hospital's ledger keeps it, and composes it with those of other runs.
        """
        ...

    @property
    def ring(self) -> Ring:
        """The narrowest in which the sum fits.

        Under noise a wrap is less likely than 2⁻⁴⁰ over the run.
        """
        ...

    @property
    def length(self) -> int:
        """Elements of a release."""
        ...

    def guarantee_after(self, attempts: int) -> Guarantee | None:
        """What `attempts` attempts promise so far."""
        ...

    def for_site(
        self, secret: Randomness, patients: ExampleIndices | None = None
    ) -> SitePrivatizer:
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
class CoordinatorSession(Protocol):
    """The coordinator's side of an aggregation; a state machine that lives for the run.

    For each attempt: `open`, then ask `requests` and `receive` replies until there are no more
    requests, then `total`.  A reply that has not come when `requests` is asked again is a
    dropout, whatever its cause.
    """

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002
        """Begin `attempt`, at `round`, among `sites`, forgetting any earlier one."""
        ...

    def next_requests(self) -> StageRequests:
        """What to send now; empty when the attempt is complete, or cannot be."""
        ...

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take in the `reply` of one `site`; vectors are folded into the sum and dropped.

        A site's first reply to a request stands; a further one is an error and changes nothing.

        Raises:
            MessageError: `reply` is not what was asked; the site counts as dropped.
        """
        ...

    def sum(self) -> RingSum:
        """The exact sum over the contributors.

        Raises:
            TooFewSitesError: Too few answered; nothing is released.
        """
        ...


@runtime_checkable
class SiteSession(Protocol):
    """A site's side of an aggregation; a state machine that lives for the run."""

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        """The reply to one request.

        Args:
            request: The request; the site has checked that it is of this run and not of an attempt
                that is over.
            release: Trains and releases.  Called at most once an attempt, when a vector is due.

        Raises:
            RefusalError: The request is one that an honest coordinator would not make.
            MessageError: It is not a well-formed request.
        """
        ...


class SiteHandle(Protocol):
    """A site ready to answer."""

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """The reply to one exchange, of a part `broadcast` to all and its `own`.

        A refusal, too, is a message.
        """
        ...


class SiteFactory(Protocol):
    """How to make a simulated site in any process; it can be pickled."""

    def create(self, share_model_with: SiteHandle | None = None) -> SiteHandle:
        """Make the site, which shares the resident network of `share_model_with`."""
        ...


class EngineSession(Protocol):
    """An engine at work."""

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Send `broadcast` and each site's own part, and yield replies as they come.

        It ends when every site has replied, or has failed to; a site that has not is left out.

        Args:
            broadcast: For all.
            per_site: For one site each.
            timeout: Seconds that every site has, from when it is handed its request; None gives
                it for ever.  Sites that take turns at one processor are handed theirs in turn.

        Guarantees:
            With a deadline the exchange ends once it is over for the site that was asked last,
            whatever becomes of the sites; an engine that computes in its caller's own thread
            ends when the site that it is in has.
            A reply that comes later is not yielded, neither here nor in an exchange that follows.
            A site is asked one thing at a time: one that is still busy with an earlier request is
            handed the next when it is done.
        """
        ...

    def close(self) -> None:
        """Let go of processes and connections."""
        ...
