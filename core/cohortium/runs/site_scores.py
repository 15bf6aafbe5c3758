"""Scores of simulated sites' own models on held-out images.

Only the simulator knows these scores. A real site's scores would reveal facts about its images, and
no ε accounts for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.learning.evaluation import Evaluation
from cohortium.rounds.local_round import reading_own
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
    """Scores of a site on its held-out images.

    Attributes:
        site: Number of the site.
        images: Number of held-out images.
        metric: Name of the task's main metric, which the scores are.
        score: Main metric of the global network.
        personal_score: Main metric of the site's own network (`Trainer.personalize`). It equals
            `score` if the trainer has none.
        majority_share: Accuracy of always predicting the site's most frequent class. None if an
            image has several classes.
    """

    site: int
    images: int
    metric: str
    score: float
    personal_score: float
    majority_share: float | None


class _Watched(Mapping[str, "Tensor"]):
    """Trainer state that is empty, and records whether it was read."""

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
    """Return whether sites use their own networks, rather than the global `net`.

    They do if `Trainer.personalize` reads the site's state, or returns another network.
    """
    state = _Watched()
    try:
        own = trainer.personalize(net, state)
    except Exception:  # noqa: BLE001 - it misses the state that it had stored
        return True
    return state.is_looked_at or own is not net


def own_scores(found: Sequence[SiteScores]) -> OwnScores | None:
    """Return the scores of all sites together, or None without held-out images."""
    images = sum(each.images for each in found)
    if not images:
        return None

    def mean(values: Sequence[float]) -> float:
        pairs = zip(found, values, strict=True)
        return sum(each.images * value for each, value in pairs) / images

    majority = [each.majority_share for each in found if each.majority_share is not None]
    return OwnScores(
        sites=len(found),
        images=images,
        metric=found[0].metric,
        score=mean([each.score for each in found]),
        personal_score=mean([each.personal_score for each in found]),
        majority_share=mean(majority) if len(majority) == len(found) else None,
    )


def score_sites(prepared: PreparedStudy, net: nn.Module, states: Path) -> tuple[SiteScores, ...]:
    """Return the scores of every site that has held images out.

    Args:
        prepared: The study.
        net: The final global network, which is not changed.
        states: Folder of the simulated sites' trainer state.

    Raises:
        RunError: A site's state is damaged.
    """
    run_config, found = prepared.run_config, []
    for site, held in enumerate(prepared.holdout):
        watch = Evaluation.of(
            prepared.splits.train.select(held) if len(held) else None,
            run_config.spec,
            run_config.model,
            run_config.device,
            prepared.features,
        )
        if watch is None:
            continue
        kept = (
            TrainerStateFile(prepared.trainer_state_path(site, states), run_config.session)
            .read()
            .to_device(run_config.device)
        )
        own = run_config.trainer.personalize(net, reading_own(kept.at_round_end))
        globally = watch.score(net)
        found.append(
            SiteScores(
                site=site,
                images=len(held),
                metric=globally.main_metric,
                score=globally.main,
                personal_score=watch.score(own).main,
                majority_share=globally.majority_share,
            )
        )
    return tuple(found)
