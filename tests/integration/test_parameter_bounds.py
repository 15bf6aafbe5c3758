"""Every number that can be written down has bounds, and says so in a sentence."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.data.examples import DataSpec, Examples
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import CohortiumError, StudyError
from cohortium.federation import Federation
from cohortium.plugin import Multiclass
from cohortium.roles.values import FederationSpec, Workload
from cohortium.rounds.network_size import count_parameters
from cohortium.study.study import STUDY_ROLES
from cohortium.text import is_printable
from tests.support.federations import QuadrantImages, tiny_federation

SPEC = DataSpec(channels=3, size=(28, 28), task=Multiclass(("a", "b")), examples=300)
COHORT = FederationSpec(sites=5, cohort_size=5, examples=300, rounds=3)

NEVER = {
    float: (math.nan, math.inf, -math.inf, 1e300, -1e300),
    int: (10**30, -(10**30), 1 << 63),
}
"""What no number may be, by its type."""

ODD = {
    float: (0.0, -0.0, -1.0, 5e-324, -5e-324, 1e-310, 2.0**-1022, 1e30, 1e-30),
    int: (0, -1, 1 << 62, 1 << 31),
}
"""What is refused, or works."""

GIVEN: dict[str, dict[str, Any]] = {
    "pretrained": {"images": "phantom"},
    "npz": {"path": "x.npz"},
    "module": {"module": "torch.nn:Identity"},
    "folder": {"path": "x"},
    "table": {"path": "x.csv"},
    "dicom": {"path": "x.csv"},
    "nifti": {"path": "x.csv"},
    "standardized": {"model": "cnn"},
    "moments": {"features": "descriptor"},
}
"""What has to be said beside the number."""

CATALOG = discover()

ELSEWHERE = ("gaussian", "skellam")
"""Whose numbers are those of the accountant, and have tests of their own."""


def numbers(kind: Any) -> type | None:
    """`int` or `float` if a parameter of type `kind` is a number, or holds some."""
    if kind in (int, float):
        return typing.cast("type", kind)
    if typing.get_origin(kind) is Literal or kind is Any:
        return None
    inside = typing.get_args(kind)
    for part in inside or ():
        found = numbers(part) if part is not types.NoneType else None
        if found:
            return found
    return None


def written(kind: Any, value: float) -> Any:
    """`value` as a parameter of type `kind` has it: alone, in a list, or in a table."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        return [1.0, value]
    return {"momentum": value} if origin is dict else value


def offered() -> Iterator[Any]:
    for o in CATALOG.entries:
        if o.record.distribution != "cohortium" or o.offer.name in ELSEWHERE:
            continue
        for key, kind in construction.parameters(o.offer.factory, what=o.offer.name).items():
            if numbers(kind):
                yield pytest.param(o.role, o.offer.name, key, kind, id=f"{o.offer.name}.{key}")


def used(role: str, part: Any) -> object:
    """What is asked of a part before anything is trained, on hardly any data."""
    import torch

    if role == "model":
        return count_parameters(part, SPEC)
    if role == "trainer":
        part.workload(COHORT)
        return part.make_server_optimizer([torch.nn.Parameter(torch.zeros(2))], COHORT.rounds)
    if role == "aggregator":
        return part.confidentiality(COHORT)
    if role == "privatizer":
        return part.plan(Workload(output="gradient", steps=1, sampling_rate=0.5), COHORT, 10)
    if role == "partitioner":
        labels = np.arange(300) % 2
        clients = np.arange(300) % 5
        images = np.zeros((300, 1, 8, 8), np.uint8)
        return part.partition(Examples(images, labels, clients), 5, np.random.default_rng(1))
    return None


def holds(key: str, kind: Any, make: Callable[[Any], object]) -> None:
    """That `make` refuses what the number `key` must never be, and the rest, if not taken."""
    number = numbers(kind)
    assert number is not None
    for value in NEVER[number]:
        with pytest.raises(StudyError) as refused:
            make(written(kind, value))
        is_clean(refused.value, key)
    for value in ODD[number]:
        try:
            make(written(kind, value))
        except CohortiumError as error:
            is_clean(error)


def is_clean(error: CohortiumError, key: str = "") -> None:
    sentence = str(error)
    assert is_printable(sentence)
    assert sentence.endswith(".")
    assert len(sentence) < 700
    assert key in sentence


