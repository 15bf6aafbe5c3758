"""Every public name says what it is, and what each of its parameters is."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

import cohortium
from cohortium import discover, plugin, testing

CORE = Path(cohortium.__file__).parent

OURS = {
    f"{offering.offer.factory.__module__}.{offering.offer.factory.__name__}": offering.offer.factory
    for offering in discover().entries
    if offering.record.distribution == "cohortium"
}

NAMES = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (cohortium, plugin, testing)
    for name in module.__all__
    if name != "__version__"
}


def is_code(value: object) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def functions(value: Any) -> Iterator[tuple[str, Any]]:
    """`value` if it is a function, or the public methods and properties of a class."""
    if not inspect.isclass(value):
        yield value.__name__, value
        return
    for name, member in vars(value).items():
        plain = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(plain):
            yield name, plain


def is_told(parameter: str, text: str) -> bool:
    """Whether `text` names `parameter`, in its list of arguments or in its prose."""
    listed = rf"^ +\**{parameter}: "
    return re.search(rf"{listed}|`[^`]*\b{parameter}\b[^`]*`", text, re.MULTILINE) is not None


@pytest.mark.parametrize("name", [name for name, value in NAMES.items() if is_code(value)])
def test_public_functions_document_every_parameter(name: str) -> None:
    value = NAMES[name]
    assert inspect.getdoc(value), f"{name} has no docstring"
    if issubclass_of_kit(value):
        return  # its one method takes what pytest gives it
    for method, function in functions(value):
        text = inspect.getdoc(function)
        assert text, f"{name}.{method} has no docstring"
        text += of_protocol(value, method)
        parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        silent = [p for p in parameters if not is_told(p, text)]
        assert not silent, f"{name}: {method} does not say what {silent} are"


def of_protocol(value: object, method: str) -> str:
    """The docstring of the method in the protocol that the class fills, if it is a part."""
    methods = {n for n, m in vars(plugin.Task).items() if callable(m) and not n.startswith("_")}
    fills = inspect.isclass(value) and methods <= set(dir(value))
    return inspect.getdoc(getattr(plugin.Task, method)) or "" if fills and method in methods else ""


def issubclass_of_kit(value: object) -> bool:
    return inspect.isclass(value) and value.__name__.endswith("Conformance")


@pytest.mark.parametrize("name", [*NAMES, *OURS])
def test_public_value_attributes_are_documented(name: str) -> None:
    value = NAMES.get(name) or OURS[name]
    if not inspect.isclass(value) or not attrs.has(value):
        return
    text = "\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in value.__mro__)
    fields = [f.name for f in attrs.fields(value) if f.init and not f.name.startswith("_")]
    silent = [f for f in fields if not re.search(rf"^    {f}: ", text, re.MULTILINE)]
    assert not silent, f"{name} does not say what {silent} are"


@pytest.mark.parametrize("name", [name for name, value in NAMES.items() if not is_code(value)])
def test_public_aliases_and_constants_are_documented(name: str) -> None:
    if isinstance(NAMES[name], ModuleType):
        assert NAMES[name].__doc__
        return
    short = name.rpartition(".")[2]
    assert any(documented(path, short) for path in CORE.rglob("*.py")), name


def documented(path: Path, name: str) -> bool:
    """Whether `path` assigns `name` and tells what it is in a string right after it."""
    body = ast.parse(path.read_text("utf-8")).body
    for statement, after in pairwise(body):
        match statement:
            case ast.Assign(targets=targets):
                assigned = [ast.unparse(target) for target in targets]
            case ast.AnnAssign(target=target):
                assigned = [ast.unparse(target)]
            case _:
                continue
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if name in assigned and is_text:
            return True
    return False
