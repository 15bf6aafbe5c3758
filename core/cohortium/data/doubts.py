"""Doubts about a data set that a run accepts: equal images, and labels of one image.

The sentences name labels and numbers, and no file and no patient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cohortium.data.overlap import image_digests

if TYPE_CHECKING:
    from cohortium.data.splits import Splits

MAX_NAMES: Final = 5
"""Largest number of labels that a sentence names."""


def doubts(splits: Splits) -> tuple[str, ...]:
    """Return sentences about what a person should look at, or ().

    Args:
        splits: The data set. The stored values of all its images are read.

    Guarantees:
        Two images are equal if their stored values are. Labels do not count.
    """
    return tuple(
        sentence for sentence in (_equal_images(splits), _single_images(splits)) if sentence
    )


def _equal_images(splits: Splits) -> str:
    owner: dict[bytes, tuple[str, int | None]] = {}
    equal = patients = apart = 0
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        if part is None:
            continue
        for place, digest in enumerate(image_digests(part)):
            patient = None if part.patients is None else int(part.patients[place])
            if digest not in owner:
                owner[digest] = (name, patient)
                continue
            equal += 1
            apart += owner[digest][0] != name
            patients += owner[digest][1] != patient
    if not equal:
        return ""
    others = [
        f"{number:,} {words}"
        for number, words in ((patients, "of another patient"), (apart, "of another split"))
        if number
    ]
    noun = "image has" if equal == 1 else "images have"
    return (
        f"{equal:,} {noun} the pixels of an earlier image"
        f"{' (' + ', '.join(others) + ')' if others else ''}; look for copies."
    )


def _single_images(splits: Splits) -> str:
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    totals = sum(np.asarray(splits.task.counts(part.labels)) for part in parts)
    single = [name for name, n in zip(splits.classes, np.atleast_1d(totals), strict=True) if n == 1]
    if not single:
        return ""
    names = ", ".join(single[:MAX_NAMES]) + (", …" if len(single) > MAX_NAMES else "")
    noun = "label has" if len(single) == 1 else "labels have"
    return f"{len(single):,} {noun} one image only ({names}); look for misspelt labels."
