"""A trainer's work at one site in one attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import attrs
from attrs import field, frozen

from cohortium.catalog.networks import blame_network
from cohortium.catalog.part_results import require_result
from cohortium.errors import BrokenNetworkError, PrivacyError, RefusalCode, RefusalError
from cohortium.roles.values import LocalResult, LocalTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cohortium.crypto.randomness import Randomness
    from cohortium.roles.protocols import OwnModelTrainer, Trainer
    from cohortium.roles.sessions import SitePrivatizer
    from cohortium.roles.values import ExampleIndices
    from cohortium.rounds.run_config import RunConfig
    from cohortium.rounds.shared_model import SharedModel

Result = TypeVar("Result")

OWN = "own."
"""Prefix of the names of a site's own tensors among the state that it stores."""


def reading_own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a stored state as `Trainer.personalize` takes it: own tensors under their names."""
    return {name.removeprefix(OWN): tensor for name, tensor in state.items()}


@frozen(eq=False, kw_only=True)
class SiteData:
    """A site's data on the run's device.

    Attributes:
        images: Preprocessed inputs, shape (N, …).
        labels: Shape (N, …).
        groups: The group of each example, by column of groups.
        patients: The patient of each example, shape (N,), if the data name them.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    groups: Mapping[str, Tensor] = field(repr=False)
    patients: ExampleIndices | None = field(repr=False)


@frozen(eq=False, kw_only=True)
class LocalRound:
    """One attempt at a round, at one site.

    Guarantees:
        `train` does not see the site's own tensors, and `with_own` changes nothing of the release.

    Attributes:
        run_config: The run configuration.
        data: The site's data.
        shared_model: The network, which has decoded the round's global weights.
        secret: Secrets of this attempt.
        round: Number of the round, from 0.
    """

    run_config: RunConfig
    data: SiteData
    shared_model: SharedModel
    secret: Randomness
    round: int

    def train(self, privatizer: SitePrivatizer, stored: Mapping[str, Tensor]) -> LocalResult:
        """Return the result of the trainer's round.

        Args:
            privatizer: The privatizer of the attempt.
            stored: The stored state of the round before.

        Raises:
            BrokenNetworkError: The network failed, or the data have no gradient.
        """
        state = {name: each for name, each in stored.items() if not name.startswith(OWN)}
        task = self._task("augmentation", state)
        trainer, length = self.run_config.trainer, self.shared_model.length
        found = self._call("layers", task, lambda: trainer.train(task, privatizer))
        _require_trained(trainer, found, length, self.run_config)
        return found

    def with_own(
        self, trained: LocalResult, stored: Mapping[str, Tensor], trainer: OwnModelTrainer
    ) -> LocalResult:
        """Return `trained` with the site's own tensors among its state.

        Args:
            trained: The result of `train`.
            stored: The stored state of the round before.
            trainer: The run's trainer.

        Raises:
            RefusalError: The trainer gives two tensors one name.
        """
        # Copies, as the own tensors are trained in the same network.
        trained = attrs.evolve(trained, vector=trained.vector.clone(), state=_copied(trained.state))
        before = {
            name.removeprefix(OWN): each for name, each in stored.items() if name.startswith(OWN)
        }
        self.shared_model.load_global_weights()
        task = self._task("own augmentation", trained.state)
        found = self._call("own layers", task, lambda: trainer.train_own(task, before))
        _require_tensors(trainer, "train_own", found)
        if found.keys() & trained.state.keys():
            raise RefusalError(
                RefusalCode.TRAINER, "the trainer gives its state and its own tensors one name."
            )
        own = {f"{OWN}{name}": each for name, each in found.items()}
        return attrs.evolve(trained, state={**trained.state, **own})

    def _task(self, augmentation: str, state: Mapping[str, Tensor]) -> LocalTask:
        import torch

        run_config, data = self.run_config, self.data
        return LocalTask(
            net=self.shared_model.net,
            images=data.images,
            labels=data.labels,
            spec=run_config.spec,
            round=self.round,
            rounds=run_config.federation_spec.rounds,
            workload=run_config.workload,
            # As secret as the batches: an example's flips depend on the examples drawn before it.
            # An adversary who knew the draws would see more of one example than its clipped
            # gradient.
            generator=torch.Generator().manual_seed(self._seed(augmentation)),
            state=state,
            server_state=self.shared_model.server_state,
            groups=data.groups,
        )

    def _call(self, layers: str, task: LocalTask, work: Callable[[], Result]) -> Result:
        """Call the trainer, whose layers draw from a generator of this attempt."""
        import torch

        with torch.random.fork_rng(devices=[]):
            # Layers such as Dropout draw from torch's global generator. Without an accelerator,
            # torch.manual_seed would queue one call for each kind of accelerator, to make if one is
            # initialised.
            seeded = self.run_config.device == "cpu"
            seed = torch.default_generator.manual_seed if seeded else torch.manual_seed
            seed(self._seed(layers))
            try:
                fails = f"failed in round {self.round + 1}"
                with blame_network(self.run_config.model, task.net, fails):
                    return work()
            except PrivacyError as error:  # about the site's data, so its words must not leave
                raise BrokenNetworkError(str(error)) from error

    def _seed(self, purpose: str) -> int:
        """Derive a seed for torch's generators."""
        return int.from_bytes(self.secret.secret_bytes(8, purpose), "big") >> 1


def _require_trained(trainer: Trainer, found: object, length: int, run_config: RunConfig) -> None:
    """Refuse a result of `Trainer.train` of another kind than its contract names.

    Raises:
        PluginError: It is no `LocalResult`, or its vector or its state has another form.
    """
    import torch

    is_result = isinstance(found, LocalResult)
    require_result(trainer, "train", found, is_result, "a LocalResult")
    assert isinstance(found, LocalResult)
    vector: object = found.vector
    if run_config.statistic is None:
        is_right = isinstance(vector, torch.Tensor) and vector.shape == (length,)
        wanted = f"a LocalResult whose vector is a tensor of shape ({length},)"
        require_result(trainer, "train", vector, is_right, wanted)
    _require_tensors(trainer, "train", found.state)


def _require_tensors(trainer: object, method: str, found: object) -> None:
    """Refuse a state of a site that is no mapping from names to tensors."""
    import torch

    is_right = isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in found.items()
    )
    require_result(trainer, method, found, is_right, "a state that maps names to tensors")


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in tensors.items()}
