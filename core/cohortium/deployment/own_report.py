"""A hospital's own figures: the federation's model and one that the hospital trains alone.

Everything here is exact and stays at the hospital. No noise covers it, and no ε counts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import tomli_w

from cohortium.data.group_scores import paired_difference, score_images
from cohortium.data.predictions import Predictions
from cohortium.deployment.admission import invited_study
from cohortium.deployment.own_scores import read_predictions, read_scores
from cohortium.errors import RefusalError, RequestError, StudyError
from cohortium.learning.evaluation import Evaluation
from cohortium.messages.deployment import Invitation
from cohortium.reporting.own_page import OwnFigures, OwnModel
from cohortium.runs.alone import AloneTraining
from cohortium.runs.invite import collect_versions
from cohortium.runs.launch import run_one_site
from cohortium.study import study_file, toml
from cohortium.study.layered_tables import merge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cohortium.data.splits import Splits
    from cohortium.deployment.own_scores import StoredScore
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.reporting.own_page import Released
    from cohortium.roles.protocols import Observer
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result
    from cohortium.study.study import Study


def own_figures(
    site_config: SiteConfig,
    *,
    session: str = "",
    overrides: Sequence[str] = (),
    trains: bool = True,
    released: Released | None = None,
    observers: Sequence[Observer] = (),
) -> OwnFigures:
    """Return a hospital's own figures of an evaluated model.

    Args:
        site_config: The site.
        session: First letters of the evaluation's session. "" takes the newest.
        overrides: Changes of the study that the hospital trains alone, as `table.key=value`.
        trains: Whether to train alone.
        released: The scores that the federation has released, if the hospital has them.
        observers: Observers of the training.

    Guarantees:
        Nothing is sent, and no ledger is charged.

    Raises:
        RequestError: The site has stored no such evaluation, or its images have changed.
        CohortiumError: The site's files are damaged, or the training failed.
    """
    folder = site_config.folder / site_config.evaluations_dir
    stored = _choose(read_scores(folder), session)
    images = site_config.load_images()
    if images.test is None:
        raise RequestError("the site file names no [test] images, so there is nothing to compare.")
    if stored.images_sha256 != images.test.train.fingerprint.hex():
        raise RequestError(
            "the test images are not those of the evaluation; put them back as they were, or wait "
            "for the next evaluation."
        )
    test, rng = images.test, np.random.default_rng(0)
    values = read_predictions(folder, stored.name)
    here = None
    if values is not None:
        here = Predictions(values, test.train.labels, test.task)
    alone = None
    if trains:
        splits = attrs.evolve(images.train, test=test.train)
        alone = _train_alone(stored, site_config, splits, overrides, observers)
    difference = None
    if here is not None and alone is not None:
        difference = paired_difference(here, alone, test.train.patients, rng)
    return OwnFigures(
        site=stored.site,
        dataset_id=stored.dataset_id,
        written=stored.written,
        session=stored.session,
        weights_sha256=stored.weights_sha256,
        train_images=len(images.train.train),
        federated=OwnModel(
            scores=stored.scores,
            main=None if here is None else score_images(here, rng),
        ),
        alone=None
        if alone is None
        else OwnModel(scores=alone.scores, main=score_images(alone, rng)),
        difference=difference,
        draws_patients=test.train.patients is not None,
        released=released,
        overrides=tuple(overrides),
    )


def _choose(found: Sequence[StoredScore], session: str) -> StoredScore:
    exact = [each for each in found if each.name == session]
    chosen = exact or [each for each in found if each.name.startswith(session)]
    if not chosen:
        told = f" whose session begins with {session}" if session else ""
        raise RequestError(f"this site has stored no evaluation{told}.")
    sessions = len({each.session for each in chosen})
    if session and sessions > 1:
        raise RequestError(
            f"{sessions} sessions of evaluations begin with {session}; give more letters."
        )
    return chosen[0]


def _train_alone(
    stored: StoredScore,
    site_config: SiteConfig,
    splits: Splits,
    overrides: Sequence[str],
    observers: Sequence[Observer],
) -> Predictions:
    """Train the study's model on the site's images alone, and predict its test images."""
    study = _accepted_study(stored, site_config, overrides)

    def run(prepared: PreparedStudy, out: Path) -> Result:
        return run_one_site(prepared, out, observers)

    alone = AloneTraining.of(study, run).train(splits)
    run_config = alone.prepared.run_config
    watch = Evaluation.of(
        splits.test, run_config.spec, run_config.model, run_config.device, alone.prepared.features
    )
    assert watch is not None
    return watch.predict(alone.net)


def _accepted_study(
    stored: StoredScore, site_config: SiteConfig, overrides: Sequence[str]
) -> Study:
    """Return the study that the site accepted, with changes.

    Raises:
        RequestError: The site has not stored the study.
        StudyError: The study cannot be built, the policy does not admit a changed part, or an
            override changes another table.
    """
    if not stored.study:
        raise RequestError(
            "this site has not stored the study that trained the model; leave the training out "
            "with --no-training."
        )
    where = "the stored study"
    tables: dict[str, Any] = dict(toml.loads(stored.study, where=where))
    for layer in study_file.override_layers(overrides)[0]:
        odd = next((n for n in layer.changes if n not in ("federation", "model", "trainer")), None)
        if odd is not None:
            raise StudyError(
                f"{layer.where}: a model that is trained alone has no [{odd}]; change "
                "[federation], [model] or [trainer]."
            )
        tables = dict(merge(tables, layer.changes, where=layer.where))
    try:
        return invited_study(
            Invitation(
                session=bytes(16),
                study=tomli_w.dumps(tables),
                directory="",
                versions=collect_versions(tables),
            ),
            site_config.policy,
        )
    except RefusalError as error:
        raise StudyError(f"{where}: {error.reason}") from error
