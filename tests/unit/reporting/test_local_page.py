"""Pages that replace pages of their kind, and no other file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cohortium.errors import RequestError
from cohortium.reporting.attack_page import check_attack_page
from cohortium.reporting.data_page import check_page
from cohortium.reporting.local_page import LocalPage
from cohortium.reporting.own_page import check_own_page
from cohortium.reporting.pages import template_environment
from cohortium.reporting.study_page import check_study_page

CHECKS = {
    "data": check_page, "attack": check_attack_page, "own": check_own_page,
    "study": check_study_page,
}  # fmt: skip


def head(kind: str) -> str:
    """The beginning of a page, up to its title, as its template has it."""
    whole = template_environment().get_template(f"{kind}.html")
    context = whole.new_context()
    mark = "".join(whole.blocks["mark"](context))
    return (
        f'<!DOCTYPE html>\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="{mark}">'
    )


@pytest.mark.parametrize("kind", CHECKS)
def test_page_of_its_own_kind_alone_may_be_replaced(tmp_path: Path, kind: str) -> None:
    for other in CHECKS:
        page = tmp_path / f"{other}-page.html"
        LocalPage(other, other).write(page, head(other) + "<body>" + "." * 100_000)
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        if other == kind:
            CHECKS[kind](page)
        else:
            with pytest.raises(RequestError, match="exists and is no page of"):
                CHECKS[kind](page)


def test_text_that_quotes_a_page_is_not_replaced(tmp_path: Path) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("<p>mine</p>" * 1000 + head("data"), "utf-8")
    with pytest.raises(RequestError, match="is no page of a data set"):
        check_page(notes)


def test_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "page.html"
    os.mkfifo(pipe)
    with pytest.raises(RequestError, match="is no page of a data set"):
        check_page(pipe)
