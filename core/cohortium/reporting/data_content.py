"""Content of a page about a data set, counted from its splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import attrs
import numpy as np
from attrs import field, frozen

from cohortium.data.doubts import doubts
from cohortium.data.examples import MAX_INTENSITY
from cohortium.data.splits import UndeclaredRangeError
from cohortium.data.survey import DataSurvey, load_readable
from cohortium.errors import CohortiumError, DataError
from cohortium.reporting.content import SiteRow, site_rows
from cohortium.reporting.intensities import Intensities, count_intensities
from cohortium.reporting.thumbnails import Thumbnail, thumbnails
from cohortium.runs.prepare import partition_study

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from cohortium.data.examples import Examples
    from cohortium.data.splits import Splits
    from cohortium.roles.protocols import Dataset
    from cohortium.study.study import Study

ANY_RANGE: Final = (-MAX_INTENSITY, MAX_INTENSITY)
"""Range in place of one that is not declared yet, so that a look can show the values."""

SPLITS: Final = ("train", "validation", "test")


@runtime_checkable
class CountsUnknown(Protocol):
    """A task whose labels may be unknown."""

    def unknown_counts(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of examples whose label of each name is unknown, shape (K,)."""
        ...


@frozen(kw_only=True)
class SplitRow:
    """One split of a data set.

    Attributes:
        name: Its name.
        images: Number of images.
        patients: Number of patients, or None if examples name none.
        most_images: Largest number of images of one patient, or None.
        counts: Number of images of each label.
        unknown: Number of images whose label of each name is unknown.
    """

    name: str
    images: int
    patients: int | None
    most_images: int | None
    counts: tuple[int, ...]
    unknown: tuple[int, ...]


