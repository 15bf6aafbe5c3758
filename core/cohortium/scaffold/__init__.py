"""A plugin's first package: complete, installable, and true to its contract.

Its files come from `templates/`: one module for each role, and the files that all roles share.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.errors import PluginError
from cohortium.roles import ROLES
from cohortium.text import did_you_mean

if TYPE_CHECKING:
    from cohortium.catalog.discovery import Catalog
    from cohortium.roles import Role

FORM = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
"""Form of a plugin's name. A distribution, a package, a class and an offer get this name."""

MAX_NAME_LENGTH = 30
"""Most letters of a name. A table of plugins must have room for it."""


@frozen(kw_only=True)
class Skeleton:
    """A plugin's package before it is written.

    Attributes:
        name: Name of the plugin in a study, and of its entry point.
        role: Role of the plugin.
    """

    name: str
    role: Role

    @property
    def distribution(self) -> str:
        """Name of the distribution for pip, and of its folder."""
        return f"cohortium-{self.name}"

    @property
    def package(self) -> str:
        """Name of the package that Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def kind(self) -> str:
        """Name of the class that fills the role."""
        return "".join(word.capitalize() for word in self.name.split("-"))

    def files(self) -> dict[str, str]:
        """Return the text of every file, by path in the package."""
        module = self.name.replace("-", "_")
        return {
            "pyproject.toml": self._text("pyproject.toml.jinja"),
            "README.md": self._text("README.md.jinja"),
            f"src/{self.package}/__init__.py": self._text(f"roles/{self.role}.py.jinja"),
            f"src/{self.package}/py.typed": "",
            f"tests/test_{module}.py": self._text("test.py.jinja"),
        }

    def write(self, parent: Path) -> Path:
        """Write the whole package into a new folder of `parent`, or nothing.

        Raises:
            PluginError: The folder exists already, or cannot be written.
        """
        folder = parent / self.distribution
        if folder.exists():
            raise PluginError(f"{folder} exists already; choose another name, or another --out.")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(dir=parent, prefix=".cohortium-"))
            try:
                for name, text in self.files().items():
                    (beside / name).parent.mkdir(parents=True, exist_ok=True)
                    (beside / name).write_text(text, "utf-8")
                beside.chmod(0o777 & ~_umask())
                beside.rename(folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        except OSError as error:
            raise PluginError(f"cannot write {folder}: {error.strerror}.") from error
        return folder

    def _text(self, template: str) -> str:
        import jinja2

        environment = jinja2.Environment(
            autoescape=False,  # noqa: S701 - the files are Python, TOML and Markdown
            keep_trailing_newline=True,
            loader=jinja2.PackageLoader("cohortium.scaffold"),
            undefined=jinja2.StrictUndefined,
        )
        return environment.get_template(template).render(
            name=self.name,
            role=self.role,
            distribution=self.distribution,
            package=self.package,
            kind=self.kind,
            module=self.name.replace("-", "_"),
        )


def plan(name: str, role: str, catalog: Catalog) -> Skeleton:
    """Plan the package of a plugin `name` that fills `role`.

    Args:
        name: Lower-case words of letters and digits, joined by hyphens.
        role: One of `hooks.ROLES`.
        catalog: The installed plugins. A second plugin of the same name would be a conflict.

    Raises:
        PluginError: There is no such role, or the name cannot be used. The sentence gives the
            reason.
    """
    if role not in ROLES:
        raise PluginError(f"--role {role}: there is no such role; {did_you_mean(role, ROLES)}")
    if not FORM.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        raise PluginError(
            f"'{name}' cannot name a plugin: a name is lower-case letters and digits, words are "
            f"joined by single hyphens, it begins with a letter, and has at most {MAX_NAME_LENGTH} "
            "signs."
        )
    if name == "cohortium" or name.startswith("cohortium-"):
        raise PluginError(f"'{name}': leave out 'cohortium', which is put before it anyway.")
    skeleton = Skeleton(name=name, role=role)
    for record in catalog.records:
        if record.name == name or record.target == skeleton.package:
            raise PluginError(f"'{name}': {record.label} is installed; choose another name.")
    for offering in catalog.entries:
        if (offering.role, offering.offer.name) == (role, name):
            raise PluginError(
                f"'{name}': {offering.record.label} offers that {role}; choose another name."
            )
    (module,) = (text for path, text in skeleton.files().items() if path.endswith("__init__.py"))
    if skeleton.kind in _taken(module):
        raise PluginError(
            f"'{name}': the class would be called {skeleton.kind}, which means something else "
            "there already; choose another name."
        )
    return skeleton


def _taken(module: str) -> set[str]:
    """Return names that a class of `module` would shadow.

    These are the names that the module imports, and Python's own.
    """
    imports = [
        node
        for node in ast.walk(ast.parse(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return set(dir(builtins)) | {alias.asname or alias.name for i in imports for alias in i.names}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
