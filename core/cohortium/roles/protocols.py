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
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.crypto.randomness import Randomness
    from cohortium.data.examples import DataSpec, Examples, Splits
    from cohortium.roles.events import Event
    from cohortium.roles.sessions import (
        CoordinatorSession,
        Exchange,
        PrivacyPlan,
        SitePrivacy,
        SiteRecipe,
        SiteSession,
    )
    from cohortium.roles.values import (
        Cohort,
        Index,
        Member,
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

        Args:
            examples: What is dealt, to be left as it is.
            sites: How many hands.
            rng: The only source of chance.

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
        """`images` (N, C, H, W), `float32` in [0, 1], as the network's input, shape (N, …)."""
        ...

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """A network that maps prepared images to logits, shape (N, classes).

        Args:
            spec: Shapes and classes, which are public.
            seed: Of the initial weights.
        """
        ...


@runtime_checkable
class Trainer(Protocol):
    """What a site does with its data in a round, and the server with the mean of what they send.

    Guarantees:
        All training data reaches the update through `SitePrivacy.gradient`, and only so: with
        zero gradients, `parameters`, `state` and every *other* example's loss are the same whatever
        any one example is.  The conformance kit checks exactly that.
    """

    def work(self, cohort: Cohort) -> Work:
        """The declaration that privacy is planned by.

        Args:
            cohort: Who takes part, as declared.

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

        Args:
            parameters: Of the global network.
            rounds: Steps that will be taken.
        """
        ...

    def personal(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """The network a site would use itself, given its `state`: by default `net`, the global."""
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

        Args:
            setting: What all parties agree on.
            secret: The coordinator's own secrets.

        Raises:
            StudyError: The cohort is too small, or a threshold does not hold what it should; the
                sentence names the least value.
        """
        ...

    def site(self, setting: SumSetting, member: Member) -> SiteSession:
        """The session of a run at the site that `member` is.

        Args:
            setting: What all parties agree on.
            member: What the site has to itself.

        Raises:
            StudyError: As for the coordinator.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Carries messages between the coordinator and the sites, and nothing else.

    Guarantees:
        It neither reads nor changes a message.  Replies may come in any order, or not at all.
        It keeps deadlines; see `Exchange.exchange`.
    """

    def open(self, sites: Mapping[SiteId, SiteRecipe] | None) -> Exchange:
        """Get ready.  `sites` is None in a deployment, where the sites build themselves."""
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
