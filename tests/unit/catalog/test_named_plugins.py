"""Names of plugins in the words of the core and of plugins, which a new name would leave behind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohortium.catalog.discovery import discover
from cohortium.data.location import other_reader

ROOT = Path(__file__).parents[3]
SOURCES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("plugins/**/*.py")])

ROLES = (
    "aggregator", "dataset", "data set", "engine", "model", "observer", "partitioner", "privatizer",
    "task", "trainer",
)  # fmt: skip

OTHER_VALUES = frozenset(
    {
        "ascii", "auto", "bloodmnist", "centre", "cpu", "head", "poisson", "replace-one", "sex",
        "sgd", "zero-out",
    }
)  # fmt: skip
"""Quoted words after "use" or "such as" that are values of keys, and no plugins."""

QUOTED = r"""(?:'[a-z][a-z0-9_-]*'|"[a-z][a-z0-9_-]*")"""
ADVICE = re.compile(
    rf"\b(such as|use|choose|take|try|encrypted:|name =|{'|'.join(ROLES)})\s+(?:the\s+|a\s+)?"
    rf"((?:{QUOTED}(?:,\s+or\s+|,\s+|\s+or\s+|\s+and\s+)?)+)"
)


def named_plugins(text: str) -> Iterator[tuple[str, str]]:
    """Yield the role, or "", and the name of each plugin that a text names."""
    for found in ADVICE.finditer(text):
        role = found[1].replace(" ", "") if found[1] in ROLES else ""
        for quoted in re.findall(QUOTED, found[2]):
            if quoted[1:-1] not in OTHER_VALUES or role:
                yield role, quoted[1:-1]


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the content of each text, with a gap for each value in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.fixture(scope="module")
def names() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"": set()}
    for entry in discover().entries:
        for role in ("", entry.role):
            found.setdefault(role, set()).add(entry.offer.name)
    return found


def test_every_plugin_that_words_name_exists(names: dict[str, set[str]]) -> None:
    count = 0
    for path in SOURCES:
        for line, text in texts(ast.parse(path.read_text("utf-8"))):
            for role, name in named_plugins(text):
                count += 1
                assert name in names[role], f"{path.relative_to(ROOT)}:{line} names {role} {name}"
    assert count > 100


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("use 'cnn', 'old' or 'resnet18' for volumes", ["cnn", "old", "resnet18"]),
        ("choose\n'old', or search", ["old"]),
        ("take the aggregator 'old'", ["old"]),
        ('set name = "old"', ["old"]),
        ("such as 'sex', and no model 'head'", ["head"]),
        ("the file 'old' is damaged", []),
    ],
)
def test_names_in_advice_are_found(text: str, found: list[str]) -> None:
    assert [name for _, name in named_plugins(text)] == found


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.nii", "x.nii.gz", "x.dcm", "x.png", "x.tif"])
def test_reader_of_other_files_exists(names: dict[str, set[str]], name: str) -> None:
    (reader,) = re.findall(r'set name = "(.*?)"', other_reader(Path(name)))
    assert reader in names["dataset"]
