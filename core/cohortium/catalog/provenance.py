"""Origin of a study's code that belongs to no plugin.

It is a class, its file and its package.

A plugin has a name and a version. A user's own network has neither, and may change between two runs
of one study. So a record has its file's SHA-256. Any part may declare its user's code with a method
`code()`, which returns the class or function.
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
"""Largest size of a hashed source file in bytes.

No source file is so large.
"""

CodeOrigin = dict[str, str]
"""The key `class`, and `file`, `sha256` and `package`, if they exist."""


def collect_provenance(study: object) -> dict[str, CodeOrigin]:
    """Return, by part, the code that belongs to no plugin.

    A part's name is, for example, "model" or "model.network".

    Args:
        study: A federation.
    """
    catalog = discover()
    found = {}
    parts = {role: getattr(study, role, None) for role in ROLES}
    for role, part in parts.items():
        for name, inner in parts_inside(role, part):
            code = getattr(inner, "code", None)
            if callable(code):
                found[name] = describe_code(code())
            elif name == role and part is not None and not catalog.plugins_defining(inner):
                found[name] = describe_code(type(inner))
    return found


def describe_code(code: Any) -> CodeOrigin:
    """Return the class or function `code`, its source file and its package.

    The package is absent if there is none.
    """
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
    """Return name and version of the distribution that has the package `top`.

    The result is empty if no distribution has it.
    """
    names = [top]
    if "site-packages" in Path(file).parts:
        # A query of all distributions takes seconds, and a file next to a study belongs to none.
        names += packages_distributions().get(top, [])
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a source file, or "" if it is unreadable."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return ""
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def as_versions(found: Mapping[str, CodeOrigin]) -> dict[str, str]:
    """Return the origins as versions, with which a resumed run detects changes."""
    return {
        f"{part} {told['class']}": ", ".join(
            filter(None, (told.get("package"), f"sha256 {told.get('sha256', 'unknown')[:16]}"))
        )
        for part, told in found.items()
    }


def parts_inside(name: str, part: object) -> Iterator[tuple[str, object]]:
    """Yield `part`, and the parts inside it, with their names."""
    yield name, part
    kind: Any = type(part)
    if attrs.has(kind):
        for each in attrs.fields(kind):
            value = getattr(part, each.name, None)
            if attrs.has(type(value)):
                yield from parts_inside(f"{name}.{each.name}", value)
