"""The eight roles and the observer.  A plugin fills one by having its methods.

A plugin needs no base class and no registration call.

    A **Dataset** states its **Task**.  A **Partitioner** splits it over *sites*.  Each site trains
    a **Model** with a **Trainer** under a **Privatizer**.  An **Aggregator** sums the releases of
    the sites.  An **Engine** carries the messages.  An **Observer** receives the events of the run.

Every role instance is a frozen attrs value of plain parameters, cheap to make, to compare, to
pickle and to write as TOML.  Its methods import heavy libraries.  Its module imports none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cohortium.data.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.crypto.randomness import Randomness
    from cohortium.data.examples import DataSpec, Examples
    from cohortium.data.splits import Splits
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
        ReleasedMean,
        SiteContext,
        SiteId,
        Workload,
    )


__all__ = [
    "Aggregator",
    "Dataset",
    "Engine",
    "Model",
    "Observer",
    "OwnModelTrainer",
    "Partitioner",
    "Privatizer",
    "ServerStateTrainer",
    "Task",
    "Trainer",
]


@runtime_checkable
class Dataset(Protocol):
    """Labelled images.

    Guarantees:
        `load` returns equal arrays whenever it is called with equal parameters.
    """

    def load(self) -> Splits:
        """Read or draw the data into new arrays.

        The caller may change them.

        Raises:
            DataError: The data are missing or damaged.  One sentence names the file and the remedy.
        """
        ...


@runtime_checkable
class Partitioner(Protocol):
    """A rule that splits one data set over sites, in a simulation.

    Guarantees:
        No example is at two sites.  The partition is a function of the arguments and `rng` alone.
    """

    def partition(
        self, examples: Examples, num_sites: int, rng: np.random.Generator
    ) -> Sequence[ExampleIndices]:
        """Return the positions of the examples of each of `num_sites` sites.

        Args:
            examples: The data set, which the method must not change.
            num_sites: Number of sites.
            rng: The only source of chance.

        Raises:
            StudyError: The data set cannot be split in this way.  Nothing was split.
        """
        ...


@runtime_checkable
class Model(Protocol):
    """A network and the preprocessing of its images.

    Guarantees:
        `preprocess` is fixed, public and per image.  Example i of the result depends on image i
        alone.
        `build` gives equal weights for equal arguments, and leaves torch's global generator
        unchanged.
    """

    def preprocess(self, images: Tensor) -> Tensor:
        """Return the network's input for `images`, shape (N, …).

        Args:
            images: Shape (N, C, H, W) or (N, C, D, H, W), `float32` in [0, 1].
        """
        ...

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build a network that maps preprocessed images to outputs, (N, *spec.output_shape).

        Args:
            spec: Shapes, classes and task, which are public.
            seed: Seed of the initial weights.
        """
        ...


@runtime_checkable
class Trainer(Protocol):
    """Training at a site in each round, and the server's optimizer.

    Guarantees:
        All training data reaches the update through `SitePrivatizer.set_private_gradient` alone.
        With zero gradients, the result's `vector`, `extra`, `weight` and `state` and every *other*
        example's loss are the same for any value of any one example.  The conformance kit checks
        exactly that.
        A trainer whose losses mix examples declares it (`Workload.has_mixed_examples`).  It never
        trains under privacy of examples or patients.
    """

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Return the declaration by which the privatizer plans privacy.

        Args:
            federation_spec: The federation, as declared.

        Raises:
            StudyError: The parameters contradict one another.
        """
        ...

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Train `task.net` for one round.

        `privatizer` yields the batches and sets `.grad` on the network's parameters.  Call its
        `set_private_gradient` once for each batch that its `batches` yields.  Where batches are
        Poisson samples, that is `workload().steps` calls in all.  The privacy plan covers exactly
        these calls.
        """
        ...

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Make the server's optimizer and its schedule.

        The optimizer takes one step a round on the pseudo-gradient.  The pseudo-gradient is minus
        the mean update, or the mean gradient.

        Args:
            parameters: Parameters of the global network.
            rounds: Number of steps that the optimizer will take.
        """
        ...

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the network that a site would use itself, given its `state`.

        By default this is `net`, the global network.

        Args:
            net: The global network, which the method must not change.
            state: The trainer's state at the site, with the tensors of `OwnModelTrainer.train_own`
                among it.
        """
        ...


