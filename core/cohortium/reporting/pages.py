"""Rendering of records as HTML.

Every value that a template shows is escaped.
"""

from __future__ import annotations

import datetime as dt
import shlex
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohortium.catalog.provenance import file_digest
from cohortium.data.scores import columns_of, metric_name
from cohortium.reporting import content, plots, wording
from cohortium.reporting.at_sites import site_evaluation
from cohortium.reporting.differing import study_differences
from cohortium.reporting.mask_pictures import mask_pictures
from cohortium.reporting.parties import PartyInputs, conditions, party_views
from cohortium.reporting.thumbnails import COLOURS
from cohortium.study.study import STUDY_ROLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment

    from cohortium.data.scores import ClassScores
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.privacy.membership import MembershipBound
    from cohortium.reporting.parties import PartyView
    from cohortium.reporting.reading import Record


def render(records: Sequence[Record]) -> str:
    """Return the page of one run, or of several side by side."""
    environment = template_environment()
    if len(records) == 1:
        return environment.get_template("run.html").render(run=_run(records[0], "run"))
    names = tuple(chr(ord("A") + k) if k < 26 else str(k + 1) for k in range(len(records)))  # noqa: PLR2004
    runs = [_run(record, name) for record, name in zip(records, names, strict=True)]
    for run, label in zip(runs, _labels(records), strict=True):
        run["label"] = label
    return environment.get_template("runs.html").render(
        runs=runs,
        settings=study_differences([record.study for record in records]),
        metrics=tuple(dict.fromkeys(name for record in records for name in record.metrics)),
        accuracies=plots.accuracies(records, names),
        epsilon=plots.side_by_side(records, names, "epsilon"),
        classes=_classes(records),
        class_score=_class_score(records),
    )


def _labels(records: Sequence[Record]) -> list[str]:
    """Return the folders' names, with enough parent folders to distinguish them."""
    parts = [record.folder.resolve().parts for record in records]
    depth = next((d for d in range(1, 9) if len({p[-d:] for p in parts}) == len(parts)), 1)
    return ["/".join(p[-depth:]) for p in parts]


