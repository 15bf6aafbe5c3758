"""The rules of the architecture: import contracts, one API for plugins, light imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "cohortium"

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
    "nibabel",
    "pydicom",
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


def layers() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    found: list[str] = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return found


def test_packages_are_those_of_the_design() -> None:
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    table = design.partition("## Packages")[2].partition("\n\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == layers()
    there = {path.name.removesuffix(".py") for path in CORE.iterdir() if path.name[0] not in "_."}
    assert there - {"py.typed"} == {*layers()}


def test_imports_keep_the_contracts() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
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
def test_plugins_import_only_public_plugin_api(path: Path) -> None:
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
def test_discovery_imports_no_heavy_module(action: str) -> None:
    code = f"{action}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def shown_arrays(tree: ast.AST) -> list[str]:
    """Fields of attrs classes that hold arrays, and that the class's text would show."""
    found = []
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        made = [ast.unparse(each) for each in kind.decorator_list]
        if not any(re.match(r"frozen|define", each) and "repr=False" not in each for each in made):
            continue
        for line in kind.body:
            if not isinstance(line, ast.AnnAssign):
                continue
            holds = re.search(
                r"\b(Tensor|NDArray|ExampleIndices|Words)\b", ast.unparse(line.annotation)
            )
            is_code = "Callable" in ast.unparse(line.annotation)
            value = "" if line.value is None else ast.unparse(line.value)
            if holds and not is_code and "repr=False" not in value:
                found.append(f"{kind.name}.{ast.unparse(line.target)}")
    return found


def test_text_of_a_value_shows_no_array() -> None:
    """An error or a log line that names a value shows no image, label, patient or update."""
    files = [*modules(), *sorted((ROOT / "plugins").rglob("*.py"))]
    trees = {path: ast.parse(path.read_text("utf-8")) for path in files}
    found = {str(path): names for path, tree in trees.items() if (names := shown_arrays(tree))}
    assert found == {}
    bad = "@frozen\nclass A:\n    x: Tensor\n    y: Words = field(repr=False)\n    z: int\n"
    assert shown_arrays(ast.parse(bad)) == ["A.x"]
