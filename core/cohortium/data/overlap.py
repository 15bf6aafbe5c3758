"""Images and patients that two sets have in common."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.examples import Examples


def overlap(train: Examples, test: Examples, *, compares_patients: bool = True) -> str:
    """Return what test images and training images have in common, or nothing.

    Args:
        train: Training images.
        test: Test images.
        compares_patients: Whether equal numbers of patients mean one patient.

    Guarantees:
        Two images are the same if their stored values are. Labels do not count.

    Returns:
        The beginning of a sentence, such as "3 of the 40 test images are training images".  It is
        empty if the sets are disjoint.
    """
    known = {*image_digests(train)}
    shared = sum(digest in known for digest in image_digests(test))
    if shared:
        return f"{shared:,} of the {len(test):,} test images are training images"
    if not compares_patients or train.patients is None or test.patients is None:
        return ""
    patients = np.unique(test.patients)
    both = np.intersect1d(patients, train.patients)
    if not len(both):
        return ""
    return f"{len(both):,} of the {len(patients):,} patients with test images have training images"


def image_digests(examples: Examples) -> list[bytes]:
    """Return the SHA-256 of each image's stored values."""

    def digest(image: NDArray[np.generic]) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(image).reshape(-1).view(np.uint8).data).digest()

    return [digest(examples.images[place]) for place in range(len(examples))]
