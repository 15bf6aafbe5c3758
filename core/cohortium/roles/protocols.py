"""The seven roles.  A plugin fills one by having its methods: no base class, no registration call.

    A **Partitioner** splits a **Dataset** over *sites*; each site trains a **Model** with a
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
        EngineSession,
        PrivacyPlan,
        SiteFactory,
        SitePrivatizer,
        SiteSession,
    )
    from cohortium.roles.values import (
        AggregationConfig,
        AggregationGuarantee,
        ExampleIndices,
        FederationSpec,
        LocalResult,
        LocalTask,
        SiteContext,
        SiteId,
        Workload,
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
    """Splits one data set over sites, in a simulation.

    Guarantees:
        No example goes to two sites.  The partition is a function of the arguments and `rng` alone.
    """

    def partition(
        self, examples: Examples, num_sites: int, rng: np.random.Generator
    ) -> Sequence[ExampleIndices]:
        """Positions for each of `num_sites` sites.

        Args:
            examples: The data set, to be left as it is.
            num_sites: How many parts.
            rng: The only source of chance.

        Raises:
            StudyError: It cannot be split so; nothing was.
        """
        ...


@runtime_checkable
class Model(Protocol):
    """A network, and what is done to an image before it.

    Guarantees:
        `preprocess` is fixed, public and per image: example i of the result depends on image i
        alone. `build` gives equal weights for equal arguments, and leaves torch's global generator
        be.
    """

    def preprocess(self, images: Tensor) -> Tensor:
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
        All training data reaches the update through `SitePrivatizer.set_private_gradient`, and only
        so: with zero gradients, `parameters`, `state` and every *other* example's loss are the same
            whatever
        any one example is.  The conformance kit checks exactly that.
    """

    def workload(self, cohort: FederationSpec) -> Workload:
        """The declaration that privacy is planned by.

        Args:
            cohort: Who takes part, as declared.

        Raises:
            StudyError: The parameters contradict one another.
        """
        ...

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Train `task.net` for one round.

        `privatizer` yields the batches and sets `.grad` on the network's parameters: its `gradient`
        is called once for each batch that its `batches` yields, and `workload().steps` times in all
        where batches are Poisson samples.  That is what the privacy is planned for.
        """
        ...

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """The optimizer that takes a step a round on the pseudo-gradient, and its schedule.

        The pseudo-gradient is minus the mean update, or the mean gradient.

        Args:
            parameters: Of the global network.
            rounds: Steps that will be taken.
        """
        ...

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """The network a site would use itself, given its `state`: by default `net`, the global."""
        ...


@runtime_checkable
class Privatizer(Protocol):
    """Decides what may leave a site, and what that promises.

    Guarantees:
        The plan's guarantee covers everything `SitePrivatizer.release` lets out over
        `cohort.attempts` attempts, for whoever the guarantee says it is against.
    """

    def plan(self, workload: Workload, cohort: FederationSpec, parameters: int) -> PrivacyPlan:
        """Calibrate noise for the whole run, before its first step.

        Args:
            workload: What the trainer declared.
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

    def confidentiality(self, cohort: FederationSpec) -> AggregationGuarantee | None:
        """What is hidden from a coordinator as `cohort` declares it; None: it sees each release.

        Raises:
            StudyError: As for the coordinator.
        """
        ...

    def coordinator_session(
        self, setting: AggregationConfig, secret: Randomness
    ) -> CoordinatorSession:
        """The coordinator's session of a run.

        Args:
            setting: What all parties agree on.
            secret: The coordinator's own secrets.

        Raises:
            StudyError: The cohort is too small, or a threshold does not hold what it should; the
                sentence names the least value.
        """
        ...

    def site_session(self, setting: AggregationConfig, member: SiteContext) -> SiteSession:
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
        It keeps deadlines; see `EngineSession.exchange`.
    """

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        """Get ready.  `sites` is None in a deployment, where the sites build themselves."""
        ...


@runtime_checkable
class Observer(Protocol):
    """Is told of the run's events, and can change nothing.

    An error in a listener ends the run, and the run waits while one works: be quick, above all
    with `SiteReplied`, which comes for every site in every exchange.
    """

    def start_run(self) -> Callable[[Event], None]:
        """A listener for one run, which passes over the events that it has no use for."""
        ...
