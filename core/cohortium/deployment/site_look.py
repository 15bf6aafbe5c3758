"""A look at the two sets of images of a site file, and at their overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from cohortium.catalog.discovery import discover
from cohortium.catalog.part_results import load_splits
from cohortium.data.survey import DataSurvey, load_readable
from cohortium.deployment.own_images import OwnImages
from cohortium.errors import DataError
from cohortium.reporting.data_content import DataFacts, Reading, facts_of, read

if TYPE_CHECKING:
    from cohortium.data.splits import Splits
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.roles.protocols import Dataset


def look_at_site(site_config: SiteConfig) -> DataFacts:
    """Read the training and test images of a site, count their content, and compare the two.

    Raises:
        DataError: One of the two cannot be read as a whole, and no file of it was refused.
    """
    dataset, test = site_config.dataset, site_config.test
    reading = read(dataset)
    facts = facts_of(reading, dataset, kind=_kind(dataset), is_site=True)
    if test is None:
        return facts
    if test.dataset is None:
        found, source = _test_part(reading), dataset
    else:
        found, source = read(_TrainingImages(test.dataset)), test.dataset
    of_test = facts_of(found, source, kind=_kind(source), is_site=True)
    # They are training images of their data set, and test images of the site.
    rows = tuple(attrs.evolve(row, name="test") for row in of_test.splits)
    of_test = attrs.evolve(of_test, splits=rows)
    overlap, fault = _compare(site_config, reading, found)
    if fault:
        of_test = attrs.evolve(of_test, faults=(*of_test.faults, fault))
    return attrs.evolve(facts, test=of_test, overlap=overlap)


def _kind(dataset: Dataset) -> str:
    return discover().name_of("dataset", dataset) or type(dataset).__name__


@frozen
class _TrainingImages:
    """A data set without its validation and test images."""

    dataset: Dataset

    def load(self) -> Splits:
        """Return the training images."""
        return _alone(load_splits(self.dataset))

    def load_readable(self, survey: DataSurvey) -> Splits:
        """Return the training images that can be read."""
        return _alone(load_readable(self.dataset, survey))


def _alone(splits: Splits) -> Splits:
    return attrs.evolve(splits, validation=None, test=None)


def _test_part(reading: Reading) -> Reading:
    """Return the test images of a data set. Its own reading has its refused files."""
    splits = reading.splits
    if splits is None or splits.test is None:
        return Reading(survey=DataSurvey(), problem="[dataset] has no test images.")
    test = attrs.evolve(splits, train=splits.test, validation=None, test=None)
    return Reading(survey=DataSurvey(), splits=test)


def _compare(site_config: SiteConfig, train: Reading, test: Reading) -> tuple[str, str]:
    """Return the outcome of the comparison of two sets, and the fault that it found, or ""."""
    if train.splits is None or test.splits is None:
        return "Not compared, because one of the two cannot be read.", ""
    assert site_config.test is not None
    try:
        images = OwnImages.compared(
            train.splits, test.splits, site_config.test, site_config.dataset_id
        )
    except DataError as error:
        return "They cannot be used together.", str(error)
    rest = (
        ""
        if not (train.survey.num_refused or test.survey.num_refused)
        else (" Refused files are not compared.")
    )
    if images.is_one_account:
        return f"Both are charged to one account, so they may overlap.{rest}", ""
    columns = (train.splits.train.patients, test.splits.train.patients)
    if images.are_patients_apart(site_config.test):
        patients = "no patient is in both"
    elif all(column is not None for column in columns):
        patients = "patients were not compared, because their numbers may differ"
    else:
        patients = "patients were not compared, because not all images name one"
    return f"No image is in both, and {patients}.{rest}", ""
