"""The contract of a `Dataset`: consistent arrays, equal whenever it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.data.splits import Splits
from cohortium.testing.contract import Check, ensure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.examples import Examples
    from cohortium.roles.protocols import Dataset


def check_loads_splits(dataset: Dataset) -> None:
    """`load` gives `Splits` whose arrays have the declared types."""
    splits = dataset.load()
    ensure(
        isinstance(splits, Splits),
        f"load gave a {type(splits).__name__}; it must return cohortium.plugin.Splits.",
    )
    for name, part in _parts(splits).items():
        fault = splits.task.check_labels(part.labels, splits.spec.size)
        ensure(not fault, f"the labels of the {name} split {fault}.")
        columns = {"clients": part.clients, "patients": part.patients, "groups": part.groups}
        for column, array in columns.items():
            ensure(
                array is None or array.dtype == np.int64,
                f"the {column} of the {name} split are {array is not None and array.dtype}; "
                "convert them to int64.",
            )


def check_names_its_classes(dataset: Dataset) -> None:
    """The data set has a name, and two or more distinct classes."""
    splits = dataset.load()
    ensure(splits.name, "the data set has no name; figures could not name their source.")
    names = splits.classes
    ensure(
        isinstance(names, tuple) and all(isinstance(n, str) and n for n in names),
        f"classes is {names!r}; it must be a tuple of names, in the order of the labels.",
    )
    ensure(len(names) > 1, f"there is nothing to tell apart: classes is {names!r}.")
    ensure(len(set(names)) == len(names), f"two classes have one name: {names!r}.")


def check_load_is_repeatable(dataset: Dataset) -> None:
    """Loading twice gives equal arrays, for any state of NumPy's global generator."""
    state = np.random.get_state()  # noqa: NPY002 - the check is that nobody uses it
    try:
        np.random.seed(1)  # noqa: NPY002
        one = _parts(dataset.load())
        np.random.seed(2)  # noqa: NPY002
        other = _parts(dataset.load())
    finally:
        np.random.set_state(state)  # noqa: NPY002
    ensure(one.keys() == other.keys(), "loading twice gave different splits; they must be fixed.")
    for name, part in one.items():
        ensure(
            _equal(part, other[name]),
            f"loading twice gave different {name} examples; draw from a seed that is a parameter, "
            "and read files in a fixed order.",
        )


def check_load_is_fresh(dataset: Dataset) -> None:
    """A caller's changes to the arrays do not reach the next caller."""
    first = dataset.load().train
    kept = first.images.copy(), first.labels.copy()
    for array in (first.images, first.labels):
        if array.flags.writeable:
            array[:] = 0
    again = dataset.load().train
    ensure(
        np.array_equal(again.images, kept[0]) and np.array_equal(again.labels, kept[1]),
        "arrays that a caller overwrote came back overwritten from the next load; return fresh or "
        "read-only arrays.",
    )


CHECKS: tuple[Check, ...] = (
    check_loads_splits,
    check_names_its_classes,
    check_load_is_repeatable,
    check_load_is_fresh,
)
"""Every check of a data set."""


def _parts(splits: Splits) -> dict[str, Examples]:
    every = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: part for name, part in every.items() if part is not None}


def _equal(one: Examples, other: Examples) -> bool:
    return (
        _same(one.clients, other.clients)
        and _same(one.groups, other.groups)
        and np.array_equal(one.images, other.images)
        and np.array_equal(one.labels, other.labels)
    )


def _same(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
