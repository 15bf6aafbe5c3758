"""Objects that the roles make for one run: plans, sessions, exchanges.

They may hold state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from cohortium.crypto.randomness import Randomness
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.ring.ring import Ring, RingSum, RingVector
    from cohortium.roles.values import (
        ExampleIndices,
        PlanState,
        SiteId,
        SiteRequest,
        StageRequests,
    )


@runtime_checkable
class SitePrivatizer(Protocol):
    """A privatizer at one site, for one attempt at one round."""

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield the round's batches over the site's `examples`.

        Under example-level privacy each is a Poisson sample from the site's secret generator.  Its
        size varies, and it may be empty.  Under patient-level privacy it is a Poisson sample of
        patients, with one example of each.
        """
        ...

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Set `.grad` of every trainable parameter of `net`.

        Args:
            net: The network inside `losses`.
            losses: Returns the loss of each example at some positions, shape (B,), differentiable.
                The copies of an augmented example lie inside its one value.
            batch: A batch that `batches` yielded.

        Guarantees:
            Without privacy, `.grad` is the mean gradient.
            With privacy, it is the quantity for which the privatizer made its plan.
            That is a sum of per-example gradients clipped to norm C, over a *declared* number of
            examples.
            The sum includes noise where this site adds noise for itself.
            A non-finite per-example gradient counts as zero.
        """
        ...

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Return the release: clipped, noised and encoded, in that order.

        Nothing else leaves the site.

        Args:
            vector: The trainer's result, shape (P,).
            weight: The number of examples behind it.  A privatizer with a guarantee ignores it.

        Raises:
            RefusalError: A value is NaN, infinite, or outside the range for which the ring was
                sized.
        """
        ...


@runtime_checkable
class RoundPlan(Protocol):
    """The numbers of one round's privacy.  They are public."""

    @property
    def mechanism(self) -> Mechanism | None:
        """Mechanism that one attempt at the round applies at a site.  None without privacy.

        A site's ledger stores it, and composes it with the mechanisms of other attempts.
        """
        ...

    def for_site(
        self, secret: Randomness, patients: ExampleIndices | None = None
    ) -> SitePrivatizer:
        """Return the privatizer for one attempt at a site.

        Args:
            secret: That attempt's own secrets.
            patients: The patient of each of the site's examples, shape (N,), if the data name them.
        """
        ...

    def decode(self, total: RingSum) -> Tensor:
        """Return the mean that `total` encodes, shape (P,), `float32`."""
        ...

    def next_state(self, total: RingSum) -> PlanState:
        """Return the plan's state for the next round.

        A plan whose rounds are alike returns ().

        Args:
            total: The released sum, from which alone the state is computed.
        """
        ...


@runtime_checkable
class PrivacyPlan(Protocol):
    """The numbers of a run's privacy.

    They are public, the same at every party, and fixed before the run starts.

    A plan is a value.  All that changes between rounds, such as a clip norm, is its **state**: a
    few numbers that `RoundPlan.next_state` computes from a released sum.  The coordinator sends
    the state with the weights, and stores it in the checkpoint.  A plan whose rounds are alike has
    the state (), and may be its own `RoundPlan`.

    Guarantees:
        The mechanism of a round is the same for every state, so the cost of a run is known before
        it starts.
        No method changes the plan.
    """

    @property
    def guarantee(self) -> Guarantee | None:
        """Guarantee of the whole run, all attempts included.  None without privacy.

        It covers retries of the costliest rounds.
        """
        ...

    @property
    def ring(self) -> Ring:
        """The narrowest ring in which the sum of every round fits.

        Under noise, the sum wraps with probability less than 2⁻⁴⁰ over the run.
        """
        ...

    @property
    def length(self) -> int:
        """Number of elements of a release."""
        ...

    @property
    def initial_state(self) -> PlanState:
        """State of the first round."""
        ...

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        """Return the guarantee of some attempts.

        Args:
            rounds: The round of each attempt.
        """
        ...

    def at_round(self, round: int, state: PlanState) -> RoundPlan:  # noqa: A002
        """Return the plan of one round.

        Args:
            round: From 0.
            state: State of that round.  A site receives it from a coordinator that may lie.

        Raises:
            RefusalError: The plan has no such state.
        """
        ...


MAX_STAGES: Final = 20
"""Most exchanges of one attempt.  Beyond them, an aggregation counts as endless."""


@runtime_checkable
class CoordinatorSession(Protocol):
    """The coordinator's side of an aggregation.

    It is a state machine that lives for the run.

    For each attempt, call `begin_attempt`.  Then send `next_requests` and `receive` the replies
    until there are no more requests.  Then call `sum`.  If a reply has not come by the next call of
    `next_requests`, its site is a dropout.  The cause does not matter.
    """

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002
        """Begin `attempt`, at `round`, among `sites`, and forget any earlier one."""
        ...

    def next_requests(self) -> StageRequests:
        """Return the next requests.

        They are empty when the attempt is complete, or cannot be completed.  That is so after
        `MAX_STAGES` exchanges at the latest.
        """
        ...

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take in the `reply` of one `site`.

        Adds a vector to the sum and drops it.  A site's first reply to a request counts.  A further
        reply is an error and changes nothing.

        Raises:
            MessageError: `reply` does not answer the request.  The site counts as dropped.
        """
        ...

    def sum(self) -> RingSum:
        """Return the exact sum over the contributors.

        Raises:
            TooFewSitesError: Too few sites replied.  Nothing is released.
        """
        ...


@runtime_checkable
class SiteSession(Protocol):
    """A site's side of an aggregation.

    It is a state machine that lives for the run.
    """

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        """Return the reply to one request.

        Args:
            request: The request.  The site has checked that it belongs to this run, and not to an
                attempt that is over.
            release: Trains and releases.  The session calls it at most once an attempt, when a
                vector is due.

        Raises:
            RefusalError: An honest coordinator would not make this request.
            MessageError: It is not a well-formed request.
        """
        ...


class SiteHandle(Protocol):
    """A site that is ready to answer."""

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """Return the reply to one exchange.

        A refusal is also a message.

        Args:
            broadcast: The part for all sites.
            own: The part for this site alone.
        """
        ...


class SiteFactory(Protocol):
    """Factory of a simulated site in any process.  It can be pickled."""

    def create(self, share_model_with: SiteHandle | None = None) -> SiteHandle:
        """Make the site, which shares the resident network of `share_model_with`."""
        ...


class EngineSession(Protocol):
    """The connection of an engine to its sites."""

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Send the requests of one exchange, and yield replies as they come.

        It ends when every site has replied or has failed to reply.  It yields nothing for a site
        that has failed.

        Args:
            broadcast: The part for all sites.
            per_site: The part for each site.
            timeout: Seconds that each site has, from the time when it receives its request.  None
                sets no limit.  Sites that share one processor receive their requests in turn.

        Guarantees:
            With a timeout, the exchange ends once the time is over for the site that was asked
            last.
            This does not depend on the state of the sites.
            An engine that computes in its caller's own thread ends when its current site has ended.
            A later reply is not yielded, neither here nor in a following exchange.
            A site works on one request at a time.  If it is still busy with an earlier request, it
            receives the next one afterwards.
        """
        ...

    def close(self) -> None:
        """Release processes and connections."""
        ...
