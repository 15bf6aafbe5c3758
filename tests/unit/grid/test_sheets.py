"""No word of a CSV file is a formula, and every one is read back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.storage.csv_rows import read, write

BEGINNINGS = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
    " =",
    "\u00a0=",
)
WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    st.tuples(
        st.sampled_from(["", "'", "''", "' "]), st.sampled_from(BEGINNINGS), st.text("a1;,'\"=\n")
    ).map("".join),
)


@given(rows=st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=4))
def test_csv_text_round_trips(rows: list[list[str]]) -> None:
    assert read(write(rows)) == list(rows)


@given(word=WORDS, separator=st.sampled_from(",;\t"))
def test_no_cell_begins_formula_with_any_separator(word: str, separator: str) -> None:
    text = write([["name", "share"], [word, 0.5]])
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        for cell in row:
            beginning = cell.lstrip()[:1]
            if beginning and beginning in "=+-@\uff1d\uff0b\uff0d\uff20":
                float(cell)  # a number, and nothing to run
            assert not cell.startswith(("\t", "\r", "\n"))


@pytest.mark.parametrize(
    "word", ["=cmd|' /C calc'!A0", "+1+1", "-2+3+cmd", "@SUM(1)", "\t=1", "\uff1d1"]
)
def test_formula_cell_becomes_text(word: str) -> None:
    assert write([[word]]).lstrip('"').startswith("'")


def test_numbers_stay_numbers() -> None:
    row = [-0.5, -3, 1e-7, "-0.5", "+1e-3", "a-b", "'quoted'", None]
    assert write([row]) == "-0.5,-3,1e-07,-0.5,+1e-3,a-b,'quoted',\n"
