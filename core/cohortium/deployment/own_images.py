"""A hospital's own images: those that it trains on, and those that it tests on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import attrs
from attrs import field, frozen
from attrs.validators import and_, ge, le, min_len

from cohortium.catalog.part_results import load_splits
from cohortium.data.examples import MAX_EXAMPLES
from cohortium.data.overlap import overlap
from cohortium.errors import DataError
from cohortium.roles.protocols import Dataset  # noqa: TC001 - resolved to build the table
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from attrs import Attribute

    from cohortium.data.examples import Examples
    from cohortium.data.splits import Splits

Use = Literal["train", "test"]
"""Use of a site's images in a run."""


def can_be_shown(_: object, attribute: Attribute[str], value: str) -> None:
    """Refuse a name with control characters.

    A validator of attrs.

    Args:
        _: The instance.
        attribute: The attribute.
        value: The name.

    Raises:
        ValueError: It cannot be shown.
    """
    if not is_printable(value):
        raise ValueError(
            f"'{attribute.name}' has characters that cannot be shown: {truncate(value)}"
        )


@frozen(kw_only=True)
class SiteTestImages:
    """Test images of a site, as the table `[test]` of its site file names them.

    Attributes:
        dataset_id: The site's name for the test images, to which the ledger charges every release
            from them. With the name of the training images, both are charged to one account. With
            another name, the two must have no image and no patient in common.
        declared_examples: Number of test images that the site declares. It is public. 0 declares
            none.
        has_same_patient_numbers: Whether equal numbers of patients in `[dataset]` and
            `[test.dataset]` mean one patient. They do if both have one `patient_key`, or if the
            files hold the hospital's own numbers.
        dataset: The test images, as the training images of a data set. None takes the test images
            of `[dataset]`.
    """

    dataset_id: str = field(validator=and_(min_len(1), can_be_shown))
    declared_examples: int = field(default=0, validator=[ge(0), le(MAX_EXAMPLES)])
    has_same_patient_numbers: bool = False
    dataset: Dataset | None = None

    @property
    def compares_patients(self) -> bool:
        """Whether equal numbers of patients mean one patient."""
        return self.dataset is None or self.has_same_patient_numbers


@frozen(eq=False, kw_only=True)
class OwnImages:
    """The loaded images of a site.

    Attributes:
        train: Its training images, as the training images of a data set.
        test: Its test images, as the training images of a data set, or None.
        is_one_account: Whether the ledger charges both to one name.
    """

    train: Splits
    test: Splits | None = None
    is_one_account: bool = False

    @classmethod
    def load(cls, dataset: Dataset, test: SiteTestImages | None, dataset_id: str) -> OwnImages:
        """Load the images, and check that training and test images do not overlap.

        The check reads one image at a time. Without a table `[test]`, there is nothing to check.

        Args:
            dataset: Training images.
            test: Test images, or None.
            dataset_id: The site's name for the training images.

        Raises:
            DataError: Images are missing or damaged, or the two overlap and have two names. The
                sentence is for the site's own staff.
        """
        train = load_splits(dataset)
        if test is None:
            return cls(train=train)
        return cls.compared(train, _test_splits(train, test), test, dataset_id)

    @classmethod
    def compared(
        cls, train: Splits, found: Splits, test: SiteTestImages, dataset_id: str
    ) -> OwnImages:
        """Return loaded training and test images that do not overlap.

        Args:
            train: Training images.
            found: Test images, as the training images of a data set.
            test: The table `[test]`.
            dataset_id: The site's name for the training images.

        Raises:
            DataError: The two differ in kind, or overlap and have two names.
        """
        if not train.spec.describes(found.spec):
            raise DataError(
                "the images of [test] have another shape, type, range, task or classes than those "
                "of [dataset]; save them alike, and name every class in both."
            )
        if test.dataset_id != dataset_id:
            require_disjoint(train.train, found.train, compares_patients=test.compares_patients)
        return cls(train=train, test=found, is_one_account=test.dataset_id == dataset_id)

    def of(self, use: Use) -> Splits:
        """Return the images of a use, which must exist."""
        found = self.train if use == "train" else self.test
        assert found is not None
        return found

    @staticmethod
    def require(what: str, splits: Splits, declared: int) -> None:
        """Refuse fewer images than the site file declares.

        Raises:
            DataError: There are fewer.
        """
        if len(splits.train) < declared:
            raise DataError(
                f"the site file declares {declared} {what}, and there are {len(splits.train)}; put "
                "the missing ones back, or lower declared_examples in the site file."
            )

    def are_patients_apart(self, test: SiteTestImages | None) -> bool:
        """Return whether the check has covered patients, as far as two accounts need it."""
        if test is None or self.test is None or self.is_one_account:
            return True
        named = self.train.train.patients is not None and self.test.train.patients is not None
        return named and test.compares_patients

    def fingerprint(self, use: Use) -> bytes:
        """Return the SHA-256 of all images that the account of `use` stands for."""
        if not self.is_one_account or self.test is None:
            return self.of(use).train.fingerprint
        both = self.train.train.fingerprint + self.test.train.fingerprint
        return hashlib.sha256(both).digest()


def _test_splits(train: Splits, test: SiteTestImages) -> Splits:
    if test.dataset is not None:
        return attrs.evolve(load_splits(test.dataset), validation=None, test=None)
    if train.test is None:
        raise DataError(
            "[test] names no [test.dataset], and the images of [dataset] have no test images; name "
            "a data set under [test.dataset]."
        )
    return attrs.evolve(train, train=train.test, validation=None, test=None)


def require_disjoint(train: Examples, test: Examples, *, compares_patients: bool) -> None:
    """Refuse test images that are training images, or of patients who have some.

    Args:
        train: Training images.
        test: Test images.
        compares_patients: Whether equal numbers of patients mean one patient.

    Guarantees:
        Two images are the same if their stored values are. Labels do not count.

    Raises:
        DataError: The two overlap.
    """
    found = overlap(train, test, compares_patients=compares_patients)
    if found:
        raise DataError(_overlap(found))


def _overlap(fact: str) -> str:
    return (
        f"{fact} too; remove these from one of the two sets, or give [test] the dataset_id of "
        "[site], so that both are charged to one account."
    )
