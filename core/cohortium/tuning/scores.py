"""Scores of candidates, the choice by them, and the result of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from cohortium.data.scores import DECIMALS, metric_name
from cohortium.privacy.guarantee import rounded_up
from cohortium.runs.result import StoredResult
from cohortium.text import escape_markdown
from cohortium.tuning.plain import as_plain
from cohortium.tuning.prices import TuningPlan

LOST = "the final run's evaluation did not finish: its ε counts as spent, and it has no score"
"""Sentence about an evaluation that is lost, without its full stop."""


@frozen(kw_only=True)
class CandidateScore:
    """Score of one candidate.

    Attributes:
        run: Name of its folder.
        candidate: Name of its settings.
        metric: Name of the task's main metric.
        value: The score, or None if the run failed or the noise left none.
        low: Lower end of the 95 % interval, or None for public images.
        high: Its upper end.
        rounds: Rounds that it completed.
        failure: The reason of a failure, or "".
    """

    run: str
    candidate: str
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    failure: str = ""

    def __str__(self) -> str:
        """Return the score for people."""
        if self.value is None:
            return f"failed: {self.failure}" if self.failure else "hidden by the noise"
        told = f"{metric_name(self.metric)} {self._shown(self.value)}"
        if self.low is None or self.high is None:
            return told
        return f"{told} (95 %: {self._shown(self.low)} to {self._shown(self.high)})"

    def _shown(self, value: float) -> str:
        return f"{value:.4f}" if self.metric in DECIMALS else f"{value:.2%}"


@frozen(kw_only=True)
class Choice:
    """Choice of a search.

    Attributes:
        chosen: Name of the chosen settings.
        scores: Score of each candidate, in the order of their runs.
    """

    chosen: str
    scores: tuple[CandidateScore, ...]

    @classmethod
    def of(cls, scores: tuple[CandidateScore, ...]) -> Choice | None:
        """Return the choice of the best score, or None if no candidate has one.

        Guarantees:
            The choice is a function of the scores alone.  So it costs no privacy beyond them.
        """
        scored = [each for each in scores if each.value is not None]
        if not scored:
            return None
        best = max(scored, key=lambda each: each.value or 0.0)
        return cls(chosen=best.candidate, scores=scores)


@frozen(kw_only=True)
class TuningResult:
    """Result of a search and of its final run.

    Attributes:
        plan: The plan, with the price of everything.
        choice: Scores and choice.
        final: Result of the final run, whose guarantee covers the search.
        is_evaluation_lost: Whether the final run's evaluation has no score and cannot have one,
            because its attempts are spent.  The prices count it.
        folder: Folder of the search.
    """

    plan: TuningPlan = field(repr=False)
    choice: Choice
    final: StoredResult = field(repr=False)
    is_evaluation_lost: bool = False
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """Return the content of the search's `result.json`."""
        guarantee = self.final.guarantee
        told: dict[str, Any] = as_plain(
            {
                "chosen": self.choice.chosen,
                "scored_on": self.plan.scored_on,
                "scores": self.choice.scores,
                "candidates": len(self.plan.drawn),
                "counted": self.plan.counted,
                "number": self.plan.number,
                "rounds": self.plan.rounds,
                "prices": self.plan.prices,
                "guarantee": None if guarantee is None else attrs.asdict(guarantee),
                "final": {
                    "folder": "final",
                    "rounds": self.final.rounds,
                    "weights_sha256": self.final.weights_sha256,
                    "scores": None if self.final.scores is None else self.final.scores.metrics,
                    "is_evaluation_lost": self.is_evaluation_lost,
                },
            }
        )
        return told

    def markdown(self) -> str:
        """Return a page for people: what was searched, how it was scored, and the guarantee."""
        lines = [
            f"# Search: {_plain(self.choice.chosen)}\n",
            f"Candidates: {len(self.plan.drawn)}, of {self.plan.rounds} rounds each.",
            f"The guarantee counts {self.plan.counted}.",
            f"Scored by {_plain(self.plan.scored_on)}.\n",
            "| candidate | score | rounds |",
            "| --- | --- | --- |",
        ]
        for each in self.choice.scores:
            mark = " (chosen)" if each.candidate == self.choice.chosen else ""
            lines.append(
                f"| {_plain(each.candidate)}{mark} | {_plain(str(each))} | {each.rounds} |"
            )
        lines += [
            "",
            "| images | search | final run | both, composed |",
            "| --- | --- | --- | --- |",
        ]
        for price in self.plan.prices:
            final = rounded_up(price.final) if price.final else "none"
            lines.append(f"| {price.images} | {rounded_up(price.search)} | {final} | {price} |")
        lines += ["", f"Guarantee of the final model: {self.final.guarantee}.", ""]
        if self.is_evaluation_lost:
            lines += [f"{LOST.capitalize()}.", ""]
        return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a text of a study for a cell of a Markdown table."""
    return escape_markdown(text).rstrip(".")
