"""Of whose code a study's parts are, where that is no plugin's: a class, its file, its package.

A plugin has a name and a version.  A network of a user's own has neither, and may change between
two runs of one study; so a record tells its file's SHA-256.  Any part may say which code is its
user's with a method `code()`, which gives the class or function.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from cohortium.catalog.discovery import discover
from cohortium.roles import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_BYTES = 1 << 24
"""Of a source file that is hashed; none is so large."""

CodeOrigin = dict[str, str]
"""`class`, and where there are such `file`, `sha256` and `package`."""


def collect_provenance(study: object) -> dict[str, CodeOrigin]:
    """By part, such as "model" or "model.network", the code that no plugin answers for.

    Args:
        study: A federation.
    """
    catalog = discover()
    found = {}
    parts = {role: getattr(study, role, None) for role in ROLES}
    for role, part in parts.items():
        for name, inner in _inside(role, part):
            code = getattr(inner, "code", None)
            if callable(code):
                found[name] = describe_code(code())
            elif name == role and part is not None and not catalog.plugins_defining(inner):
                found[name] = describe_code(type(inner))
    return found


def describe_code(code: Any) -> CodeOrigin:
    """The class or function `code`, its source file, and its package where there is one."""
    told = {"class": f"{code.__module__}:{code.__qualname__}"}
    try:
        file = inspect.getsourcefile(code)
    except TypeError:
        file = None
    digest = "" if file is None else file_digest(Path(file))
    if file is not None and digest:
        told |= {"file": file, "sha256": digest}
    package = _package_of(code.__module__.partition(".")[0], file or "")
    return {**told, "package": package} if package else told


def _package_of(top: str, file: str) -> str:
    """Name and version of the distribution that holds the package `top`; empty if none does."""
    names = [top]
    if "site-packages" in Path(file).parts:
        # To ask all distributions takes seconds, and a file beside a study is of none.
        names += packages_distributions().get(top, [])
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""


def file_digest(file: Path) -> str:
    """SHA-256 of a source file; empty where there is none that can be read."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return ""
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def as_versions(found: Mapping[str, CodeOrigin]) -> dict[str, str]:
    """The same as versions, for whoever goes on with a run to see what is another."""
    return {
        f"{part} {told['class']}": ", ".join(
            filter(None, (told.get("package"), f"sha256 {told.get('sha256', 'unknown')[:16]}"))
        )
        for part, told in found.items()
    }


def _inside(name: str, part: object) -> Iterator[tuple[str, object]]:
    """`part`, and the parts inside it."""
    yield name, part
    kind: Any = type(part)
    if attrs.has(kind):
        for each in attrs.fields(kind):
            value = getattr(part, each.name, None)
            if attrs.has(type(value)):
                yield from _inside(f"{name}.{each.name}", value)
