"""Images that simulated sites hold out, and how each site's own model does on its own.

All of it is the simulator's knowledge: a real site's scores would tell of its images, and nobody
pays for them in ε.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.learning.evaluation import Evaluation
from cohortium.runs.result import OwnScores
from cohortium.storage.trainer_state import TrainerStateFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from cohortium.roles.protocols import Trainer
    from cohortium.runs.prepare import PreparedStudy


@frozen(kw_only=True)
class SiteScores:
    """What a site would find on the images that it held out.

    Attributes:
        site: Its number.
        images: How many they are.
        accuracy: Of the global network.
        personal_accuracy: Of its own (`Trainer.personalize`), the same where a trainer has none.
        majority_share: Of whoever calls all of them the class that is most frequent there.
    """

    site: int
    images: int
    accuracy: float
    personal_accuracy: float
    majority_share: float


class _Watched(Mapping[str, "Tensor"]):
    """What a site has kept, which is nothing, and whether anyone has looked."""

    def __init__(self) -> None:
        self.is_looked_at = False

    def __getitem__(self, key: str) -> Tensor:
        self.is_looked_at = True
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        self.is_looked_at = True
        return iter(())

    def __len__(self) -> int:
        self.is_looked_at = True
        return 0


def personalises(trainer: Trainer, net: nn.Module) -> bool:
    """Whether sites use networks of their own, rather than the global `net`.

    They do where `Trainer.personalize` looks at what a site has kept, or gives another network.
    """
    state = _Watched()
    try:
        own = trainer.personalize(net, state)
    except Exception:  # noqa: BLE001 - it misses what it had kept
        return True
    return state.is_looked_at or own is not net


def own_scores(found: Sequence[SiteScores]) -> OwnScores | None:
    """All sites together; None where none has held out an image."""
    images = sum(each.images for each in found)
    if not images:
        return None
    means = {
        key: sum(each.images * getattr(each, key) for each in found) / images
        for key in ("accuracy", "personal_accuracy", "majority_share")
    }
    return OwnScores(sites=len(found), images=images, **means)


def score_sites(prepared: PreparedStudy, net: nn.Module, states: Path) -> tuple[SiteScores, ...]:
    """The scores of every site that has held images out.

    Args:
        prepared: The study.
        net: The final global network; left as it was.
        states: Where simulated sites keep what their trainers have learned.

    Raises:
        RunError: A site's state is damaged.
    """
    setting, found = prepared.setting, []
    for site, held in enumerate(prepared.holdout):
        watch = Evaluation.of(
            prepared.splits.train.select(held) if len(held) else None,
            setting.spec.classes,
            setting.model,
            setting.device,
        )
        if watch is None:
            continue
        kept = (
            TrainerStateFile(prepared.trainer_state_path(site, states), setting.session)
            .read()
            .to_device(setting.device)
        )
        own = setting.trainer.personalize(net, kept.at_round_end)
        globally = watch.score(net)
        found.append(
            SiteScores(
                site=site,
                images=len(held),
                accuracy=globally.accuracy,
                personal_accuracy=watch.score(own).accuracy,
                majority_share=globally.majority_share,
            )
        )
    return tuple(found)
