"""The contract of every role instance: a frozen value, light to import.

It has plain parameters.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import attrs
import tomli_w

from cohortium.catalog import construction, toml_tables
from cohortium.catalog.discovery import discover
from cohortium.errors import CohortiumError, StudyError
from cohortium.roles.hooks import Offer
from cohortium.testing.contract import ConformanceError, ensure

if TYPE_CHECKING:
    from cohortium.roles import Role

_IMPORT = """
import importlib, sys
try:
    importlib.import_module({module!r})
except ModuleNotFoundError as error:
    print("absent" if {module!r}.startswith(error.name or "-") else error)
else:
    print("torch" if "torch" in sys.modules else "light")
"""


def check_methods(instance: object, role: Role) -> None:
    """It has the methods of its role."""
    try:
        construction.require_role(role, instance)
    except StudyError as error:
        raise ConformanceError(f"{error} Add those that are missing.") from error


def check_frozen_value(instance: object) -> None:
    """It is a frozen attrs value."""
    kind = type(instance)
    ensure(
        attrs.has(kind),
        f"{kind.__name__} is not an attrs class, so it has no parameters that a study could name; "
        "decorate it with @attrs.frozen.",
    )
    name = next(iter(_parameters(instance)), "parameter")
    try:
        setattr(instance, name, getattr(instance, name, None))
    except AttributeError:
        return
    raise ConformanceError(
        f"{kind.__name__} can be changed after it was made ({name} was set); the copy that an "
        "engine ships would differ from the value that ran here. Decorate it with @attrs.frozen."
    )


def check_plain_parameters(instance: object) -> None:
    """Its parameters are parts, or values that a study file can hold.

    Such values are text, numbers, booleans, and lists and tables of them.
    """
    parts = construction.roles_of(type(instance), what=type(instance).__name__)
    for name, value in _parameters(instance).items():
        ensure(
            name in parts or _is_plain(value),
            f"the parameter {name} of {type(instance).__name__} is a {type(value).__name__}, which "
            "a study file cannot hold; take plain values and make the rest inside methods.",
        )


def check_equality(instance: object) -> None:
    """Two instances with equal parameters are equal, and have equal hashes."""
    kind = type(instance)
    other = kind(**_parameters(instance))
    ensure(
        instance == other,
        f"two {kind.__name__} with equal parameters are not equal; let attrs write __eq__.",
    )
    try:
        hashes = hash(instance), hash(other)
    except TypeError:  # because a parameter is a table
        return
    ensure(
        hashes[0] == hashes[1],
        f"two equal {kind.__name__} hash differently; let attrs write __hash__.",
    )


def check_pickles(instance: object) -> None:
    """It is unchanged after pickling, as on the way to another process."""
    kind = type(instance).__name__
    try:
        copy = pickle.loads(pickle.dumps(instance))  # noqa: S301 - what was just dumped
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConformanceError(
            f"{kind} cannot be pickled ({error}), so no engine can ship it; define the class at "
            "the top of a module and keep only plain parameters in it."
        ) from error
    ensure(copy == instance, f"{kind} is another after pickling; keep nothing but parameters.")


def check_study_round_trip(instance: object, role: Role) -> None:
    """Its table in a study file makes an equal instance."""
    kind = type(instance).__name__
    ensure(
        "name" not in _parameters(instance),
        f"a parameter of {kind} is called name, the key by which a study's table says which plugin "
        "it means; call it something else.",
    )
    catalog: Any = _OnlyThis(type(instance))
    try:
        table = tomllib.loads(tomli_w.dumps(toml_tables.to_table(catalog, role, instance)))
        again = construction.build_part(catalog, role, table, where="its own study")
    except (CohortiumError, TypeError, ValueError) as error:
        raise ConformanceError(
            f"{kind} does not survive a study file: {error} Annotate every parameter with the "
            "plain type that it has."
        ) from error
    ensure(
        again == instance,
        f"{kind} written to a study file and read back is {again!r}, not {instance!r}; store a "
        "parameter unchanged.",
    )


def check_plugin_import(instance: object) -> str | None:
    """The import of its module does not import torch.

    So discovery stays fast.
    """
    module = type(instance).__module__
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(  # noqa: S603 - this interpreter, and a module already imported here
        [sys.executable, "-c", _IMPORT.format(module=module)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
    if said == "absent":
        return f"{module} cannot be imported elsewhere, so its import was not tried"
    ensure(
        said != "torch",
        f"importing {module} imports torch, as `cohortium plugins` would then for everyone; move "
        "heavy imports into the methods that need them.",
    )
    ensure(said == "light", f"{module} cannot be imported in a fresh process: {said}.")
    return None


@attrs.frozen
class _OnlyThis:
    """Catalog of one class, "it", and of the installed offers."""

    kind: type

    def find(self, role: Role, name: str) -> Offer[Any]:
        return Offer("it", self.kind, "") if name == "it" else discover().find(role, name)

    def name_of(self, role: Role, instance: object) -> str | None:
        return "it" if type(instance) is self.kind else discover().name_of(role, instance)


def _parameters(instance: object) -> dict[str, Any]:
    kind = type(instance)
    fields = attrs.fields(kind) if attrs.has(kind) else ()
    return {f.alias or f.name: getattr(instance, f.name) for f in fields if f.init}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return value is None or type(value) in (str, int, float, bool)