@runtime_checkable
class ServerStateTrainer(Trainer, Protocol):
    """A trainer whose server publishes a vector with the weights, such as a control variate.

    The vector is the **server state**, shape (S,), `float32`.  The coordinator computes it from
    released means.  It sends the vector with the weights, and stores it in the checkpoint.  Sites
    may release further numbers for it, in addition to the network's vector.

    Guarantees:
        The server state is a function of released means, so it costs no privacy.
        No method changes an argument or the trainer.
        The further numbers are part of the release: the privatizer clips, noises and encodes one
        vector of P + E numbers.  Cohortium refuses them where sites release a gradient.
    """

    def extra_length(self, parameters: int) -> int:
        """Return E, the number of further numbers that a site releases.

        Args:
            parameters: P, the length of the network's vector.
        """
        ...

    def initial_server_state(self, parameters: int) -> Tensor:
        """Return the server state of the first round, shape (S,), `float32`, on the CPU.

        Args:
            parameters: P, the length of the network's vector.
        """
        ...

    def next_server_state(self, server_state: Tensor, mean: ReleasedMean) -> Tensor:
        """Return the server state of the next round, shape (S,), `float32`.

        Args:
            server_state: That of this round, shape (S,), on the CPU.
            mean: The mean that the sites have released in this round.
        """
        ...


@runtime_checkable
class OwnModelTrainer(Trainer, Protocol):
    """A trainer that also trains tensors of a site's own, which never leave it.

    Guarantees:
        `train` is never given these tensors, so no release depends on them.  They may therefore
        depend on the site's data in any way, and cost no privacy.
    """

    def train_own(self, task: LocalTask, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Train the site's own tensors for one round, and return them.

        A site calls it after `train`.  A change of `task.net` has no effect.

        Args:
            task: The task of the round, its network with the round's global weights.
            own: The result of the round before.  Empty at first.
        """
        ...


@runtime_checkable
class Privatizer(Protocol):
    """Rule for the data that may leave a site, with its guarantee.

    Guarantees:
        The plan's guarantee covers everything that `SitePrivatizer.release` returns over
        `federation_spec.attempts` attempts, against the adversary that the guarantee names.
    """

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> PrivacyPlan:
        """Calibrate noise for the whole run, before its first step.

        Args:
            workload: The trainer's declaration.
            federation_spec: The federation, as declared.
            parameters: P, the length of the vector that a site will release.

        Raises:
            PrivacyError: The target cannot be met for this workload.
        """
        ...


@runtime_checkable
class Aggregator(Protocol):
    """A protocol that sums ring vectors over sites.

    Guarantees:
        `CoordinatorSession.sum` returns the exact sum over its contributors or raises an error.
        It never returns a wrong sum.
        The plugin must state everything that the coordinator and colluding sites learn in addition
        to the sum.
    """

    def confidentiality(self, federation_spec: FederationSpec) -> AggregationGuarantee | None:
        """Return the confidentiality guarantee against the declared coordinator.

        None means that the coordinator sees each release.

        Args:
            federation_spec: The federation, as declared.

        Raises:
            StudyError: As for the coordinator's session.
        """
        ...

    def coordinator_session(
        self, config: AggregationConfig, secret: Randomness
    ) -> CoordinatorSession:
        """Return the coordinator's session of a run.

        Args:
            config: The configuration on which all parties agree.
            secret: The coordinator's own secrets.

        Raises:
            StudyError: The cohort is too small, or a threshold breaks a required bound.  The
                sentence names the least value.
        """
        ...

    def site_session(self, config: AggregationConfig, site_context: SiteContext) -> SiteSession:
        """Return the session of a run at the site `site_context`.

        Args:
            config: The configuration on which all parties agree.
            site_context: The site's number and private state.

        Raises:
            StudyError: As for the coordinator's session.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """A carrier of messages between the coordinator and the sites.

    It does nothing else.

    Guarantees:
        It neither reads nor changes a message.  Replies may come in any order, or not at all.
        It keeps deadlines, as `EngineSession.exchange` states.
    """

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        """Connect to the sites, or start them.

        Args:
            sites: Factories of simulated sites.  None in a deployment, where the sites build
                themselves.
        """
        ...


@runtime_checkable
class DeploymentEngine(Engine, Protocol):
    """An engine whose own tools start the coordinator of a deployment.

    `cohortium resume` cannot continue such a run, so messages name the command of these tools.
    """

    def coordinator_command(
        self, *, resume: str = "", evaluate: str = "", is_signed: bool = False
    ) -> str:
        """Return the shell command that starts the coordinator.

        Args:
            resume: Path of the folder of a run to continue, or "".
            evaluate: Path of the folder of a finished run to evaluate, or "".
            is_signed: Whether a key signs the result. The command then has `KEY` for its file.
        """
        ...


@runtime_checkable
class Observer(Protocol):
    """A recipient of the run's events, which can change nothing.

    An error at `RunStarted` ends the run before it spends anything.  A later error in a listener is
    logged once as a warning, and the run continues.  The run waits while a listener works, so be
    quick.  This matters most for `SiteReplied`, which comes for every site in every stage.
    """

    def start_run(self) -> Callable[[Event], None]:
        """Return a listener for one run.

        It ignores the events that it does not need.
        """
        ...
