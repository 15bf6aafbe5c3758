"""Groups and centres of an npz file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cohortium.plugin import DataError, GroupColumn
from cohortium_npz import Npz

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.plugin import Splits

CODES = np.array([[0, 2], [1, -1], [-1, 0], [0, 1]], np.int8)


def loaded(folder: Path, **changed: Any) -> Splits:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "train_images": rng.integers(0, 256, (6, 5, 4), dtype=np.uint8),
        "train_labels": np.arange(6) % 2,
        "test_images": rng.integers(0, 256, (4, 5, 4), dtype=np.uint8),
        "test_labels": np.arange(4) % 2,
        "test_groups": CODES,
        "group_names": np.array(["sex", "scanner"]),
        "group_values": np.array([["f", "m", ""], ["A", "B", "C"]]),
    }
    held = {name: array for name, array in (arrays | changed).items() if array is not None}
    np.savez(folder / "x.npz", **held)
    return Npz(path=str(folder / "x.npz")).load()


def test_groups_of_test_split_are_named(tmp_path: Path) -> None:
    splits = loaded(tmp_path, test_clients=np.array([0, 1, 1, 0]), centres=np.array(["N", "S"]))
    assert splits.groups == (GroupColumn("sex", ("f", "m")), GroupColumn("scanner", tuple("ABC")))
    assert splits.centres == ("N", "S")
    assert splits.train.groups is None
    assert splits.test is not None
    assert splits.test.groups is not None
    assert splits.test.groups.dtype == np.int64
    np.testing.assert_array_equal(splits.test.groups, CODES)


def test_values_without_names_are_numbers(tmp_path: Path) -> None:
    splits = loaded(
        tmp_path, test_groups=np.array([0, 2, -1, 1]), group_names=np.array(["sex"]),
        group_values=None,
    )  # fmt: skip
    assert splits.groups == (GroupColumn("sex", ("0", "1", "2")),)
    assert splits.test is not None
    assert splits.test.groups is not None
    assert splits.test.groups.shape == (4, 1)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"test_groups": CODES[:3]}, r"test_groups has shape \(3, 2\), but there are 4 images"),
        ({"test_groups": CODES[:, :, None]}, r"test_groups has shape \(4, 2, 1\)"),
        ({"test_groups": CODES.astype(float)}, "test_groups is float64; save whole numbers"),
        ({"test_groups": CODES - 1}, "test_groups has values from -2 to 1"),
        ({"test_groups": CODES + 62}, "test_groups has values from 61 to 64; number the groups"),
        ({"test_groups": np.full((4, 2), 2**64 - 1, np.uint64)}, "values from 184467440"),
        ({"test_groups": np.array([["f", "A"]] * 4)}, "test_groups is <U1; save whole numbers"),
        ({"test_groups": np.array([[None] * 2] * 4)}, "cannot be read as an npz archive"),
        ({"test_groups": CODES + 1}, "codes from 0 to 2 in the groups of 'sex', which has 2"),
        ({"group_names": None}, "group_names has 0 names, and the groups have 2 columns"),
        ({"group_names": np.array(["sex"])}, "group_names has 1 names"),
        ({"group_names": np.array(["sex", "sex"])}, "there are 2 columns of groups; declare"),
        ({"group_names": np.array(["sex", "a\x1b"])}, "group_names holds .* cannot be shown"),
        ({"group_values": np.zeros((2, 3))}, "group_values is float64"),
        ({"group_values": np.array([["f", "m"]])}, r"group_values is <U1 of shape \(1, 2\)"),
        ({"group_values": np.full((2, 65), "a")}, "group_values has 65 columns"),
        ({"group_values": np.array([["f", "f", ""], ["A", "B", "C"]])}, "one value twice"),
        ({"group_values": np.array([["", "m", ""], ["A", "B", "C"]])}, "a value that is empty"),
        ({"test_groups": np.zeros((4, 9), int), "group_names": np.array(list("abcdefghi"))},
         "group_names has 9 names, .* at most 8"),
        ({"centres": np.arange(3)}, "centres is int64 of shape"),
        ({"centres": np.array(["N"]), "test_clients": np.arange(4)}, "1 centres have a name"),
    ],
)  # fmt: skip
def test_groups_of_other_form_are_refused(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        loaded(tmp_path, **changed)
    assert "\n" not in str(error.value)
