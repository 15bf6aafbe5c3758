from __future__ import annotations

from typing import Any

import numpy as np

from cohortium_phantom import PARTS, PhantomFields

SMALL: Any = {"examples": 40, "validation": 6, "test": 9}


def test_findings_are_the_types_that_occur() -> None:
    splits = PhantomFields(**SMALL).load()
    assert splits.spec.shape == (3, 56, 56)
    assert splits.train.labels.shape == (40, 8)
    assert type(splits.task).__name__ == "Multilabel"
    held = splits.train.labels.sum(1)
    assert held.min() >= 1
    assert held.max() <= 4


def test_masks_lie_on_the_cells() -> None:
    splits = PhantomFields(**SMALL, labels="masks").load()
    masks, images = splits.train.labels, splits.train.images
    assert masks.shape == (40, 56, 56)
    assert splits.classes == PARTS
    assert set(np.unique(masks)) == {0, 1, 2}
    # A nucleus is darker than the cytoplasm around it, and that than the smear.
    light = images.mean(1)
    assert light[masks == 2].mean() < light[masks == 1].mean() < light[masks == 0].mean()


def test_findings_and_masks_are_of_the_same_fields() -> None:
    one, other = PhantomFields(**SMALL).load(), PhantomFields(**SMALL, labels="masks").load()
    np.testing.assert_array_equal(one.train.images, other.train.images)
    assert one.test is not None
    assert not np.array_equal(one.train.images[:9], one.test.images)
