"""Plugins each of which does its worst in one way; what a catalog may not be stopped by."""

from __future__ import annotations

import textwrap
from pathlib import Path

HEAD = """
    from attrs import frozen
    from cohortium.plugin import Offer, hookimpl
    COHORTIUM_API = 1

    @frozen
    class Even:
        width: int = 3
        def partition(self, examples, num_sites, rng):
            return []

    class Unspeakable(Exception):
        def __str__(self): raise SystemExit(4)
        __repr__ = __str__

    class BadText(str):
        def __format__(self, spec): raise GeneratorExit
        __str__ = __repr__ = __hash__ = __format__
"""


def hook(body: str) -> str:
    """A plugin whose hook's body this is."""
    return (
        textwrap.dedent(HEAD)
        + "\n@hookimpl\ndef cohortium_partitioners():\n"
        + (textwrap.indent(textwrap.dedent(body), "    "))
    )


BROKEN = {
    "exits": "raise SystemExit(3)",
    "interrupts": "raise KeyboardInterrupt",
    "closes": "raise GeneratorExit('no')",
    "groups": "raise BaseExceptionGroup('two', [SystemExit(1), KeyboardInterrupt()])",
    "own": "class Own(BaseException): pass\nraise Own('bad')",
    "unspeakable": textwrap.dedent(HEAD) + "\nraise Unspeakable",
    "escapes": "raise RuntimeError('\\x1b[2J\\x07evil\\r\\nall is in order \\u202e')",
    "bracketed": "raise RuntimeError('no [file] in [/tmp]')",
    "floods": "raise RuntimeError('x' * 10_000_000)",
    "deep": "def f(): f()\nf()",
    "mixed": textwrap.dedent(HEAD) + "\ndef __dir__(): return ['a', 3, None, b'x']",
    "dirs": textwrap.dedent(HEAD) + "\ndef __dir__(): raise KeyboardInterrupt",
    "attributes": "def __getattr__(name): raise SystemExit(name)",
    "apis": "class V:\n  def __repr__(self): raise OSError\nCOHORTIUM_API = V()",
    "hooks": hook("raise KeyboardInterrupt"),
    "midway": hook("yield Offer('midway', Even, '')\nraise GeneratorExit"),
    "endless": hook("while True: yield Offer('endless', Even, '')"),
    "nothing": hook("return 3"),
    "unnamed": hook("return [Offer(3, Even, '')]"),
    "named": hook("return [Offer(BadText('Named!'), Even, '')]"),
    "unsummed": hook("return [Offer('unsummed', Even, None)]"),
    "local": hook("return [Offer('local', Even, '', 'path')]"),
    "huge": hook("return [Offer('a' * 1_000_000, Even, '')]"),
    "unmade": hook("return [Offer('unmade', None, '')]"),
    "properties": hook(
        """
        class Sly(Offer):
            def __init__(self): pass
            @property
            def name(self): raise SystemExit(5)
        return [Sly()]
        """
    ),
}
"""Sources of plugins that cannot be used, by name."""

USABLE = {
    "markup": hook("return [Offer('markup', Even, '[/x] [red]:smile: \\x1b[31m\\nred')]"),
    "texts": hook("return [Offer('texts', Even, BadText('fine'))]"),
    "classes": hook(
        """
        class Meta(type):
            @property
            def __attrs_attrs__(cls): raise KeyboardInterrupt
            @property
            def __signature__(cls): raise SystemExit(6)
        class Sly(metaclass=Meta): pass
        return [Offer('classes', Sly, 'Looked at.')]
        """
    ),
    "defaults": hook(
        """
        class Odd:
            def __repr__(self): raise Unspeakable
        def make(*, width: int = Odd()): return Even()
        return [Offer('defaults', make, 'Odd.')]
        """
    ),
    "makes": hook(
        """
        def make(*, width: int = 3): raise KeyboardInterrupt
        return [Offer('makes', make, 'Stops.')]
        """
    ),
    "refuses": hook(
        """
        class Silent(ValueError):
            def __str__(self): raise SystemExit(1)
        def make(*, width: int = 3): raise Silent(Silent())
        return [Offer('refuses', make, 'Says nothing.')]
        """
    ),
}
"""Sources of plugins that load, and do their worst when they are looked at."""


def put(folder: Path, sources: dict[str, str], distribution: str = "acme") -> None:
    """Install plugins as one distribution in `folder`."""
    info = folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
    stem = distribution.replace("-", "_").replace(".", "_").lower()
    lines = [f"{name} = {stem}_{name}" for name in sources]
    (info / "entry_points.txt").write_text("[cohortium]\n" + "\n".join(lines))
    for name, source in sources.items():
        (folder / f"{stem}_{name}.py").write_text(source)
