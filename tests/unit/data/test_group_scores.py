"""Scores by centre and by group: exact on subsets, with honest intervals and a fair worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from cohortium.data.examples import Examples
from cohortium.data.group_scores import MIN_IMAGES, groupings, score_groups, worst_row
from cohortium.data.groups import MAX_VALUES, GroupColumn
from cohortium.data.predictions import Predictions
from cohortium.data.scores import GroupScore, GroupScores, Scores, interval
from cohortium.data.splits import Splits
from cohortium.plugin import DataError, Multiclass
from cohortium_multilabel import Multilabel
from cohortium_segmentation import Segmentation

COLUMNS = (GroupColumn("sex", ("f", "m")), GroupColumn("scanner", ("A", "B", "C")))


def scored(
    predictions: Predictions,
    part: Examples,
    columns: Sequence[GroupColumn],
    centres: Sequence[str],
    rng: np.random.Generator,
) -> tuple[GroupScores, ...]:
    return score_groups(evolve(predictions, groupings=groupings(part, columns, centres)), rng)


def examples(labels: Any, groups: Any = None, clients: Any = None) -> Examples:
    images = np.zeros((len(labels), 1, 4, 4), np.uint8)
    return Examples(images, np.asarray(labels), clients, None, groups)


def drawn_codes(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.integers(-1, 2, count), rng.integers(0, 3, count)], 1)


def row(images: int, score: float | None, low: float = 0.0, high: float = 1.0) -> GroupScore:
    is_known = score is not None
    return GroupScore(
        value=str(images), images=images, score=score, low=low if is_known else None,
        high=high if is_known else None,
    )  # fmt: skip


def test_multiclass_scores_equal_scikit_learn_on_subsets() -> None:
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 3, 200), drawn_codes(200, rng)
    clients = rng.integers(0, 4, 200) * 7
    predictions = Predictions(rng.dirichlet(np.ones(3), 200), labels, Multiclass(("a", "b", "c")))
    part = examples(labels, groups, clients)
    centre, sex, scanner = scored(predictions, part, COLUMNS, (), rng)
    assert [found.value for found in centre.rows] == ["0", "7", "14", "21"]
    assert [found.value for found in sex.rows] == ["f", "m", ""]
    assert [found.value for found in scanner.rows] == ["A", "B", "C"]
    called = predictions.values.argmax(1)
    for rows, codes, wanted in (
        (centre.rows, clients, [0, 7, 14, 21]),
        (sex.rows, groups[:, 0], [0, 1, -1]),
        (scanner.rows, groups[:, 1], [0, 1, 2]),
    ):
        for found, code in zip(rows, wanted, strict=True):
            chosen = codes == code
            right = accuracy_score(labels[chosen], called[chosen], normalize=False)
            assert found.images == chosen.sum()
            assert found.score == pytest.approx(right / chosen.sum(), abs=1e-12)
            assert (found.low, found.high) == interval(int(right), int(chosen.sum()))


def test_multilabel_score_equals_scikit_learn_with_interval() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (120, 2)).astype(np.int8)
    values = np.clip(labels * 0.3 + rng.random((120, 2)) * 0.7, 0, 1)
    groups = (np.arange(120) % 2)[:, None]
    task = Multilabel(("x", "y"))
    assert task.score(values, labels).main_metric == "auc"
    (found,) = scored(
        Predictions(values, labels, task), examples(labels, groups), COLUMNS[:1], (), rng
    )
    for code, each in enumerate(found.rows):
        chosen = groups[:, 0] == code
        wanted = np.mean([roc_auc_score(labels[chosen, k], values[chosen, k]) for k in (0, 1)])
        assert each.score == pytest.approx(wanted, abs=1e-12)
        assert each.low is not None
        assert each.high is not None
        assert 0 <= each.low < wanted < each.high <= 1


def masks(count: int, rng: np.random.Generator, noise: float) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.integers(0, 2, (count, 4, 4)).astype(np.uint8)
    flips = rng.random(truth.shape) < noise
    return truth, np.where(flips, 1 - truth, truth).astype(np.uint8)


@pytest.mark.slow
def test_segmentation_interval_covers_true_score() -> None:
    rng, task = np.random.default_rng(3), Segmentation(("ground", "cell"))
    truth, called = masks(4000, rng, 0.2)
    true = task.score(called, truth).main
    covered = 0
    for start in range(0, 4000, 40):
        part = slice(start, start + 40)
        codes = (np.arange(40) % 2)[:, None]
        (found,) = scored(
            Predictions(called[part], truth[part], task),
            examples(truth[part], codes), COLUMNS[:1], (), rng,
        )  # fmt: skip
        each = found.rows[0]
        assert each.low is not None
        assert each.high is not None
        covered += each.low <= true <= each.high
    assert 85 <= covered <= 100


def test_few_images_have_whole_range() -> None:
    rng, task = np.random.default_rng(4), Segmentation(("ground", "cell"))
    truth, called = masks(30, rng, 0.1)
    codes = (np.arange(30) >= MIN_IMAGES - 1).astype(np.int64)[:, None]
    (found,) = scored(
        Predictions(called, truth, task), examples(truth, codes), COLUMNS[:1], (), rng
    )
    few, many = found.rows
    assert few.images == MIN_IMAGES - 1
    assert (few.low, few.high) == (0.0, 1.0)
    assert many.low is not None
    assert many.low > 0
    assert found.worst == 1


def test_undetermined_score_has_no_interval() -> None:
    labels = np.ones((24, 1), np.int8)
    labels[::4] = 0
    codes = (np.arange(24) >= 12).astype(np.int64)[:, None]
    labels[:12] = 1
    values = np.random.default_rng(5).random((24, 1))
    (found,) = scored(
        Predictions(values, labels, Multilabel(("x",))), examples(labels, codes), COLUMNS[:1], (),
        np.random.default_rng(0),
    )  # fmt: skip
    assert (found.rows[0].score, found.rows[0].low, found.rows[0].high) == (None, None, None)
    assert found.worst is None


def test_small_row_is_worst_only_below_all_others() -> None:
    large, better = row(100, 0.8, 0.7, 0.9), row(50, 0.9, 0.8, 0.95)
    assert worst_row([large, better]) == 0
    assert worst_row([large, better, row(3, 0.1, 0.0, 0.75)]) == 0
    assert worst_row([large, better, row(3, 0.1, 0.0, 0.69)]) == 2
    assert worst_row([large, row(40, None)]) is None
    assert worst_row([row(3, 0.0), row(4, 0.5)]) is None


@given(
    shown=st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    z=st.floats(0, 10),
)
def test_the_interval_of_a_share_holds_the_share(shown: tuple[int, int], z: float) -> None:
    hits, trials = shown
    low, high = interval(hits, trials, z=z)
    assert 0 <= low <= hits / trials <= high <= 1


@pytest.mark.parametrize("per_group", [3, 12, 40])
def test_equal_groups_have_no_worst_one(per_group: int) -> None:
    labels = np.tile([0, 1], per_group)
    values = np.eye(2)[labels]
    codes = np.repeat([0, 1], per_group)[:, None]
    (found,) = scored(
        Predictions(values, labels, Multiclass(("a", "b"))), examples(labels, codes), COLUMNS[:1],
        (), np.random.default_rng(0),
    )  # fmt: skip
    assert [each.score for each in found.rows] == [1.0, 1.0]
    assert [each.high for each in found.rows] == [1.0, 1.0]
    assert (found.worst, found.is_below_all) == (None, False)


@given(
    scores=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=6
    )
)
def test_the_worst_row_scores_less_than_another(scores: list[tuple[int, float]]) -> None:
    worst = worst_row([row(images, score, score, score) for images, score in scores])
    assert worst is None or scores[worst][1] < max(score for _, score in scores)


def test_one_centre_or_too_many_give_no_rows() -> None:
    labels = np.arange(70) % 2
    predictions = Predictions(np.eye(2)[labels], labels, Multiclass(("a", "b")))
    rng = np.random.default_rng(0)
    for clients in (np.zeros(70, np.int64), np.arange(70)):
        assert scored(predictions, examples(labels, None, clients), (), (), rng) == ()
    unknown = np.full((70, 2), -1)
    assert scored(predictions, examples(labels, unknown), COLUMNS, (), rng) == ()


def test_column_called_centre_replaces_the_centres() -> None:
    part = examples(np.arange(6) % 2, np.arange(6)[:, None] % 2, np.arange(6) // 2)
    (found,) = groupings(part, (GroupColumn("centre", ("north", "south")),), ())
    assert (found.name, found.is_centre, found.values) == ("centre", False, ("north", "south"))


@given(st.data())
def test_selection_keeps_groups_with_their_images(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    groups = np.stack([np.arange(count) % 2, np.arange(count) % 3], 1)
    whole = Examples(images, np.arange(count), np.arange(count), None, groups)
    index = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), np.int64)
    part = whole.select(index)
    assert part.groups is not None
    numbers = part.images[:, 0, 0, 0]
    np.testing.assert_array_equal(part.groups, groups[numbers])
    again = part.select(np.arange(len(index))[::-1])
    assert again.groups is not None
    np.testing.assert_array_equal(again.groups, groups[numbers][::-1])


def test_groups_do_not_change_fingerprint() -> None:
    plain = examples([0, 1])
    assert evolve(plain, groups=np.zeros((2, 1), np.int64)).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (np.zeros((2, 1), np.int64), "1 columns of groups, and 2 are named"),
        (np.full((2, 2), -2), "codes from -2 to -2"),
        (np.full((2, 2), 2), "codes from 2 to 2 in the groups of 'sex', which has 2 values"),
    ],
)
def test_splits_refuse_codes_without_names(groups: np.ndarray, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Splits(
            name="x", task=Multiclass(("a", "b")), train=examples([0, 1], groups), groups=COLUMNS
        )


def test_splits_refuse_centres_without_names() -> None:
    with pytest.raises(DataError, match="of centres 0 to 1, and 1 centres have a name"):
        Splits(
            name="x", task=Multiclass(("a", "b")),
            train=examples([0, 1], None, np.array([0, 1])), centres=("north",),
        )  # fmt: skip


def test_columns_bound_values_and_names() -> None:
    GroupColumn("age", tuple(map(str, range(MAX_VALUES))))
    for name, values in (
        ("age", tuple(map(str, range(MAX_VALUES + 1)))),
        ("age", ("", "a")),
        ("age", ("a", "a")),
        ("age", ("a\x1b",)),
        ("", ("a",)),
    ):
        with pytest.raises(ValueError, match=r"value|name"):
            GroupColumn(name, values)


def test_impossible_stored_groups_are_refused() -> None:
    labels = np.arange(40) % 2
    predictions = Predictions(np.eye(2)[labels], labels, Multiclass(("a", "b")))
    found = scored(
        predictions, examples(labels, None, np.arange(40) % 2), (), (), np.random.default_rng(0)
    )
    scores = evolve(predictions.scores, groups=found)
    assert not scores.inconsistency

    def fault(**changed: Any) -> str:
        altered: Scores = evolve(scores, groups=(evolve(found[0], **changed),))
        return altered.inconsistency

    assert "outside the range" in fault(rows=(row(20, 1.5),))
    assert "wrong order" in fault(rows=(row(20, 0.5, 0.9, 0.1),))
    assert "no score" in fault(worst=7)
    assert "no score" in fault(rows=(row(20, None),), worst=0)
