from __future__ import annotations

import numpy as np
import pytest

from cohortium_phantom import Phantom

SMALL = Phantom(examples=43, validation=9, test=17)


def test_phantom_draws_requested_sizes_and_classes() -> None:
    splits = SMALL.load()
    assert splits.validation is not None
    assert splits.test is not None
    for part, size in ((splits.train, 43), (splits.validation, 9), (splits.test, 17)):
        assert part.images.shape == (size, 3, 28, 28)
        assert part.images.dtype == np.uint8
        counts = np.bincount(part.labels, minlength=8)
        assert counts.max() - counts.min() <= 1
    assert len(splits.classes) == 8
    assert splits.source == "procedural, drawn from a seed; no patient"


def test_equal_parameters_give_equal_arrays() -> None:
    one, other = SMALL.load().train, SMALL.load().train
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_another_seed_gives_other_images() -> None:
    other = Phantom(examples=43, validation=9, test=17, seed=1)
    assert not np.array_equal(SMALL.load().train.images, other.load().train.images)


def test_splits_are_drawn_independently() -> None:
    splits = Phantom(examples=43, validation=43, test=0).load()
    assert splits.test is None
    assert splits.validation is not None
    np.testing.assert_array_equal(splits.train.images, SMALL.load().train.images)
    assert not np.array_equal(splits.train.images, splits.validation.images)
    assert Phantom(examples=8, validation=0, test=0).load().validation is None


def test_classes_are_separable_but_not_by_brightness() -> None:
    splits = Phantom(examples=800, validation=0, test=200).load()
    assert splits.test is not None
    brightness = splits.train.images.mean(axis=(1, 2, 3))
    centres = np.array([brightness[splits.train.labels == k].mean() for k in range(8)])
    guess = np.abs(splits.test.images.mean(axis=(1, 2, 3))[:, None] - centres).argmin(axis=1)
    assert (guess == splits.test.labels).mean() < 0.6


@pytest.mark.parametrize(
    ("parameter", "value"), [("examples", 0), ("validation", -1), ("test", -1), ("seed", -1)]
)
def test_numbers_out_of_range_are_refused_by_name(parameter: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"'{parameter}' must be >="):
        Phantom(**{parameter: value})
