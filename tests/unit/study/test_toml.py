"""TOML from anyone: what would cost a parser its time is refused before, and counted here."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium import Federation
from cohortium.errors import StudyError
from cohortium.study import toml

PARTS = {
    "bare": "a",
    "spaced": " a\t",
    "quoted": '"a b"',
    "literal": "'a'",
    "escaped": '"\\u0061"',
    "number": "1",
}


def key(part: str, count: int) -> str:
    return ".".join([part] * count)


@pytest.mark.parametrize(
    "form", ["{} = 1", "[{}]", "[[{}]]", "x = {{{} = 1}}", "x = [[[{{{}=1}}]]]"]
)
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("count", [100, 10_000])
def test_deep_dotted_key_never_reaches_parser(
    form: str, part: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(_: str) -> dict[str, Any]:
        pytest.fail("it was parsed")

    monkeypatch.setattr(tomllib, "loads", parse)
    with pytest.raises(StudyError, match=r"deeper than 16 levels|larger than 65536"):
        toml.loads(form.format(key(part, count)), where="test")
    with pytest.raises(StudyError, match=r"deeper than 16 levels|larger than 65536"):
        toml.parse(form.format(key(part, count)).removeprefix("x = "))


@given(st.lists(st.sampled_from([*PARTS.values(), "a-b", "'x.y.z'"]), min_size=1, max_size=40))
def test_dotted_key_depth_is_limited(parts: list[str]) -> None:
    text = ".".join(parts) + " = 1"
    if len(parts) < toml.MAX_LEVELS:
        assert toml.loads(text, where="test") == tomllib.loads(text)
    elif len(parts) > toml.MAX_LEVELS:
        with pytest.raises(StudyError, match="deeper than 16 levels"):
            toml.loads(text, where="test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = [" + "1," * 20_000 + "]", "holds more than 16,384 values"),
        ("\n".join(f"a{n} = 1" for n in range(4_000)) + "\nb = [" + "1," * 13_000 + "]", "16,384"),
        ("a = 9223372036854775808", "more than 64 bits"),
        ("a = [[-9223372036854775809]]", "more than 64 bits"),
        ("a = 0x" + "f" * 50_000, "more than 64 bits"),
        ("a = " + "9" * 5_000, "is not valid TOML"),
        ("a = " + "[" * 30_000, "is not valid TOML"),
        ("a = " + "{a=" * 15_000, "is not valid TOML"),
        ("a" * 201 + " = 1", "has more than 200 characters"),
        ('a = "' + "b" * 70_000 + '"', "larger than 65536 bytes"),
        ('"a\\nb" = 1', "cannot be shown"),
    ],
    ids=range(11),
)
def test_excessive_toml_is_refused(text: str, words: str) -> None:
    with pytest.raises(StudyError, match=words) as error:
        toml.loads(text, where="test")
    assert len(str(error.value)) < 300


def test_large_valid_toml_is_read() -> None:
    text = "[trainer]\nclass_weights = [" + "0.5, " * 10_000 + "]\n[a.b.c.d]\nx = 'a.b.c. d'"
    assert len(toml.loads(text, where="test")["trainer"]["class_weights"]) == 10_000


def test_unprintable_text_is_refused() -> None:
    toml.require_text({"a": ["é\u00a0x", {"b": "日本"}]}, where="test")
    for bad in ("a\nb", "\x1b", "\u202e"):
        with pytest.raises(StudyError, match="characters that cannot be shown"):
            toml.require_text({"a": [{"b": [bad]}]}, where="test")


def test_a_setting_of_many_parts_is_refused() -> None:
    with pytest.raises(StudyError, match="nested deeper"):
        Federation.read(None, [f"model.{key('a', 1_000)}=1"])
