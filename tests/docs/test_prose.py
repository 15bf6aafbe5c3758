"""Prose of docs, docstrings, messages and help: plain words, short sentences, no semicolons.

`prose_pending.txt` lists the files that do not yet follow the rules.  A file that is mended leaves
the list, and none may be added.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PENDING = frozenset(Path(__file__).with_name("prose_pending.txt").read_text("utf-8").splitlines())

MAX_WORDS = 25
"""Words of a sentence.  A citation, a formula or code counts as one."""

AVOIDED = {
    "deal": "partition",
    "deals": "partitions",
    "dealt": "partitioned",
    "muster": "invite",
    "mustered": "invited",
    "hears": "receives",
    "whoever": "name the actor",
    "whatever": "name the thing",
    "likewise": "repeat the noun",
    "but for": "except",
    "hold to": "require",
    "comes to": "results in",
    "came to": "resulted in",
    "goes on": "continues",
    "go on": "continue",
    "beside": "next to, or in addition to",
    "so it is": "name the thing",
    "to itself": "private",
}
"""Words that are metaphors here, or that hide the actor, each with a plain one."""

CODE = re.compile(r"```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)|<[^>]*>|https?://\S+", re.DOTALL)
SENTENCE = re.compile(
    r"(?<=[.!?])[)\"”]*\s+(?=[A-ZΓ-Ωσεδ\"“(`]|[a-z_]+: )"  # after a full stop
    r"|\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\.)\s)"  # paragraphs and lists
    r"|\n(?=\s*\**[\w, ]+: )|(?m:^\s*\w+:)\n"  # entries and headings of docstrings
)


def prose(text: str) -> str:
    """`text` with code, links and markup each as one neutral word."""
    return CODE.sub(" code ", text)


def faults(text: str) -> Iterator[str]:
    """Every breach of a rule, as a sentence."""
    plain = prose(text)
    if ";" in plain:
        at = plain.index(";")
        yield f"semicolon after …{plain[max(0, at - 40) : at]!r}"
    yield from metaphors(plain)
    for sentence in SENTENCE.split(plain):
        words = sentence.split()
        if words and words[0] == "What":
            yield f"begins with 'What': {' '.join(words[:8])}…"
        if len([word for word in words if re.search(r"\w", word)]) > MAX_WORDS:
            yield f"{len(words)} words: {' '.join(words[:8])}…"


LITERAL = re.compile(r"^ {4,}.*\n?|^.*(?:\S {3,}|[├└│]).*\n?", re.MULTILINE)
"""Tables and formulas in the docstring of a module."""

EXAMPLES = re.compile(
    r"^Examples:\n(?: .*\n?|\n)*| *(?:>>>|\.\.\.) .*|^ {4,}.* = \(.*$", re.MULTILINE
)
"""Examples, and formulas, in other docstrings."""


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a module and of its members, without examples, tables and formulas."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            is_module = isinstance(node, ast.Module)
            text = ast.get_docstring(node, clean=not is_module) or ""
            yield (LITERAL if is_module else EXAMPLES).sub("", text)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            first = tree.body[0] if tree.body else None
            if isinstance(node.value.value, str) and node is not first and node in tree.body:
                yield node.value.value


def messages(path: Path) -> Iterator[str]:
    """Sentences that a program shows: strings of four words or more that document nothing."""
    tree = ast.parse(path.read_text("utf-8"))
    documents = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and node not in documents else None
        if isinstance(text, str) and len(text.split()) > 3:
            yield prose(text)


def metaphors(text: str) -> Iterator[str]:
    """Every avoided word, with a better one."""
    for word, better in AVOIDED.items():
        if re.search(rf"\b{word}\b", text, re.IGNORECASE):
            yield f"{word!r}: write {better!r}"


def paragraphs(path: Path) -> Iterator[str]:
    """The prose of a page, without code blocks and tables' rules."""
    yield re.sub(r"(?m)^\|.*$|^ {4}.*$", "", path.read_text("utf-8"))


def found(path: Path) -> list[str]:
    texts = docstrings(path) if path.suffix == ".py" else paragraphs(path)
    return [fault for text in texts for fault in faults(text)]


FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("core/**/*.py", "plugins/**/*.py", "docs/**/*.md", "*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md" and "results" not in path.parts
)


@pytest.mark.parametrize("name", FILES)
def test_prose_follows_the_rules(name: str) -> None:
    breaches = found(ROOT / name)
    if name in PENDING:
        assert breaches, f"{name} follows the rules now: take it off prose_pending.txt"
        pytest.skip("not revised yet")
    assert breaches == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_messages_have_no_metaphors(name: str) -> None:
    assert [fault for text in messages(ROOT / name) for fault in metaphors(text)] == []


def test_pending_files_exist() -> None:
    assert sorted(PENDING) == [name for name in FILES if name in PENDING]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It stands; it falls.", "semicolon"),
        ("What came of it.", "begins with 'What'"),
        ("The site deals images.", "'deals'"),
        ("word " * 26 + "end.", "27 words"),
    ],
)
def test_breaches_are_found(text: str, words: str) -> None:
    assert any(words in fault for fault in faults(text))
    assert not list(faults("The site refuses a run. It writes `a; b` to its log."))


ARCHITECTURE = """
A Dataset states its Task. A Partitioner splits it over sites. Each site trains a Model with a
Trainer under a Privatizer. An Aggregator sums the sites' releases. An Engine carries the messages.
"""


@pytest.mark.parametrize(
    "path",
    [
        "README.md", "docs/concepts.md", "docs/design.md", "docs/glossary.md",
        "core/cohortium/roles/__init__.py",
    ],
)  # fmt: skip
def test_architecture_is_one_sentence_everywhere(path: str) -> None:
    text = (ROOT / path).read_text("utf-8").replace("*", "")
    assert " ".join(ARCHITECTURE.split()) in " ".join(text.split())