@pytest.mark.parametrize(("role", "name", "key", "kind"), offered())
def test_plugin_number_parameters_are_validated(role: Any, name: str, key: str, kind: Any) -> None:
    table = {"name": name, **GIVEN.get(name, {})}
    holds(
        key,
        kind,
        lambda value: used(
            role, construction.build_part(CATALOG, role, {**table, key: value}, where="test")
        ),
    )


def declared(kind: type) -> list[Any]:
    found = construction.parameters(kind, what="test").items()
    return [pytest.param(key, kind, id=key) for key, kind in found if numbers(kind)]


@pytest.mark.parametrize(("key", "kind"), declared(Federation))
def test_federation_numbers_are_validated(key: str, kind: Any) -> None:
    whole = tiny_federation()
    parts: dict[str, Any] = {role: getattr(whole, role) for role in STUDY_ROLES}
    holds(
        key,
        kind,
        lambda value: construction.construct(
            Federation, {key: value}, where="test", what="the federation", ready={**parts}
        ),
    )


@pytest.mark.parametrize(("key", "kind"), declared(DataSpec))
def test_data_spec_numbers_are_validated(key: str, kind: Any) -> None:
    base = {"channels": 1, "size": [8, 8], "examples": 9}
    ready = {"task": Multiclass(("a", "b"))}
    holds(
        key,
        kind,
        lambda value: construction.construct(
            DataSpec, {**base, key: value}, where="test", what="the data", ready=ready
        ),
    )


@pytest.mark.parametrize(("key", "kind"), declared(SitePolicy))
def test_policy_numbers_are_validated(key: str, kind: Any) -> None:
    base = {"epsilon": 6.0, "delta": 1e-5, "unit": "example", "against": "everyone"}
    holds(
        key,
        kind,
        lambda value: construction.construct(
            SitePolicy, {**base, key: value}, where="test", what="the policy"
        ),
    )


@pytest.mark.parametrize(("key", "kind"), declared(SiteConfig))
def test_site_file_numbers_are_validated(key: str, kind: Any) -> None:
    floors: Any = {"epsilon": 6.0, "delta": 1e-5, "unit": "example", "against": "everyone"}
    ready = {"dataset": QuadrantImages(), "policy": SitePolicy(**floors), "folder": Path()}
    holds(
        key,
        kind,
        lambda value: construction.construct(
            SiteConfig,
            {"id": 0, "dataset_id": "x", key: value},
            where="test",
            what="the site",
            ready=ready,
        ),
    )


def test_enumerated_parameters_include_known_numbers() -> None:
    met = {param.id for param in offered()}
    wanted = {"fedavg.learning_rate", "fedsgd.class_weights", "cnn.width"}
    assert wanted | {"secagg.max_dropout_rate"} <= met
    assert {"fedsgd.optimizer_options", "descriptor.radii", "phantom.seed"} <= met
    assert len(met) > 60


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1.0, 1.0], [1.0] * 10_001, [1e-300, 1.0]])
@pytest.mark.parametrize("trainer", ["fedavg", "fedprox", "fedsgd"])
def test_class_weights_are_positive_and_few(weights: list[float], trainer: str) -> None:
    table = {"name": trainer, "class_weights": weights}
    with pytest.raises(StudyError, match="class_weights") as error:
        construction.build_part(CATALOG, "trainer", table, where="test")
    is_clean(error.value)


def test_too_many_optimizer_options_are_refused() -> None:
    options = {f"a{n}": 1.0 for n in range(17)}
    with pytest.raises(StudyError, match="'optimizer_options' has more than 16 entries"):
        construction.build_part(
            CATALOG, "trainer", {"name": "fedsgd", "optimizer_options": options}, where="test"
        )


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("scatternet", {"scales": 10, "angles": 64, "groups": 0}, "more than 8,192; lower one"),
        ("descriptor", {"bins": 256, "edge_bins": 256, "radii": [0.1 * n + 0.1 for n in range(32)]},
         "more than 1,048,576; lower bins"),
    ],
)  # fmt: skip
def test_jointly_excessive_model_numbers_are_refused(
    name: str, values: dict[str, Any], words: str
) -> None:
    def build() -> None:
        table = {"name": name, **values}
        construction.build_part(CATALOG, "model", table, where="test").build(SPEC, 1)

    with pytest.raises(StudyError, match=words):
        build()
