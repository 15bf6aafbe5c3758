"""What `cohortium plugins NAME` tells is what the class has."""

from __future__ import annotations

from typing import Literal

import pytest
from attrs import Factory, field, frozen

from cohortium.catalog.discovery import CatalogEntry, discover
from cohortium.catalog.parameters import Parameter, parameters_of
from cohortium.roles.hooks import Offer
from cohortium.roles.protocols import Dataset

OURS = [o for o in discover().entries if o.record.distribution == "cohortium"]


@pytest.mark.parametrize("offering", OURS, ids=lambda o: f"{o.role} {o.offer.name}")
def test_builtin_plugin_parameters_are_documented(offering: CatalogEntry) -> None:
    for parameter in parameters_of(offering.offer):
        assert parameter.type
        assert parameter.meaning, f"{parameter.name} has no line under Attributes:"
        assert "\n" not in parameter.meaning


@frozen(kw_only=True)
class Base:
    """A part.

    Attributes:
        size: How many, e.g. of
            something.  More of it.
    """

    size: int


@frozen(kw_only=True)
class Part(Base):
    """Another.

    Attributes:
        kind: One of: two.
        rates: Some; or none.
        inside: A part.
        quiet: Not said.
        source: As in Li et al. (2021), cf. Table 2.  More.
        chosen: By the others.

    Guarantees:
        size: nothing.
    """

    kind: Literal["a", "b"] = "a"
    rates: tuple[float, ...] = ()
    inside: Dataset | None = None
    options: dict[str, float] = field(factory=dict)
    quiet: bool = False
    source: str | None = None
    chosen: bool = field(default=Factory(lambda self: self.quiet, takes_self=True))


def made(*, width: int, deep: bool = True) -> object:
    """A function.

    Args:
        width: Of it.
        deep: Or not.
    """
    return width, deep


def test_class_parameters_include_inherited_docstrings() -> None:
    assert parameters_of(Offer("part", Part, "")) == (
        Parameter("size", "int", "", "How many, e.g. of something"),
        Parameter("kind", '"a" or "b"', '"a"', "One of: two"),
        Parameter("rates", "list of float", "[]", "Some; or none"),
        Parameter("inside", "dataset", "none", "A part"),
        Parameter("options", "table", "{}", ""),
        Parameter("quiet", "bool", "false", "Not said"),
        Parameter("source", "str", "none", "As in Li et al. (2021), cf. Table 2"),
        Parameter("chosen", "bool", "(varies)", "By the others"),
    )


def test_function_parameters_come_from_docstring() -> None:
    found = parameters_of(Offer("made", made, ""))
    assert [p.name for p in found if p.name != "return"] == ["width", "deep"]
    assert found[:2] == (
        Parameter("width", "int", "", "Of it"),
        Parameter("deep", "bool", "true", "Or not"),
    )
