"""Every check of a role, and its use on installed offers."""

from __future__ import annotations

import difflib
import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cohortium.catalog import construction
from cohortium.errors import CohortiumError, PluginError, RequestError
from cohortium.study import toml
from cohortium.testing import (
    aggregators,
    datasets,
    engines,
    guarantees,
    models,
    observers,
    partitioners,
    privatizers,
    tasks,
    trainers,
    values,
)
from cohortium.testing.contract import Check, ConformanceError
from cohortium.third_party import call_guarded, plugin_location

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cohortium.catalog.discovery import Catalog, CatalogEntry
    from cohortium.roles import Role


def checks_for(role: Role) -> tuple[tuple[str, Check], ...]:
    """Return every check that an instance of `role` must pass, by name.

    Examples:
        >>> "refuses too many sites" in dict(checks_for("partitioner"))
        True
    """
    own: dict[Role, tuple[Check, ...]] = {
        "dataset": datasets.CHECKS,
        "task": tasks.CHECKS,
        "partitioner": partitioners.CHECKS,
        "model": models.CHECKS,
        "trainer": trainers.CHECKS,
        "privatizer": privatizers.CHECKS + guarantees.CHECKS,
        "aggregator": aggregators.CHECKS,
        "engine": engines.CHECKS,
        "observer": observers.CHECKS,
    }
    every: tuple[Any, ...] = (
        partial(values.check_methods, role=role),
        values.check_frozen_value,
        values.check_plain_parameters,
        values.check_equality,
        values.check_pickles,
        partial(values.check_study_round_trip, role=role),
        values.check_plugin_import,
        *own[role],
    )
    return tuple((_name_of(check), check) for check in every)


@frozen
class CheckResult:
    """Result of a check.

    Attributes:
        check: Its name.
        promise: The property that it tests, in one line.
        failure: The fault.  Empty if the check passed.
        note: A remark of a check that passed.
    """

    check: str
    promise: str
    failure: str = ""
    note: str = ""

    def __str__(self) -> str:
        """Return one line."""
        if self.failure:
            return f"✗ {self.check}: {self.failure}"
        return f"✓ {self.promise}" + (f" ({self.note})" if self.note else "")


def run_checks(role: Role, instance: object) -> Iterator[CheckResult]:
    """Run every check of `role` on `instance`, and yield each result.

    A failure does not end the run.
    """
    for name, check in checks_for(role):
        try:
            note = call_guarded(lambda check=check: check(instance) or "")  # type: ignore[misc]
            verdict = CheckResult(name, _promise_of(check), note=note)
        except PluginError as error:
            # A plugin's fault is a finding, for any exception that it raised.
            is_finding = isinstance(error.__cause__, ConformanceError)
            failure = (
                str(error.__cause__)
                if is_finding
                else f"it raised {str(error).rstrip(': ')}{_place(error, instance)}"
            )
            verdict = CheckResult(name, _promise_of(check), failure=failure)
        yield verdict


def _place(error: PluginError, instance: object) -> str:
    """Return the line of the part's own package that raised the error, or ""."""
    package = str(type(instance).__module__).partition(".")[0]
    cause = error.__cause__
    if cause is None or isinstance(cause, CohortiumError):
        return ""
    return plugin_location(cause, [package])


def select(catalog: Catalog, name: str) -> list[CatalogEntry]:
    """Return the offers of the plugin `name`, or those called `name`.

    Raises:
        PluginError: There is neither, or the plugin cannot be used.
    """
    for record in catalog.records:
        if record.name == name and record.status != "active":
            raise PluginError(f"{record.label} is {record.status}: {record.reason}")
    of_plugin = [o for o in catalog.entries if o.record.name == name]
    found = of_plugin or [o for o in catalog.entries if o.offer.name == name]
    if found:
        return found
    known = {o.record.name for o in catalog.entries} | {o.offer.name for o in catalog.entries}
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `cohortium plugins`."
    raise PluginError(f"no plugin is called '{name}', and none offers it; {hint}")


def instance_of(catalog: Catalog, offering: CatalogEntry, overrides: Sequence[str]) -> Any:
    """Build the part that `offering` makes with `overrides`, each as `key=value`.

    Raises:
        RequestError: A parameter is missing, or an override has another form.
        StudyError: A parameter is unknown or out of its range.
    """
    role, offer = offering.role, offering.offer
    given = dict(map(_parsed, overrides))
    known = call_guarded(lambda: inspect.signature(offer.factory)).parameters.values()
    missing = [p.name for p in known if p.default is p.empty and p.name not in given]
    if missing:
        raise RequestError(
            f"the {role} '{offer.name}' cannot be made without {' and '.join(missing)}; give it "
            f"as in --set {missing[0]}=…."
        )
    table = {"name": offer.name, **given}
    return construction.build_part(catalog, role, table, where="--set", folder=Path.cwd())


def _parsed(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RequestError(f"--set {setting}: write it as key=value, as in width=16.")
    return key.strip(), toml.parse(text)


def _function(check: Any) -> Any:
    return check.func if isinstance(check, partial) else check


def _name_of(check: Check) -> str:
    name: str = _function(check).__name__
    return name.removeprefix("check_").replace("_", " ")


def _promise_of(check: Check) -> str:
    """Return the first line of its docstring, or its name.

    The name serves where docstrings were stripped.
    """
    text: str = _function(check).__doc__ or _name_of(check)
    return text.splitlines()[0].rstrip(".")
