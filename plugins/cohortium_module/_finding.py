"""Import of a class from installed packages or the study's folder.

The folder is searched last, and only while a network is created.  So a file in it that is called
random.py hides no module of Python or of Cohortium.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cohortium.plugin import NetworkError, describe_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


@frozen
class Beside:
    """Finder of modules in one folder, for names that are not installed."""

    folder: str

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002 - the import system's signature
    ) -> ModuleSpec | None:
        """Return the module's spec, or None.

        A package itself finds the modules inside it.
        """
        spec = None if path is not None else PathFinder.find_spec(fullname, [self.folder])
        if spec is not None:
            spec.loader_state = self
        return spec


@contextlib.contextmanager
def beside(folder: str | None) -> Iterator[None]:
    """Import from `folder` as well, within a block.

    Modules from another study's folder are forgotten: its mynets.py is not this one's.
    """
    if folder is None:
        yield
        return
    finder = Beside(folder)
    _forget_others(finder)
    importlib.invalidate_caches()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _forget_others(finder: Beside) -> None:
    specs = {name: vars(m).get("__spec__") for name, m in sys.modules.items() if "." not in name}
    states = {name: getattr(spec, "loader_state", None) for name, spec in specs.items()}
    other = {n for n, state in states.items() if isinstance(state, Beside) and state != finder}
    for name in list(sys.modules):
        if name.partition(".")[0] in other:
            del sys.modules[name]


def found(module: str, folder: str | None) -> Callable[..., Any]:
    """Return the class or function that `module` names.

    `module` is "package.module:Class".

    Raises:
        NetworkError: There is no such class, or its file fails when it is imported.
    """
    package, _, name = module.partition(":")
    try:
        made: Any = importlib.import_module(package)
    except (Exception, SystemExit) as error:
        raise NetworkError(_not_imported(package, folder, error)) from error
    where = getattr(made, "__file__", None) or "Python itself"
    for part in name.split("."):
        inside = made
        made = getattr(inside, part, None)
        if made is None:
            raise NetworkError(_not_inside(package, part, inside, where, folder))
    if not callable(made) or _is_network(made):
        kind = "network already" if _is_network(made) else type(made).__name__
        raise NetworkError(
            f"model '{module}' is a {kind}; name its class, or a function that makes one."
        )
    factory: Callable[..., Any] = made
    return factory


def _is_network(made: object) -> bool:
    import torch

    return isinstance(made, torch.nn.Module)


def _not_imported(package: str, folder: str | None, error: BaseException) -> str:
    top = package.partition(".")[0]
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (package == missing or package.startswith(f"{missing}.")):
        place = f"in {folder}, where the study lies, or " if folder else ""
        return (
            f"there is no module '{missing}' {place}among the installed packages; put "
            f"{top}.py next to the study's file, or install its package."
        )
    if missing:
        return (
            f"'{package}' needs {missing}, which is not installed here; install it, or put "
            f"{missing.partition('.')[0]}.py next to the study's file."
        )
    return f"'{package}' cannot be imported: {describe_fault(error)}{_mismatch(top)}."


def _mismatch(top: str) -> str:
    """Return a hint for torchvision.

    If it was built for another torch, its import fails.
    """
    if top != "torchvision":
        return ""
    try:
        pair = f"torchvision {version('torchvision')} and torch {version('torch')}"
    except PackageNotFoundError:
        return ""
    return (
        f"; {pair} are not of one build, as a torch for the processor alone and a torchvision for "
        "CUDA: install both anew from one place, as PyTorch's page on installation says"
    )


def _not_inside(package: str, part: str, inside: Any, where: str, folder: str | None) -> str:
    close = difflib.get_close_matches(part, [n for n in dir(inside) if n[:1] != "_"], n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    own = Path(folder or "", f"{package.partition('.')[0]}.py")
    if folder and own.is_file() and where != str(own):
        hint = (
            f"; {own} is hidden by it: give the file a name that nothing installed has, and name "
            "that."
        )
    return f"'{package}' ({where}) has no '{part}'{hint}"
