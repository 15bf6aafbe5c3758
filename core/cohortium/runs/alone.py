"""Training of a study by one site alone, without noise and masks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from cohortium import parameters
from cohortium.learning.evaluation import torch_threads
from cohortium.rounds.local_round import reading_own
from cohortium.runs.prepare import prepare
from cohortium.runs.run_directory import STATES
from cohortium.storage.trainer_state import TrainerStateFile
from cohortium.study.study import Study

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from cohortium.data.splits import Splits
    from cohortium.learning.preprocessing import Features
    from cohortium.roles.protocols import Model, Trainer
    from cohortium.roles.values import SiteId
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result

    Run = Callable[[PreparedStudy, Path], Result]
    """Runs a prepared study, whose site stores its trainer state in the given folder."""


@frozen
class _Loaded:
    """A data set that is loaded already."""

    splits: Splits

    def load(self) -> Splits:
        """Return the images."""
        return self.splits


@frozen(eq=False, kw_only=True)
class AloneModel:
    """A network that a site trained alone.

    Attributes:
        net: The network that the site uses: its own, if the trainer makes one.
        prepared: The study of the one site.
    """

    net: nn.Module
    prepared: PreparedStudy


@frozen(eq=False, kw_only=True)
class AloneTraining:
    """The recipe of a study, for a site that trains by itself.

    Attributes:
        model: The study's model.
        trainer: Its trainer.
        rounds: Its number of rounds.
        seed: Its seed.
        device: Device on which torch computes.
        threads: Number of torch's threads. 0 leaves torch's own choice.
        run: Runs the study of the one site.
    """

    model: Model
    trainer: Trainer
    rounds: int
    seed: int
    device: str
    threads: int
    run: Run

    @classmethod
    def of(cls, study: Study, run: Run) -> AloneTraining:
        """Return the recipe of `study`."""
        return cls(
            model=study.model,
            trainer=study.trainer,
            rounds=study.rounds,
            seed=study.seed,
            device=study.device,
            threads=study.threads,
            run=run,
        )

    def train(self, splits: Splits, features: Features | None = None) -> AloneModel:
        """Train on a site's images, which may lack classes.

        Args:
            splits: The images. Only the training images train, and test images are scored.
            features: Folder that keeps features between runs, or features in memory. None takes the
                folder of the environment.

        Guarantees:
            Nothing is sent, no ledger is charged, and no record is kept.
            Equal arguments and threads give equal bits.

        Raises:
            StudyError: The study cannot be run with these images, such as too few.
            RunError: The training failed.
        """
        own = attrs.evolve(
            splits,
            train=attrs.evolve(splits.train, groups=None, clients=None),
            validation=None,
            test=None
            if splits.test is None
            else attrs.evolve(splits.test, groups=None, clients=None),
            groups=(),
            centres=(),
        )
        study = Study(
            dataset=_Loaded(own),
            model=self.model,
            trainer=self.trainer,
            privatizer="none",
            aggregator="plain",
            sites=1,
            rounds=self.rounds,
            seed=self.seed,
            device=self.device,
            threads=self.threads,
            evaluate_every=0,
        )
        with (
            torch_threads(self.threads),
            tempfile.TemporaryDirectory(prefix="cohortium-") as folder,
        ):
            prepared = prepare(study, may_lack_classes=True)
            if features is not None:
                prepared = attrs.evolve(prepared, features=features)
            out = Path(folder)
            result = self.run(prepared, out)
            net = prepared.run_config.network()
            parameters.load_state_dict(net, result.weights)
            return AloneModel(net=own_network(prepared, net, 0, out / STATES), prepared=prepared)


def own_network(prepared: PreparedStudy, net: nn.Module, site: SiteId, states: Path) -> nn.Module:
    """Return the network that a simulated site uses: its own, or `net` itself.

    Args:
        prepared: The study.
        net: The global network, which is not changed.
        site: Number of the site.
        states: Folder of the simulated sites' trainer state.

    Raises:
        RunError: The site's state is damaged.
    """
    run_config = prepared.run_config
    kept = TrainerStateFile(prepared.trainer_state_path(site, states), run_config.session).read()
    own = reading_own(kept.to_device(run_config.device).at_round_end)
    return run_config.trainer.personalize(net, own)
