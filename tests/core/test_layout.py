"""The house rules that a machine can hold: floors, no privileges, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "cohortium"

# Each module imports only what stands on a lower line, or on its own line further left.
FLOORS = """\
errors faults foreign allowing installed
files memory sheets places journal tables treefile keeping visits throttling frames listening
randomness packing ring messages metrics data pixels labels arrays identity
guarantee mechanisms loss_grids privacy_loss accounting
wire spending ledger
vocabulary events
sessions protocols hooks
vector sampling counting
uses patches products rules layers module_state pass_checks recording taps isolation bookkeeping
clipping separability
catalog
composition scaffold
describing
account policy statement
networks training prelude pretraining history checkpoint facts provenance record folder
evaluation personal
whitened heads reference
plugin
setting sizing workplace standins
coordinator site
rehearsal fewest agreement preparation hospital testing
classifier pictures
exporting
invitations
rounds planning standing running
auditing
federation
reporting
resolution study
admission reception channel leading dealing
grid drafting
cli
"""
HEIGHT = {
    name: (n, m)
    for n, line in enumerate(FLOORS.splitlines())
    for m, name in enumerate(line.split())
}

HEAVY = (
    "torch",
    "opacus",
    "medmnist",
    "pandas",
    "sklearn",
    "scipy",
    "torchvision",
    "safetensors",
    "matplotlib",
)


def imported(tree: ast.AST, *, lazily: bool) -> set[str]:
    """Modules that `tree` imports when it runs; inside functions too, if `lazily`."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazily:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "cohortium":
            found |= {f"cohortium.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        found |= imported(node, lazily=lazily)
    return found


def modules() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def floor_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=floor_of)
def test_each_module_imports_only_what_lies_below_it(path: Path) -> None:
    name = floor_of(path)
    if name in ("__init__", "__main__"):
        return
    assert name in HEIGHT, f"{name} has no floor: give it one here and in docs/design.md"
    tree = ast.parse(path.read_text("utf-8"))
    for target in imported(tree, lazily=False):
        if target.startswith("cohortium.") and target.split(".")[1] != name:
            below = target.split(".")[1]
            assert HEIGHT[below] < HEIGHT[name], f"{name} imports {below}, which is not below it"


@pytest.mark.parametrize("path", modules(), ids=floor_of)
def test_the_core_imports_no_plugin(path: Path) -> None:
    targets = imported(ast.parse(path.read_text("utf-8")), lazily=True)
    assert not {t for t in targets if t.startswith("cohortium_")}


def test_plugin_folders_are_the_entry_point_table() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    table = project["entry-points"]["cohortium"]
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    assert {f"cohortium_{name}" for name in table} == set(table.values()) == folders


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_plugins_enter_by_one_door(path: Path) -> None:
    own = path.parent.name
    for target in imported(ast.parse(path.read_text("utf-8")), lazily=True):
        if target.split(".")[0].startswith("cohortium"):
            assert target == "cohortium.plugin" or target.split(".")[0] == own, target


@pytest.mark.parametrize(
    "action",
    [
        "import cohortium",
        "import cohortium; cohortium.discover()",
        "import cohortium.plugin",
        "from cohortium.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from cohortium.cli import main\ntry: main(['plugins'])\nexcept SystemExit: pass",
    ],
)
def test_discovery_is_light(action: str) -> None:
    code = f"{action}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
