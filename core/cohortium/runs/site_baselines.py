"""Networks that a simulated site would have instead of the federation's.

A site alone trains the study on its own images.  A site that adapts fine-tunes the network that it
got.  Only the simulator can compare the two, because both need a site's held-out images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from cohortium import parameters
from cohortium.crypto.randomness import Seeds
from cohortium.errors import RequestError
from cohortium.learning.fine_tuning import FineTuning
from cohortium.rounds.local_round import reading_own
from cohortium.runs.prepare import prepare
from cohortium.runs.run_directory import STATES
from cohortium.storage.trainer_state import TrainerStateFile
from cohortium.study.study import Study

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from cohortium.data.splits import Splits
    from cohortium.roles.values import SiteId
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result

    Run = Callable[[PreparedStudy, Path], Result]
    """Runs a prepared study, whose site stores its trainer state in the given folder."""


@frozen
class Loaded:
    """A data set that is loaded already."""

    splits: Splits

    def load(self) -> Splits:
        """Return the images."""
        return self.splits


def alone_terms(study: Study, splits: Splits) -> dict[str, Any]:
    """Return the arguments of `study` at one site alone, without noise and masks.

    Args:
        study: The study, of which model, trainer and rounds remain.
        splits: The site's images.
    """
    return {
        "dataset": Loaded(splits),
        "model": study.model,
        "trainer": study.trainer,
        "privatizer": "none",
        "aggregator": "plain",
        "sites": 1,
        "rounds": study.rounds,
        "seed": study.seed,
        "device": study.device,
        "threads": study.threads,
        "evaluate_every": 0,
    }


def train_alone(prepared: PreparedStudy, site: SiteId, run: Run) -> nn.Module:
    """Return the network of a simulated site that trains the study by itself.

    Args:
        prepared: The study of all sites.
        site: Number of the site.
        run: Runs the study of the one site.
    """
    splits = prepared.splits
    own = attrs.evolve(
        splits,
        train=attrs.evolve(
            splits.train.select(prepared.partition[site]), groups=None, clients=None
        ),
        validation=None,
        test=None,
        groups=(),
        centres=(),
    )
    alone = prepare(Study(**alone_terms(prepared.federation, own)), may_lack_classes=True)
    with tempfile.TemporaryDirectory(prefix="cohortium-") as folder:
        out = Path(folder)
        result = run(alone, out)
        net = alone.run_config.network()
        parameters.load_state_dict(net, result.weights)
        return own_network(alone, net, 0, out / STATES)


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


def adapt_at_site(prepared: PreparedStudy, site: SiteId, net: nn.Module) -> nn.Module:
    """Return `net`, fine-tuned on a simulated site's training images (see `FineTuning`).

    A site with too few images for that keeps `net`.

    Args:
        prepared: The study.
        site: Number of the site.
        net: The network that the site uses, which is not changed.
    """
    run_config = prepared.run_config
    seed = Seeds(prepared.federation.seed).integer("fine-tuning", site)
    try:
        tuned = FineTuning().fine_tune(
            net,
            prepared.splits.train.select(prepared.partition[site]),
            run_config.spec,
            run_config.model,
            Seeds(seed),
            device=run_config.device,
            features=prepared.features,
        )
    except RequestError:
        return net
    return tuned.net
