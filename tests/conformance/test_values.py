from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen

from cohortium.testing import ConformanceError, values
from cohortium_dpresnet import DPResNet


class Methods:
    def preprocess(self, images: Any) -> Any:
        return images

    def build(self, spec: Any, seed: int) -> Any:
        raise NotImplementedError


@frozen
class Good(Methods):
    width: int = 3
    mix: dict[str, float] = field(factory=dict)
    names: tuple[str, ...] = ("a",)


@frozen
class NoBuild:
    def preprocess(self, images: Any) -> Any:
        return images


class NoValue(Methods):
    pass


@define
class Changeable(Methods):
    width: int = 3


@frozen
class HoldsAPath(Methods):
    folder: Path = Path()


@frozen(eq=False)
class ByIdentity(Methods):
    width: int = 3


@frozen(unsafe_hash=False, eq=True)
class HashesBySelf(Methods):
    width: int = 3

    def __hash__(self) -> int:
        return id(self)


@frozen
class Unpicklable(Methods):
    width: Any = 3

    def __reduce__(self) -> Any:
        raise TypeError("no.")


@frozen
class Forgets(Methods):
    width: int = 3

    def __reduce__(self) -> Any:
        return (Forgets, (4,))


def doubled(value: float) -> float:
    return value * 2


@frozen
class Rounds(Methods):
    width: float = field(default=3.0, converter=doubled)


@frozen
class Unannotated(Methods):
    width: Missing = 3  # type: ignore[name-defined]  # noqa: F821


@frozen
class TakesTheName(Methods):
    name: str = ""


BAD = [
    (values.check_methods, NoBuild(), "no model: a model has the methods build, preprocess"),
    (values.check_frozen_value, NoValue(), "not an attrs class"),
    (values.check_frozen_value, Changeable(), "can be changed after it was made"),
    (values.check_plain_parameters, HoldsAPath(), "folder of HoldsAPath is a PosixPath"),
    (values.check_equality, ByIdentity(), "are not equal"),
    (values.check_equality, HashesBySelf(), "hash differently"),
    (values.check_pickles, Unpicklable(), "cannot be pickled"),
    (values.check_pickles, Forgets(), "is another after pickling"),
    (values.check_study_round_trip, Rounds(), "read back is"),
    (values.check_study_round_trip, Unannotated(), "does not survive a study file"),
    (values.check_study_round_trip, TakesTheName(), "a parameter of TakesTheName is called name"),
]


def call(check: Any, instance: object) -> Any:
    needs_role = check in (values.check_methods, values.check_study_round_trip)
    return check(instance, "model") if needs_role else check(instance)


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_value_fails(check: Any, bad: object, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        call(check, bad)


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _, _ in BAD))
def test_a_good_value_passes(check: Any) -> None:
    assert call(check, Good(mix={"a": 1.0})) is None


@pytest.mark.slow
def test_a_module_that_imports_torch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_plugin.py").write_text("import torch\nclass Mine: pass\n", encoding="utf-8")
    (tmp_path / "lost_plugin.py").write_text("import nowhere_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    heavy = type("Mine", (), {"__module__": "heavy_plugin"})()
    with pytest.raises(ConformanceError, match="importing heavy_plugin imports torch"):
        values.check_plugin_import(heavy)
    lost = type("Mine", (), {"__module__": "lost_plugin"})()
    with pytest.raises(ConformanceError, match="No module named 'nowhere_at_all'"):
        values.check_plugin_import(lost)
    assert values.check_plugin_import(DPResNet()) is None
    absent = type("Mine", (), {"__module__": "not_there"})()
    assert "not tried" in (values.check_plugin_import(absent) or "")


def test_the_kit_itself_needs_neither_torch_nor_pytest() -> None:
    code = "import sys, cohortium.testing; print({'torch', 'pytest'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
