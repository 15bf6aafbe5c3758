"""The page of an adapted model, for the people of its hospital alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cohortium.inference.personal import Personal, read_adaptation
from cohortium.reporting.local_page import LocalPage
from cohortium.reporting.pages import template_environment

if TYPE_CHECKING:
    from pathlib import Path

_PAGE: Final = LocalPage(
    "cohortium adapt", "page of an adapted model; give another file with --out"
)


def write_personal_page(folder: Path, out: Path | None) -> tuple[Path, Personal]:
    """Write the page of an adapted model, readable by its owner alone.

    Args:
        folder: Folder of the model, which is marked.
        out: The page. By default `report.html` in the folder.

    Returns:
        The path of the page, and the reason why the model must not leave the hospital.

    Raises:
        DataError: The record in the folder is damaged.
        RequestError: Nothing can be written at `out`, or another file is there.
        RunError: The file cannot be written.
    """
    found = read_adaptation(folder)
    assert found is not None, "the folder is marked"
    target = folder / "report.html" if out is None else out
    _PAGE.check(target)
    personal = Personal.adapted(found)
    page = (
        template_environment()
        .get_template("personal.html")
        .render(found=found, personal=personal, folder=folder.name)
    )
    _PAGE.write(target, page)
    return target, personal
