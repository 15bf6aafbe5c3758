"""Report of a run: its folder as one self-contained page.

It is for people who decide.

    from cohortium import reporting

    html = reporting.render([reporting.read(Path("runs/first"))])

It reads only `study.toml`, `events.jsonl`, `result.json` and examples of masks, and loads no
plugin. Neither the writer of the page nor the page uses a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.reporting.local_page import LocalPage
from cohortium.reporting.pages import render
from cohortium.reporting.reading import Record, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Record", "read", "render", "write"]


_PAGE = LocalPage("cohortium", "report; give another file with --out")


def write(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        folders: Of the runs.
        out: The file. By default `report.html` in the folder of a single run.

    Returns:
        The path of the report.

    Raises:
        RequestError: Nothing can be written at `out`, or a file is there that is no report.
        RecordError: A folder is missing or damaged.
        RunError: The file cannot be written.
    """
    if out is not None:
        _PAGE.check(out)
    page = render([read(folder) for folder in folders])
    target = folders[0] / "report.html" if out is None else out
    _PAGE.write(target, page)
    return target
