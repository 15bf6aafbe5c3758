"""The report's content, and the reading of a record that anyone may have written."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium import reporting
from cohortium.errors import RecordError
from cohortium.privacy.guarantee import Guarantee
from cohortium.reporting import content
from cohortium.reporting.differing import study_differences
from cohortium.reporting.figures import MIN_GAP, Axis, Line, Plot
from cohortium.reporting.parties import PartyInputs, conditions, party_views
from cohortium.reporting.terms import Terms
from cohortium.reporting.wording import max_detection_rate, max_likelihood_ratio, one_in
from cohortium.roles.values import AggregationGuarantee
from cohortium_gaussian import Gaussian
from cohortium_secagg import SecAgg
from tests.support.federations import FaultyEngine, tiny_federation
from tests.support.hostile_record import poison


def lossy(count: int, site: int, reply: bytes) -> bytes | None:
    """Site 2 shares no keys in round 1, site 4 does not help to unmask, site 1 talks nonsense."""
    if (count, site) in ((0, 2), (3, 4)):
        return None
    return b"nonsense" if (count, site) == (6, 1) else reply


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with dropouts, privacy and secure sums."""
    path = tmp_path_factory.mktemp("report") / "run"
    tiny_federation(
        privatizer=Gaussian(unit="site", epsilon=8.0),
        aggregator=SecAgg(reconstruction_threshold=3),
        engine=FaultyEngine(lossy),
        rounds=3,
    ).run(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


class Page(HTMLParser):
    """The tags of a page, the values of its data elements, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[float] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag == "data":
            value = dict(attrs)["value"]
            if value != "None":
                self.values.append(float(value or "nan"))

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(*folders: Path) -> Page:
    return Page(reporting.render([reporting.read(folder) for folder in folders]))


def test_page_numbers_match_result(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    page = page_of(folder)
    scores = result["scores"]
    wanted = [*scores["metrics"].values()]
    wanted += [result["calibration_error"], result["guarantee"]["epsilon"]]
    wanted += [row["metrics"]["sensitivity"] for row in scores["per_class"]]
    wanted += [row["metrics"]["specificity"] for row in scores["per_class"]]
    assert set(wanted) <= set(page.values)
    assert f"{100 * scores['metrics']['accuracy']:.1f}" in page.words
    assert result["weights_sha256"] in page.words
    for version in result["versions"].values():
        assert version in page.words


def test_dropouts_are_reported_with_outcome(folder: Path) -> None:
    page = page_of(folder)
    assert "Left out before anyone had masked with it." in page.words
    assert "Counted; masks came off in unmasking with the others’ shares." in page.words
    assert "Left out; masks that others shared with it came off in unmasking." in page.words
    assert "expected a Reply or Refusal message" in page.words


def test_several_runs_show_where_their_studies_differ(folder: Path, tmp_path: Path) -> None:
    tiny_federation(rounds=2).run(tmp_path / "other")
    page = page_of(folder, tmp_path / "other")
    assert "2 runs side by side" in page.words
    assert "federation.rounds" in page.words
    assert "privatizer.name" in page.words
    assert "federation.seed" not in page.words
    same = page_of(folder, folder)
    assert "Nothing: the studies are the same" in same.words


def test_settings_differ_by_key_and_absence() -> None:
    one = {"model": {"name": "a", "width": 4, "options": {"x": True}}, "engine": {"name": "e"}}
    two = {"model": {"name": "b", "options": {"x": False}}, "engine": {"name": "e"}}
    assert study_differences([one, two]) == {
        "model.name": ("a", "b"),
        "model.width": ("4", ""),
        "model.options.x": ("true", "false"),
    }


def test_unfinished_run_is_reported_so_far(copy: Path) -> None:
    (copy / "result.json").unlink()
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b"RunCompleted" not in line]
    (copy / "events.jsonl").write_bytes(b"".join(kept)[:-20])
    record = reporting.read(copy)
    assert (record.state, len(record.rounds)) == ("unfinished", 2)
    page = page_of(copy)
    assert "This run is not finished." in page.words
    assert "2 of 3 rounds are done" in page.words
    assert "Confusion" not in page.words


def test_failed_run_report_states_reason(copy: Path) -> None:
    (copy / "result.json").unlink()
    text = (copy / "events.jsonl").read_text().splitlines()[:-1]
    text.append(json.dumps({"event": "RunFailed", "time": 1.0, "reason": "the roof fell in."}))
    (copy / "events.jsonl").write_text("\n".join(text) + "\n")
    page = page_of(copy)
    assert "This run failed after 3 of 3 rounds: the roof fell in." in page.words


def test_run_without_events_is_reported_from_result(copy: Path) -> None:
    (copy / "events.jsonl").unlink()
    page = page_of(copy)
    assert "There is no events.jsonl in this folder" in page.words
    assert "Accuracy and AUC by round" in page.words


def test_resumed_run_is_reported_as_one(copy: Path) -> None:
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    again = [lines[0], *(line for line in lines if b'"round": 2' in line), lines[-1]]
    (copy / "events.jsonl").write_bytes(b"".join(lines[:-1] + again))
    assert [event.round for event in reporting.read(copy).rounds] == [0, 1, 2]


def spoil(name: str, change: Any) -> Any:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return act


def edited(**changes: Any) -> Any:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def rescored(**changes: Any) -> Any:
    def change(data: bytes) -> bytes:
        result = json.loads(data)
        result["scores"] |= {k: v for k, v in changes.items() if k in result["scores"]}
        metrics = {k: v for k, v in changes.items() if k not in result["scores"]}
        result["scores"]["metrics"] |= metrics
        return json.dumps(result).encode()

    return change


def first_line(**changes: Any) -> Any:
    def change(data: bytes) -> bytes:
        head, _, rest = data.partition(b"\n")
        return json.dumps(json.loads(head) | changes).encode() + b"\n" + rest

    return change


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (shutil.rmtree, "does not exist; give the folder that `cohortium run` printed"),
        (lambda folder: (folder / "study.toml").unlink(), "holds no run"),
        (spoil("study.toml", lambda data: b"\xff" + data), "not a text file in UTF-8"),
        (spoil("study.toml", lambda data: data[:-9] + b"= ="), "is not valid TOML"),
        (spoil("study.toml", lambda data: b"a = 1\n" + data), "a study consists of tables"),
        (
            spoil("study.toml", lambda data: data.replace(b"sites = 6", b"sites = 'x'")),
            "[federation] is damaged",
        ),
        (
            spoil("study.toml", lambda data: data.replace(b"sites = 6", b"sites = 99999999")),
            "[federation] is damaged",
        ),
        (spoil("result.json", lambda data: data[:-30]), "result.json is damaged"),
        (spoil("result.json", lambda data: b"[]"), "result.json is damaged"),
        (spoil("result.json", lambda data: b"[" * 100_000), "result.json is damaged"),
        (spoil("result.json", edited(rounds="three")), "result.json is damaged"),
        (spoil("result.json", rescored(confusion=[[1, 2]])), "its confusion matrix is not square"),
        (
            spoil("result.json", rescored(accuracy=7.9)),
            "its scores are outside the range of scores",
        ),
        (spoil("result.json", rescored(auc=-0.1)), "its scores are outside the range of scores"),
        (
            spoil("result.json", rescored(accuracy=0.987654)),
            "accuracy is not that of its confusion",
        ),
        (spoil("result.json", edited(weights_sha256="00")), "events of one run and the result of"),
        (spoil("events.jsonl", lambda data: b"no\n" + data), "events.jsonl line 1 is damaged"),
        (spoil("events.jsonl", first_line(sites=[1])), "events.jsonl line 1 is damaged"),
        (spoil("events.jsonl", first_line(site_sizes=[1])), "label histograms do not fit"),
        (
            spoil("events.jsonl", first_line(label_histograms=[[1, 2], [3]])),
            "histograms do not fit",
        ),
    ],
)
def test_damaged_record_gives_one_sentence(copy: Path, act: Any, words: str) -> None:
    act(copy)
    with pytest.raises(RecordError, match=r"^[^\n]+\.$") as error:
        reporting.read(copy)
    assert words in str(error.value)


def test_folder_with_only_study_is_refused(copy: Path) -> None:
    for name in ("result.json", "events.jsonl"):
        (copy / name).unlink()
    with pytest.raises(RecordError, match="neither a result nor a first event"):
        reporting.read(copy)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(["study.toml", "events.jsonl", "result.json"]),
    where=st.floats(0, 1),
    put=st.binary(min_size=1, max_size=4)
    | st.sampled_from([b"null", b"-1", b"1e999", b"true", b"[]", b"NaN", b'"', b"9" * 400]),
    over=st.integers(0, 6),
)
def test_damaged_record_renders_or_is_refused(  # noqa: PLR0917
    folder: Path, tmp_path: Path, name: str, where: float, put: bytes, over: int
) -> None:
    target = tmp_path / "spoilt"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for kept in ("study.toml", "events.jsonl", "result.json"):
        data = (folder / kept).read_bytes()
        if kept == name:
            at = int(where * len(data))
            data = data[:at] + put + data[at + over :]
        (target / kept).write_bytes(data)
    with contextlib.suppress(RecordError):
        Page(reporting.render([reporting.read(target)]))


BONES = ("section", "table", "svg", "details", "h2", "h3")


def test_nothing_from_a_record_becomes_html(copy: Path, folder: Path) -> None:
    poison(copy)
    html = reporting.render([reporting.read(copy)])
    page = Page(html)
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "form", "a"}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    assert [tag for tag, _ in page.tags if tag == "link"] == ["link"]
    assert "alert(1)" in page.words
    assert "49" not in page.words.split("`")[1][:3]
    assert "\u202e" not in html
    # One page has the same bones as the other, whatever the words are.
    bones = [tag for tag in page_of(folder).tags if tag[0] in BONES]
    assert [tag for tag in page.tags if tag[0] in BONES] == bones
    both = Page(reporting.render([reporting.read(copy), reporting.read(folder)]))
    assert not {tag for tag, _ in both.tags} & {"script", "img", "iframe", "object", "form", "a"}


def guarantee(**changes: Any) -> Guarantee:
    base = Guarantee(
        epsilon=2.0, delta=1e-5, epsilon_at_1e_5=2.0, unit="example", adjacency="zero-out",
        against="everyone", accountant="prv", noise_multiplier=1.0,
    )  # fmt: skip
    return evolve(base, **changes)


HIDDEN = AggregationGuarantee(min_contributors=4, reconstruction_threshold=4, max_dropouts=1)
SHARED = guarantee(against="coordinator", colluding=2, honest=3)


@pytest.mark.parametrize(
    ("facts", "said", "unsaid"),
    [
        (
            PartyInputs(terms=Terms(sites=10, rounds=2), guarantee=None, aggregation=None),
            [
                ("Every release of every hospital", "All that its releases tell", "No bound"),
                ("only the two contribute", "No bound"),
                ("sees them anyway", "No bound"),
                ("then each release", "No bound"),
            ],
            ["Bounded"],
        ),
        (
            PartyInputs(terms=Terms(sites=10, rounds=2), guarantee=guarantee(), aggregation=HIDDEN),
            [
                ("follows the protocol", "a sum over 4 hospitals or more.", "any one image"),
                ("3 other hospitals or more", "Bounded"),
                ("max_colluding = 0", "4 holders of shares", "However many they are"),
                ("those are masked", "Bounded"),
            ],
            ["No bound", "can choose which"],
        ),
        (
            PartyInputs(
                terms=Terms(sites=10, rounds=2, adversary="active", max_colluding=2),
                guarantee=SHARED,
                aggregation=evolve(HIDDEN, min_contributors=7),
            ),
            [
                ("may lie", "can choose which", "7 hospitals or more"),
                ("knows its own share", "3 other hospitals"),
                (
                    "2 hospitals and the coordinator",
                    "5 or more",
                    "up to 2 hospitals, and no further",
                ),
                ("sums and models only",),
            ],
            ["However many", "No bound"],
        ),
        (
            PartyInputs(
                terms=Terms(sites=10, rounds=2, insecure_seeded_secrets=True),
                guarantee=guarantee(simulation=True),
                aggregation=HIDDEN,
            ),
            [("public seed",)] * 4,
            ["Bounded", "However many"],
        ),
    ],
)
def test_party_views_follow_from_settings(
    facts: PartyInputs, said: list[tuple[str, ...]], unsaid: list[str]
) -> None:
    found = party_views(facts)
    for view, phrases in zip(found, said, strict=True):
        text = f"{view.who} {view.role} {view.sees} {view.hospital} {view.person}"
        for phrase in phrases:
            assert phrase in text
        for phrase in unsaid:
            assert phrase not in text


def test_conditions_list_guarantee_assumptions() -> None:
    terms = Terms(sites=10, rounds=2)
    promise = guarantee(assumptions=("real-valued noise",))
    honest = PartyInputs(
        terms=terms, guarantee=promise, aggregation=evolve(HIDDEN, statistical_security_bits=40)
    )
    assert any("one of 2^40 runs" in text for text in conditions(honest))
    assert "Real-valued noise." in conditions(honest)
    assert any("n images of one patient" in text for text in conditions(honest))
    assert any("follows the protocol" in text for text in conditions(honest))
    active = evolve(honest, terms=Terms(sites=10, rounds=2, adversary="active"))
    assert any("directory" in text for text in conditions(active))


@settings(deadline=None)
@given(epsilon=st.floats(0, 800), delta=st.sampled_from([0.0, 1e-9, 1e-5, 1.9e-4, 0.27, 0.3]))
def test_rounded_bounds_in_words_remain_valid(epsilon: float, delta: float) -> None:
    promise = guarantee(epsilon=epsilon, delta=delta)
    factor = max_likelihood_ratio(promise)
    if not factor.startswith("e^"):
        assert float(factor.replace(",", "")) >= math.exp(epsilon) * (1 - 1e-12)
    most = float(max_detection_rate(promise)[:-2]) / 100
    shift = math.exp(min(epsilon, 700))
    assert most >= min(shift * 0.01 + delta, 1 - (1 - delta - 0.01) / shift, 1) - 1e-12
    if delta:
        assert 1 / float(one_in(delta).removeprefix("1 in ").replace(",", "")) >= delta * (
            1 - 1e-12
        )


@settings(deadline=None)
@given(numbers=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), ticks=st.integers(2, 9))
def test_axis_covers_its_numbers_with_ticks(numbers: list[float], ticks: int) -> None:
    axis = Axis.over(numbers, ticks=ticks)
    slack = 1e-6 * max(1.0, *map(abs, numbers))
    assert axis.low <= min(numbers) + slack
    assert axis.high >= max(numbers) - slack
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert 2 <= len(axis.ticks) <= ticks + 2
    assert len({axis.text(tick) for tick in axis.ticks}) == len(axis.ticks)


@settings(deadline=None)
@given(levels=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_plot_labels_do_not_overlap(levels: list[float]) -> None:
    lines = tuple(
        Line(name=str(k), points=((1.0, level),), tone=1, label=str(k))
        for k, level in enumerate(levels)
    )
    axis = Axis(low=0, high=1, ticks=(0.0, 1.0))
    plot = Plot(title="", summary="", x=Axis.rounds(5), y=axis, lines=lines)
    places = [label.y for label in plot.labels()]
    assert all(b - a >= MIN_GAP - 1e-9 for a, b in pairwise(places))
    assert max(places) <= plot.height - plot.bottom


@pytest.mark.parametrize("last", [1, 2, 3, 7, 60, 61, 100, 1000])
def test_round_axis_spans_first_to_last(last: int) -> None:
    axis = Axis.rounds(last)
    assert axis.ticks[0] == 1
    assert axis.ticks[-1] == max(last, 2)
    assert all(tick == int(tick) for tick in axis.ticks)
    assert list(axis.ticks) == sorted(set(axis.ticks))


def test_label_distance_counts_images_with_several_labels() -> None:
    one = content.site_rows((4, 4), ((4, 0), (0, 4)))
    assert [row.distance for row in one] == [0.5, 0.5]
    several = content.site_rows((4, 4), ((4, 4), (4, 4)))
    assert [row.distance for row in several] == [0.0, 0.0]
    findings = content.site_rows((10, 10), ((10, 10, 0), (0, 10, 0)))
    assert [row.distance for row in findings] == [0.5, 0.5]
    assert [row.size for row in findings] == [10, 10]
