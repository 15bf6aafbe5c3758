"""A site's own images for a run, if they are those that the study declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cohortium.errors import DataError, RefusalCode, RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.data.examples import DataSpec, Examples
    from cohortium.data.splits import Splits
    from cohortium.deployment.own_images import OwnImages, Use
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.study.measurement import Measurement


def load_matching(
    site_config: SiteConfig, spec: DataSpec, use: Use, log: Callable[[str], None]
) -> OwnImages:
    """Return the site's own images, if those of `use` match the study's declaration.

    Args:
        site_config: The site.
        spec: The study's declaration.
        use: Use of the images in the run.
        log: Writes a sentence for the site's own staff, which never leaves.

    Raises:
        RefusalError: The images do not match.
        DataError: They are unusable.
    """
    if use == "test" and site_config.test is None:
        raise RefusalError(
            RefusalCode.DATA,
            "the study evaluates a model on test images, and this site has none; name some "
            "under [test] in its site file.",
        )
    images = site_config.load_images()
    splits = images.of(use)
    if not spec.describes(own := splits.spec):
        log(
            f"this site's images are {own.pixel_type} of shape {own.shape} from "
            f"{own.intensity_range[0]:g} to {own.intensity_range[1]:g}, with "
            f"{len(own.classes)} classes ({', '.join(own.classes)[:200]}) of the task "
            f"{type(own.task).__name__}; its data set must name every class "
            "of the study, those of which it has no image too."
        )
        raise RefusalError(
            RefusalCode.DATA,
            f"the study declares {spec.pixel_type} images of shape {spec.shape} in "
            f"{len(spec.classes)} classes ({', '.join(spec.classes)[:200]}), and the site's "
            "have another type, shape, range, task or classes.",
        )
    if (spec.patients is None) != (splits.train.patients is None):
        raise RefusalError(
            RefusalCode.DATA,
            "the study declares patients and the site's data name none, or vice versa.",
        )
    return images


def with_groups(splits: Splits, spec: DataSpec, measurement: Measurement | None) -> Examples:
    """Return the images of a run, with the groups by which the study measures.

    Raises:
        RefusalError: The images have other groups.
    """
    if measurement is None:
        # Training has no use for groups, and the study may declare others.
        return attrs.evolve(splits.train, groups=None)
    try:
        return spec.group_codes(splits.train, splits.groups)
    except DataError as error:  # it names the study's columns, and none of the site's
        raise RefusalError(RefusalCode.DATA, str(error)) from error
