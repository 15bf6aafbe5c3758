"""A site's exact scores of a model that a run evaluates, kept after its answer."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from cohortium import parameters
from cohortium.deployment.own_scores import SiteScore
from cohortium.deployment.trained_study import trained_study
from cohortium.errors import CohortiumError
from cohortium.learning.evaluation import torch_threads
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.deployment.active_runs import ActiveRun
    from cohortium.deployment.participation import ParticipationStore
    from cohortium.deployment.site_config import SiteConfig

_LOG = logging.getLogger(__name__)


def keep_own_scores(
    run: ActiveRun,
    site_config: SiteConfig,
    participations: ParticipationStore,
    *,
    warn: Callable[[str], None],
) -> None:
    """Write the site's own scores of the evaluated model to its log and its folder.

    A failure is logged by `warn`, and changes nothing for the run.
    """
    site = run.site
    try:
        with torch_threads(run.threads):
            predictions = site.own_predictions()
        if predictions is None:
            return
        own = SiteScore(
            session=run.session,
            site=site_config.id,
            dataset_id=run.dataset_id,
            weights_sha256=parameters.sha256(site.shared_model.net),
            scores=predictions.scores,
            images_sha256=run.images_sha256,
            study=trained_study(participations, run.session),
        )
        for line in own.lines():
            _LOG.info("%s", sanitize(line))
        path = own.write(site_config.folder / site_config.evaluations_dir, predictions.values)
        _LOG.info("these scores are in %s, and nothing of them leaves this site", path)
    except CohortiumError as error:
        warn(f"the site's own scores are not kept: {error}")
    except Exception:  # noqa: BLE001 - the run goes on without them
        warn(traceback.format_exc())
