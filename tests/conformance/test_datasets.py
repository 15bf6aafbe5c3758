from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from attrs import evolve, frozen

from cohortium.plugin import Examples, Multiclass, Splits
from cohortium.testing import ConformanceError, datasets, samples

SPLITS = Splits(name="good", task=Multiclass(samples.CLASSES), train=samples.examples(16))


def copy(splits: Splits = SPLITS, **changes: Any) -> Splits:
    train = splits.train.select(np.arange(len(splits.train)))
    return evolve(splits, **{"train": train, **changes})


@frozen
class Good:
    def load(self) -> Splits:
        return copy()


@frozen
class NotSplits:
    def load(self) -> Any:
        return samples.examples(16)


@frozen
class SmallClients:
    def load(self) -> Splits:
        train = samples.examples(16)
        small: Any = np.zeros(16, np.uint8)
        return copy(train=Examples(train.images, train.labels, small))


@frozen
class Changed:
    changes: Any

    def load(self) -> Splits:
        return copy(**self.changes)


@frozen
class Listed(Multiclass):
    """Names its classes in a list."""

    names: Any = attrs.field(factory=lambda: ["a", "b", "c", "d"])


@frozen
class DrawsFromTheGlobalGenerator:
    def load(self) -> Splits:
        shape = (16, 3, 8, 8)
        images = np.random.randint(0, 256, shape, dtype=np.uint8)  # noqa: NPY002
        return copy(train=Examples(images, SPLITS.train.labels))


@frozen
class SometimesTests:
    calls: list[int]

    def load(self) -> Splits:
        self.calls.append(1)
        return copy(test=samples.examples(4) if len(self.calls) % 2 else None)


@frozen
class HandsOutItsCache:
    cache: Splits

    def load(self) -> Splits:
        return self.cache


BAD = [
    (datasets.check_loads_splits, NotSplits(), "load gave a Examples"),
    (datasets.check_loads_splits, SmallClients(), "clients of the train split are uint8"),
    (datasets.check_names_its_classes, Changed({"name": ""}), "has no name"),
    (datasets.check_names_its_classes, Changed({"task": Listed()}), "must be a tuple of names"),
    (
        datasets.check_names_its_classes,
        Changed({"task": Multiclass(("a",) * 4)}),
        "two classes have one",
    ),
    (datasets.check_load_is_repeatable, DrawsFromTheGlobalGenerator(), "different train examples"),
    (datasets.check_load_is_repeatable, SometimesTests([]), "different splits"),
    (datasets.check_load_is_fresh, HandsOutItsCache(copy()), "came back overwritten"),
]


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_data_set_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize("check", datasets.CHECKS)
def test_valid_plugin_passes_check(check: Any) -> None:
    assert check(Good()) is None


def test_single_class_dataset_fails_check() -> None:
    train = samples.examples(4)
    lone = Changed({"task": Multiclass(("a",)), "train": Examples(train.images, train.labels * 0)})
    with pytest.raises(ConformanceError, match="nothing to tell apart"):
        datasets.check_names_its_classes(lone)


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(datasets.CHECKS)