@frozen(kw_only=True)
class DataFacts:
    """A data set as people look at it. It holds counts, and pictures of sixteen examples.

    Attributes:
        kind: Name of the data set's plugin.
        survey: Its refused files, and facts about the others.
        problem: Reason for which nothing can be shown, or "".
        name: Name of the data.
        source: Work to cite.
        task: Name of the class of the task.
        has_masks: Whether labels are masks.
        names: Names of the labels.
        shape: Shape of an image.
        pixel_type: Type of the stored values.
        declared: The stored values that become 0 and 1, or None if they are not declared.
        intensities: The stored values that were seen.
        splits: The splits.
        groups: Images by the data's own grouping, or ().
        sites: Sites of the study's simulation, or ().
        thumbnails: Pictures of examples.
        patients: Number of patients of all splits, or None if examples name none.
        shared_patients: Number of patients in more than one split.
        faults: Sentences about faults for which a run would refuse the data.
        window: The declared window in words, or "".
        test: The test images of a hospital's site file, as a data set of their own, or None.
        doubts: Sentences about equal images, and about labels of one image.
        overlap: Outcome of the comparison of a hospital's training and test images, or "".
    """

    kind: str
    survey: DataSurvey = field(repr=False)
    problem: str = ""
    name: str = ""
    source: str = ""
    task: str = ""
    has_masks: bool = False
    names: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    pixel_type: str = ""
    declared: tuple[float, float] | None = None
    intensities: Intensities | None = None
    splits: tuple[SplitRow, ...] = ()
    groups: tuple[SiteRow, ...] = ()
    sites: tuple[SiteRow, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = field(default=(), repr=False)
    patients: int | None = None
    shared_patients: int = 0
    faults: tuple[str, ...] = ()
    window: str = ""
    test: DataFacts | None = field(default=None, repr=False)
    doubts: tuple[str, ...] = ()
    overlap: str = ""

    @property
    def images(self) -> int:
        """Number of images of all splits."""
        return sum(row.images for row in self.splits)

    @property
    def is_usable(self) -> bool:
        """Whether a run can use the data, and the test images, as they are."""
        is_sound = not (self.survey.num_refused or self.problem or self.faults)
        return is_sound and (self.test is None or self.test.is_usable)

    @property
    def num_refused(self) -> int:
        """Number of refused files, those of the test images included."""
        return self.survey.num_refused + (0 if self.test is None else self.test.num_refused)


@frozen(kw_only=True, eq=False)
class Reading:
    """A data set as read for a look.

    Attributes:
        survey: Its refused files, and facts about the others.
        splits: Its splits without those files, or None if no training file can be read.
        problem: Reason for which there are no splits, or "".
    """

    survey: DataSurvey = field(repr=False)
    splits: Splits | None = field(default=None, repr=False)
    problem: str = ""


def read(dataset: Dataset) -> Reading:
    """Read a data set without the files that a run refuses.

    Raises:
        DataError: The data set as a whole cannot be read, and no file of it was refused.
    """
    survey = DataSurvey()
    try:
        try:
            splits = load_readable(dataset, survey)
        except UndeclaredRangeError:
            survey = DataSurvey()
            splits = load_readable(_with_any_range(dataset), survey)
    except DataError as error:
        if not survey.num_refused:
            raise
        return Reading(survey=survey, problem=str(error))
    return Reading(survey=survey, splits=splits)


def look(dataset: Dataset, *, kind: str, study: Study | None = None) -> DataFacts:
    """Read a data set, and count its content.

    Args:
        dataset: The data set.
        kind: Name of its plugin.
        study: The study whose simulation partitions it, or None.

    Raises:
        DataError: The data set as a whole cannot be read, and no file of it was refused.
    """
    return facts_of(read(dataset), dataset, kind=kind, study=study)


def facts_of(
    reading: Reading,
    dataset: Dataset,
    *,
    kind: str,
    study: Study | None = None,
    is_site: bool = False,
) -> DataFacts:
    """Count the content of a data set that was read.

    Args:
        reading: The data set as read.
        dataset: The data set.
        kind: Name of its plugin.
        study: The study whose simulation partitions it, or None.
        is_site: Whether the data are of one hospital, which may lack some labels.
    """
    splits, survey = reading.splits, reading.survey
    if splits is None:
        return DataFacts(kind=kind, survey=survey, problem=reading.problem)
    is_declared = splits.intensity_range != ANY_RANGE
    declared = splits.spec.intensity_range if is_declared else None
    faults = []
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    seen = count_intensities([part.images for part in parts], declared)
    if declared is None:
        faults.append(
            f"intensity_range is not declared; give the two stored values that become 0 and 1. The "
            f"images have {seen.low:g} to {seen.high:g}."
        )
    in_splits = _splits_of_patients(parts)
    sites: tuple[SiteRow, ...] = ()
    try:
        if not is_site:
            splits.require_learnable()
        if study is not None and study.partitioner is not None:
            sites = _sites(study, splits)
    except CohortiumError as error:
        faults.append(str(error))
    return DataFacts(
        kind=kind,
        survey=survey,
        name=splits.name,
        source=splits.source,
        task=type(splits.task).__name__,
        has_masks=splits.train.labels.shape[1:] == splits.train.images.shape[2:],
        names=splits.classes,
        shape=splits.spec.shape,
        pixel_type=splits.spec.pixel_type,
        declared=declared,
        intensities=seen,
        splits=tuple(
            _split_row(name, part, splits)
            for name in SPLITS
            if (part := getattr(splits, name)) is not None
        ),
        groups=_groups(splits),
        sites=sites,
        thumbnails=thumbnails(splits.train, splits.task, declared or (seen.low, seen.high)),
        patients=None if in_splits is None else len(in_splits),
        shared_patients=0 if in_splits is None else int((in_splits > 1).sum()),
        faults=tuple(faults),
        window=_window(dataset),
        doubts=doubts(splits),
    )


def _with_any_range(dataset: Dataset) -> Dataset:
    """Return a data set without a declared range with one that holds every value."""
    if not attrs.has(type(dataset)) or getattr(dataset, "intensity_range", ANY_RANGE) is not None:
        return dataset
    return attrs.evolve(dataset, intensity_range=ANY_RANGE)  # type: ignore[misc]


def _window(dataset: Dataset) -> str:
    window = getattr(dataset, "window", None)
    if window is None or isinstance(window, str):
        return f"that of each {window}" if window else ""
    center, width = getattr(window, "center", None), getattr(window, "width", None)
    return "" if center is None or width is None else f"center {center:g}, width {width:g}"


def _split_row(name: str, part: Examples, splits: Splits) -> SplitRow:
    task, patients = splits.task, part.patients
    sizes = None if patients is None else np.unique(patients, return_counts=True)[1]
    unknown: tuple[int, ...] = ()
    if isinstance(task, CountsUnknown):
        unknown = tuple(map(int, task.unknown_counts(part.labels)))
    return SplitRow(
        name=name,
        images=len(part),
        patients=None if sizes is None else len(sizes),
        most_images=None if sizes is None else int(sizes.max()),
        counts=tuple(map(int, task.counts(part.labels))),
        unknown=unknown if any(unknown) else (),
    )


def _sites(study: Study, splits: Splits) -> tuple[SiteRow, ...]:
    """Return the sites of a study's simulation, as a run partitions them."""
    partition, _ = partition_study(study, splits)
    return _rows([splits.train.labels[indices] for indices in partition], splits)


def _groups(splits: Splits) -> tuple[SiteRow, ...]:
    clients = splits.train.clients
    if clients is None:
        return ()
    return _rows([splits.train.labels[clients == group] for group in np.unique(clients)], splits)


def _rows(labels: list[NDArray[Any]], splits: Splits) -> tuple[SiteRow, ...]:
    counts = [tuple(map(int, splits.task.counts(part))) for part in labels]
    return site_rows([len(part) for part in labels], counts)


def _splits_of_patients(parts: list[Examples]) -> NDArray[np.int64] | None:
    """Return the number of splits in which each patient is, or None without patients."""
    found = [np.unique(part.patients) for part in parts if part.patients is not None]
    return np.unique(np.concatenate(found), return_counts=True)[1] if found else None
