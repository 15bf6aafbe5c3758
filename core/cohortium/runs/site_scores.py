"""Scores of simulated sites' own models on held-out images.

Only the simulator knows these scores. A real site's scores would reveal facts about its images, and
no ε accounts for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cohortium.learning.evaluation import Evaluation
from cohortium.runs.alone import own_network
from cohortium.runs.holdout_scores import OwnScores, SiteScores
from cohortium.runs.site_baselines import SiteBaselines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from cohortium.roles.protocols import Trainer
    from cohortium.roles.values import SiteId
    from cohortium.runs.alone import Run
    from cohortium.runs.prepare import PreparedStudy


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

    def mean_known(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(found) else None

    worst = min(found, key=lambda each: each.used_score)
    majority = [each.majority_share for each in found if each.majority_share is not None]
    return OwnScores(
        sites=len(found),
        images=images,
        metric=found[0].metric,
        score=mean([each.score for each in found]),
        personal_score=mean([each.personal_score for each in found]),
        majority_share=mean(majority) if len(majority) == len(found) else None,
        alone_score=mean_known([each.alone_score for each in found]),
        adapted_score=mean_known([each.adapted_score for each in found]),
        worst_site=worst.site,
        worst_score=worst.used_score,
    )


def score_sites(
    prepared: PreparedStudy,
    net: nn.Module,
    states: Path,
    *,
    run: Run | None = None,
    progress: Callable[[SiteId], None] | None = None,
) -> tuple[SiteScores, ...]:
    """Return the scores of every site that has held images out.

    A site is left out if its images do not determine the main metric, as images without a finding
    determine no AUC.

    Args:
        prepared: The study, whose `holdout_baselines` are scored, too.
        net: The final global network, which is not changed.
        states: Folder of the simulated sites' trainer state.
        run: Runs the study of a site alone.  None leaves the baselines out.
        progress: Called with each site that is scored.

    Raises:
        RunError: A site's state is damaged.
    """
    run_config, found = prepared.run_config, []
    baselines = prepared.federation.holdout_baselines
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
        own = own_network(prepared, net, site, states)
        alone = adapted = None
        if run is not None and baselines:
            networks = SiteBaselines.of(prepared, site, run)
            if "alone" in baselines:
                alone = watch.score(networks.alone()).main
            if "adapted" in baselines:
                adapted = watch.score(networks.adapted(own)).main
        globally = watch.score(net)
        scored = SiteScores(
            site=site,
            images=len(held),
            metric=globally.main_metric,
            score=globally.main,
            personal_score=watch.score(own).main,
            majority_share=globally.majority_share,
            alone_score=alone,
            adapted_score=adapted,
        )
        if scored.is_determined:
            found.append(scored)
        if progress is not None:
            progress(site)
    return tuple(found)