def template_environment() -> Environment:
    """Return the templates, which escape every value."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cohortium.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    for name in ("percent", "decimal", "count", "bound", "size", "duration", "plural", "one_in"):
        environment.filters[name] = getattr(wording, name)
    environment.tests["known"] = wording.is_known
    environment.filters["metric_name"] = metric_name
    environment.filters["metric"] = wording.metric
    environment.filters["number"] = wording.number
    environment.filters["tick"] = "{:g}".format
    environment.filters["groupby_views"] = _by_views
    return environment


def _printable(value: Any) -> Any:
    """Return a text without control characters.

    A control character in a record could reverse the direction of a line.
    """
    if type(value) is not str or value.isprintable():
        return value
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _is_control(letter) else letter for letter in value
    )


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter != "\n"


def _run(record: Record, name: str) -> dict[str, Any]:
    """Return the values of a run that the templates show."""
    scores, facts = record.scores, PartyInputs.of(record)
    started = record.started
    sites = (
        ()
        if started is None
        else content.site_rows(started.site_sizes or (), started.label_histograms or ())
    )
    found = content.lost_contributions(record)
    return {
        "name": name,
        "record": record,
        "title": _title(record),
        "began": _date(record.began),
        "scores": scores,
        "main_metric": record.main_metric,
        "row_metrics": record.metrics,
        "state_columns": record.state_columns,
        "metric": "accuracy" if scores is None else metric_name(scores.main_metric),
        "columns": () if scores is None else columns_of(scores.per_class),
        "means": {} if scores is None else content.means(scores),
        "background": scores.per_class[0].name
        if scores is not None and content.has_masks(scores) and scores.per_class[1:]
        else "",
        "masks": mask_pictures(record.folder),
        "colours": [
            (row.name, COLOURS[k % len(COLOURS)])
            for k, row in enumerate(() if scores is None else scores.per_class[1:])
        ],
        "own": None if record.result is None else record.result.own,
        "held": content.held_out_rows(record.site_scores),
        "is_personal": record.is_personal,
        "headline": _headline(record),
        "images": None if scores is None else scores.images,
        "interval": None if scores is None else content.accuracy_interval(scores),
        "classes": () if scores is None else content.class_rows(scores),
        "roc": None if scores is None else plots.roc(scores),
        "groups": () if scores is None else scores.groups,
        "bins": () if scores is None else content.bin_rows(scores),
        **guarantee_values(record.guarantee, record.membership),
        "views": party_views(facts),
        "conditions": conditions(facts),
        "learning": plots.learning(record),
        "spending": plots.spending(record),
        "sites": sites,
        "most_in_cell": max((n for row in sites for n in row.counts), default=1) or 1,
        "most_at_site": max((row.size for row in sites), default=1) or 1,
        "distance": content.mean_distance(sites),
        "lost_contributions": found,
        "lost_kinds": Counter((loss.stage, loss.outcome) for loss in found).most_common(),
        "lost_asked": sum(len(e.contributors) + len(e.dropped) for e in record.rounds),
        "costs": content.costs(record),
        "moved": content.bytes_moved(record),
        "most_rows": content.MAX_ROWS,
        "command": _command(record),
        "evaluation": site_evaluation(record),
        "parts": _parts(record),
        "codes": _codes(record),
    }


def guarantee_values(
    guarantee: Guarantee | None, bounds: Sequence[MembershipBound]
) -> dict[str, Any]:
    """Return the values of a guarantee that the templates show.

    Args:
        guarantee: The guarantee, or None without privacy.
        bounds: Bounds on membership attacks, or none.
    """
    if guarantee is None:
        return {"guarantee": None, "unit": None, "factor": None, "detection": ()}
    return {
        "guarantee": guarantee,
        "unit": wording.UNITS[guarantee.unit],
        "factor": wording.max_likelihood_ratio(guarantee),
        "detection": wording.detection_rates(guarantee, bounds),
    }


def _title(record: Record) -> str:
    model = record.study.get("model", {}).get("name", "?")
    own = record.provenance.get("model", {}).get("class", "")
    # A name such as "module" does not say whose network it is.
    return f"{own if own not in ('', model) else model} on {record.data}"


def _headline(record: Record) -> float | None:
    """Return the accuracy that counts.

    If sites use networks of their own, it is the accuracy of those networks.
    """
    if not record.is_personal:
        scores = record.scores
        return None if scores is None else scores.metrics[scores.main_metric]
    own = None if record.result is None else record.result.own
    return None if own is None else own.personal_score


def _codes(record: Record) -> list[tuple[str, Mapping[str, str], str]]:
    """Return code without a plugin: part, record, and present state."""
    found = []
    for part, told in record.provenance.items():
        was, file = told.get("sha256", ""), told.get("file", "")
        now = file_digest(Path(file)) if was and file else ""
        state = "unknown" if not was else "gone" if not now else "same" if now == was else "changed"
        found.append((part, told, state))
    return found


def _date(moment: float | None) -> str:
    if moment is None:
        return ""
    try:
        return dt.datetime.fromtimestamp(moment, tz=dt.UTC).strftime("%d %B %Y, %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return ""


def _command(record: Record) -> str:
    path = shlex.quote(str(record.folder / "study.toml"))
    return f"cohortium run {path} --out {shlex.quote(record.folder.name + '-again')}"


def _parts(record: Record) -> list[tuple[str, str, str]]:
    """Return role, name and plugin of each part."""
    made = {} if record.result is None else record.result.plugins
    found: list[tuple[str, str, str]] = []
    for role, table in record.study.items():
        if role in STUDY_ROLES:
            name, plugin = str(table.get("name", "")), made.get(role, "")
            found.append((role, name, "" if plugin == name else plugin.removeprefix(f"{name} ")))
    return found


def _by_views(
    runs: Sequence[dict[str, Any]],
) -> list[tuple[tuple[PartyView, ...], list[dict[str, Any]]]]:
    """Group runs that have the same views and conditions."""
    groups: dict[tuple[tuple[PartyView, ...], tuple[str, ...]], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["views"], run["conditions"]), []).append(run)
    return [(found, group) for (found, _), group in groups.items()]


def _first(row: ClassScores) -> float | None:
    """Return the first score of a class: its sensitivity, or the like."""
    return next(iter(row.metrics.values()), None)


def _class_score(records: Sequence[Record]) -> str:
    """Return the name of the first score of each class, or a word for several of them."""
    names = {
        name
        for record in records
        if record.scores is not None
        for row in record.scores.per_class[:1]
        for name in list(row.metrics)[:1]
    }
    if len(names) > 1:
        return "First score"
    name = metric_name(next(iter(names), "sensitivity"))
    return name[:1].upper() + name[1:]


def _classes(
    records: Sequence[Record],
) -> list[tuple[str, list[tuple[str, list[float | None]]]]]:
    """Return sensitivities by data set and class, one for each run.

    Classes of two data sets may share a name.
    """
    found: dict[str, dict[str, list[float | None]]] = {}
    for number, record in enumerate(records):
        for row in record.scores.per_class if record.scores is not None else ():
            known = found.setdefault(record.data, {})
            known.setdefault(row.name, [None] * len(records))[number] = _first(row)
    return [(data, list(rows.items())) for data, rows in found.items()]
