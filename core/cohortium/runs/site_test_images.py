"""Test images of simulated sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from cohortium.errors import StudyError

if TYPE_CHECKING:
    from cohortium.data.splits import Splits
    from cohortium.roles.values import ExampleIndices
    from cohortium.study.study import Study


def test_images(
    study: Study,
    splits: Splits,
    partition: tuple[ExampleIndices, ...],
    held: tuple[ExampleIndices, ...],
) -> tuple[Splits, tuple[ExampleIndices, ...]]:
    """Return splits whose training images are the sites' test images, and their partition.

    These are the images that sites hold out of training.  Without any, they are the test images of
    the natural centres: a site has those of the centres that it trains on.

    Args:
        study: The study.
        splits: All data of the simulation.
        partition: Positions of each site's training examples.
        held: Positions of each site's held-out examples.

    Raises:
        StudyError: The sites have no test images.
    """
    if study.holdout_fraction:
        return splits, held
    test, centres = splits.test, splits.train.clients
    if test is None or test.clients is None or centres is None:
        raise StudyError(
            "the simulated sites have no test images; set federation.holdout_fraction, or take "
            "data that name the centre of each training and test image."
        )
    owner: dict[int, int] = {}
    for site, indices in enumerate(partition):
        for centre in np.unique(centres[indices]).tolist():
            if owner.setdefault(centre, site) != site:
                raise StudyError(
                    f"centre {centre} is at sites {owner[centre]} and {site}, so its test images "
                    "belong to neither; use partitioner 'natural', or set "
                    "federation.holdout_fraction."
                )
    sites = np.array([owner.get(centre, -1) for centre in test.clients.tolist()])
    parts = tuple(np.flatnonzero(sites == site) for site in range(len(partition)))
    if not any(len(part) for part in parts):
        raise StudyError(
            "no test image is of a centre that a site trains on; set federation.holdout_fraction."
        )
    return attrs.evolve(splits, train=test), parts
