"""The page of a data set: images of patients, for the people of the hospital alone.

    from cohortium.reporting.data_page import look, write_page

    facts = look(dataset, kind="folder")
    write_page(facts, Path("data.html"))

The page is one file without links to anything else. Only its owner can read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cohortium.reporting import wording
from cohortium.reporting.content import MAX_ROWS, SiteRow, mean_distance
from cohortium.reporting.data_content import DataFacts, look
from cohortium.reporting.local_page import LocalPage
from cohortium.reporting.pages import template_environment
from cohortium.reporting.thumbnails import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["DataFacts", "check_page", "look", "render_page", "summary", "write_page"]

_PAGE: Final = LocalPage("cohortium data", "page of a data set; give another file for the page")
check_page = _PAGE.check

MAX_COLUMNS: Final = 30
"""Largest number of labels that have a column in a heatmap."""


def write_page(facts: DataFacts, out: Path) -> None:
    """Write the page of a data set, readable by its owner alone.

    Raises:
        RequestError: Nothing can be written at `out`, or another file is there.
        RunError: The file cannot be written.
    """
    _PAGE.check(out)
    _PAGE.write(out, render_page(facts))


def render_page(facts: DataFacts) -> str:
    """Return the page of a data set."""
    sets = [_set(facts, "", "for training")]
    if facts.test is not None:
        sets.append(_set(facts.test, "test-", "for tests"))
    return (
        template_environment()
        .get_template("data.html")
        .render(
            facts=facts,
            sets=sets,
            most_rows=MAX_ROWS,
            sites=sets[0]["sites"],
            groups=sets[0]["groups"],
            columns=sets[0]["columns"],
            distance=mean_distance(facts.sites or facts.groups),
        )
    )


def _set(facts: DataFacts, prefix: str, purpose: str) -> dict[str, Any]:
    """Return the content of the sections of one set of images.

    Args:
        facts: The set.
        prefix: Beginning of the names of its sections.
        purpose: Use of its images, in words.
    """
    totals = [sum(counts) for counts in zip(*(row.counts for row in facts.splits), strict=True)]
    columns = sorted(sorted(range(len(totals)), key=lambda k: -totals[k])[:MAX_COLUMNS])
    return {
        "facts": facts,
        "prefix": prefix,
        "purpose": purpose,
        "totals": totals,
        "unknown": [
            sum(column)
            for column in zip(*(row.unknown for row in facts.splits if row.unknown), strict=True)
        ],
        "columns": [facts.names[k] for k in columns],
        "sites": _of_columns(facts.sites, columns),
        "groups": _of_columns(facts.groups, columns),
        "colours": [(name, COLOURS[k % len(COLOURS)]) for k, name in enumerate(facts.names[1:])]
        if facts.has_masks
        else [],
        "bars": _bars(facts),
    }


def summary(facts: DataFacts) -> list[tuple[str, str]]:
    """Return the content of a page in a few lines, each with its label."""
    rows = []
    if facts.splits:
        counts = ", ".join(f"{row.images:,} {row.name}" for row in facts.splits)
        shown = facts.names[:6]
        names = ", ".join(shown) + (", …" if len(facts.names) > len(shown) else "")
        rows = [
            ("data", f"{facts.name} ({facts.kind})"),
            ("images", counts),
            ("labels", f"{len(facts.names):,} ({names})"),
            ("size", f"{shape_text(facts.shape)}, {facts.pixel_type}"),
            ("intensities", _range_text(facts)),
        ]
        if facts.patients is not None:
            rows.append(("patients", f"{facts.patients:,}"))
        if facts.sites:
            rows.append(("sites", f"{len(facts.sites):,} simulated"))
    if facts.test is not None and facts.test.splits:
        rows.append(("test images", f"{facts.test.images:,} ({facts.test.kind})"))
    if facts.overlap:
        rows.append(("overlap", facts.overlap))
    for each in (facts,) if facts.test is None else (facts, facts.test):
        rows += [("warning", doubt) for doubt in each.doubts]
    if facts.num_refused:
        rows.append(("refused", wording.plural(facts.num_refused, "file")))
    return rows


def shape_text(shape: tuple[int, ...]) -> str:
    """Return the shape of an image for people, with its channels first."""
    channels, *size = shape
    return f"{' × '.join(map(str, size))} with {wording.plural(channels, 'channel')}"


def _range_text(facts: DataFacts) -> str:
    assert facts.intensities is not None
    seen = f"{facts.intensities.low:g} to {facts.intensities.high:g} seen"
    if facts.declared is None:
        return f"{seen}, none declared"
    return f"{seen}, {facts.declared[0]:g} to {facts.declared[1]:g} declared"


def _of_columns(rows: Sequence[SiteRow], columns: Sequence[int]) -> list[SiteRow]:
    return [
        SiteRow(
            site=row.site,
            size=row.size,
            counts=tuple(row.counts[k] for k in columns),
            distance=row.distance,
        )
        for row in rows
    ]


def _bars(facts: DataFacts) -> list[tuple[float, float, float]]:
    """Return left edge, width and height of each bar, each from 0 to 1.

    The height is the square root of the share, so that rare values can be seen.
    """
    bars: Any = () if facts.intensities is None else facts.intensities.bars
    most = max(bars, default=1.0) or 1.0
    return [(k / len(bars), 1 / len(bars), (share / most) ** 0.5) for k, share in enumerate(bars)]
