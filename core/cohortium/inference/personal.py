"""Models that must not leave a hospital, and the file that marks their folders.

No guarantee covers such a model: it was trained on the hospital's images, and has never been
released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import attrs
import msgspec
from attrs import field, frozen

from cohortium.data.scores import metric_name
from cohortium.errors import DataError
from cohortium.learning.candidates import STRICT, Candidate, Kind, Unchosen
from cohortium.learning.local_only import DIVERGED
from cohortium.privacy.guarantee import Guarantee  # noqa: TC001 - decoded by its type
from cohortium.runs.personal_mark import PERSONAL, is_personal
from cohortium.storage.bounded_read import read_bounded
from cohortium.storage.plain_json import decode_json

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 2

MAX_BYTES: Final = 1 << 24
"""Largest size of that file."""

Start = Literal["global", "own"]
"""The network of which an adapted one began: the run's, or the site's own of the run's trainer."""


@frozen(kw_only=True)
class Adaptation:
    """Record of a fine-tuning at a hospital, without the images.

    Attributes:
        start: The network that it began with.
        start_weights_sha256: SHA-256 of that network's weights.
        weights_sha256: SHA-256 of the result's.
        start_guarantee: Guarantee of the run, which covers the global network alone.
        learn: Parameters that learned.
        max_epochs: Most epochs.
        learning_rate: Learning rate.
        batch_size: Images in a batch.
        pull: Strength of the pull towards the start.
        margin: Number of standard errors by which a candidate had to be better.
        seed: Seed of the folds and of the batches.
        metric: Name of the scores.
        candidates: All candidates with their cross-validation: the start, each epoch, and the
            network that the hospital trained alone, and before it the ensemble.
        chosen: Position of the chosen one.
        share: Weight of the fine-tuned network in the ensemble.
        networks: Number of networks in the weights: 2 for an ensemble, unless its two networks are
            linear layers.
        not_alone: The reason why no network that was trained alone is a candidate, or "".
        images: Number of images that compared the candidates, and then trained the chosen one.
        folds: Number of folds of the cross-validation.
        written: Time of the end.
        unchosen: The candidate with the lowest loss, if another one was chosen.
        guess_loss: Mean of the images' losses for outputs of zero, if known.
        format: Number of the file's form.
        note: Words for a reader of the file.
    """

    start: Start
    start_weights_sha256: str
    weights_sha256: str
    start_guarantee: Guarantee | None
    learn: str
    max_epochs: int
    learning_rate: float
    batch_size: int
    pull: float
    margin: float
    seed: int
    metric: str
    candidates: tuple[Candidate, ...] = field(repr=False)
    chosen: int
    share: float
    networks: int
    not_alone: str
    images: int
    folds: int
    written: str
    unchosen: Unchosen | None = None
    guess_loss: float | None = None
    format: int = FORMAT
    note: str = "This folder must not leave the hospital."

    @property
    def choice(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    @property
    def alone(self) -> Candidate | None:
        """The network that the hospital trained alone, if it is a candidate."""
        last = self.candidates[-1]
        return last if last.kind == "alone" else None

    @property
    def compared(self) -> tuple[Candidate, ...]:
        """The best candidate of each kind.

        Of the epochs this is the chosen one, or else the one with the lowest loss.
        """
        tuned = [each for each in self.candidates if each.kind == "fine-tuned"]
        best = [min(tuned, key=lambda each: each.loss)] if tuned else []
        if self.choice.kind == "fine-tuned":
            best = [self.choice]
        others = [each for each in self.candidates if each.kind != "fine-tuned"]
        return (*others[:1], *best, *others[1:])

    def describe(self, candidate: Candidate) -> str:
        """Return the name of a candidate in a table."""
        if candidate.kind == "alone":
            return "trained alone"
        if candidate.kind == "ensemble":
            plural = "s" * (candidate.epochs != 1)
            return f"alone, mixed with {candidate.epochs} epoch{plural}"
        if candidate.kind == "fine-tuned":
            return f"after {candidate.epochs} epoch{'s' * (candidate.epochs != 1)} here"
        return "the run's model" if self.start == "global" else "the site's own network"

    @property
    def reason(self) -> str:
        """The reason of the choice, as sentences, with advice on a reference that diverged."""
        has_diverged = self.alone is not None and self._is_worse_than_guessing(self.alone)
        advice = DIVERGED if has_diverged else ""
        return " ".join(filter(None, (self._why_chosen, self._why_not_lowest, advice)))

    @property
    def warning(self) -> str:
        """A sentence if even the chosen model is worse than guessing, or ""."""
        if not self._is_worse_than_guessing(self.choice):
            return ""
        return (
            f"The chosen model is worse than guessing: its loss is {self.choice.loss:.4f}, and "
            f"equal probabilities have {self.guess_loss:.4f}; do not rely on its probabilities."
        )

    @property
    def judging(self) -> str:
        """The models that judge each image, as sentences."""
        told = (
            f"Scores are of {self.folds}-fold cross-validation over {self.images:,} images: models "
            "that were trained here on the other folds judge each image."
        )
        name, when = self.describe(self.candidates[0]), ""
        if self.start == "global":
            when = "if this hospital took part in the run, "
        return (
            f'{told} But {when}"{name}" has learned from its images before, which flatters it and '
            "each model that began with it."
        )

    @property
    def trained_on(self) -> str:
        """The images that the result has learned from here, as a sentence."""
        if self.choice.kind == "start":
            return "None of them has trained the result further."
        return "All of them then trained the result."

    @property
    def _reference(self) -> Candidate:
        return self.candidates[0] if self.alone is None else self.alone

    def _is_worse_than_guessing(self, candidate: Candidate) -> bool:
        return self.guess_loss is not None and candidate.loss > self.guess_loss

    @property
    def _why_not_lowest(self) -> str:
        """Why the candidate with the lowest loss was not chosen, as a sentence, or ""."""
        found = self.unchosen
        if found is None:
            return ""
        name = self.describe(self.candidates[found.position])
        other = self.describe(self.candidates[found.other])
        if found.loss + found.needed * found.loss_error >= 0:
            return (
                f'"{name}" has the lowest loss but is not chosen: that loss is '
                f'{-found.loss / found.loss_error:.2f} standard errors below that of "{other}", '
                f"and more than {found.needed:g} are needed."
            )
        metric = metric_name(self.metric)
        if found.score <= 0 or not found.score_error:
            than = "lower" if found.score < 0 else "no higher"
            return (
                f'"{name}" has the lowest loss but is not chosen: its {metric} is {than} than '
                f'that of "{other}".'
            )
        return (
            f'"{name}" has the lowest loss but is not chosen: its {metric} is '
            f'{found.score / found.score_error:.2f} standard errors above that of "{other}", and '
            f"more than {found.needed:g} are needed."
        )

    @property
    def _why_chosen(self) -> str:
        reference = self._reference
        name = self.describe(reference)
        if self._is_worse_than_guessing(reference):
            rule = (
                f'"{name}" is worse than guessing, whose loss is {self.guess_loss:.4f}, so no '
                "margin protects it"
            )
            if self.choice is reference:
                return f"{rule}, but each candidate has a greater loss or a lower score."
            return f"{rule}: of the candidates with no lower score, the lowest loss is chosen."
        if self.choice is reference:
            return f'No other candidate is enough better than "{name}".'
        if self.alone is not None and self.choice.kind != "ensemble":
            return (
                f"Its loss and its score are better than those of other kinds by "
                f"{STRICT * self.margin:g} standard errors."
            )
        return (
            f'Its loss is lower than that of "{name}" by {-self.choice.difference:.4f}, with a '
            f"standard error of {self.choice.standard_error:.4f}."
        )

    def as_bytes(self) -> bytes:
        """Return the content of the file."""
        return msgspec.json.format(msgspec.json.encode(attrs.asdict(self))) + b"\n"


@frozen(kw_only=True)
class Personal:
    """The reason why a model must not leave its hospital.

    Attributes:
        reason: How the model was made, as the end of a sentence that begins with "it".
        start_guarantee: Guarantee of the run, which covers the global network alone.
        adaptation: Record of the fine-tuning, or None for a network of the run's trainer.
    """

    reason: str
    start_guarantee: Guarantee | None
    adaptation: Adaptation | None = None

    @classmethod
    def adapted(cls, adaptation: Adaptation) -> Personal:
        """Return the reason of an adapted model."""
        return cls(
            reason="was trained without noise on this hospital's images, and may give them away",
            start_guarantee=adaptation.start_guarantee,
            adaptation=adaptation,
        )

    @classmethod
    def of_trainer(cls, start_guarantee: Guarantee | None) -> Personal:
        """Return the reason of a site's own network of the run's trainer."""
        return cls(
            reason=(
                "has parameters that were trained on this hospital's images and never released, so "
                "that no guarantee covers them"
            ),
            start_guarantee=start_guarantee,
        )

    @property
    def notice(self) -> str:
        """A sentence for everyone who opens the model."""
        return f"this model must not leave this hospital: it {self.reason}."


def read_adaptation(folder: Path) -> Adaptation | None:
    """Return the record of the adapted model in `folder`, or None if it is not marked.

    Raises:
        DataError: The file is damaged, or has another form.
    """
    path = folder / PERSONAL
    if not is_personal(folder):
        return None
    data = read_bounded(path, MAX_BYTES, DataError, remedy="adapt the model again")
    try:
        found = decode_json(data, Adaptation)
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); adapt the model again.") from error
    if found.format != FORMAT or not _is_consistent(found):
        raise DataError(f"{path} is of another form; adapt the model again with this version.")
    return found


def _is_consistent(found: Adaptation) -> bool:
    """Return whether the candidates have one order and one choice."""
    kinds = [each.kind for each in found.candidates]
    order: tuple[Kind, ...] = ("start", "fine-tuned", "ensemble", "alone")
    return (
        kinds[:1] == ["start"]
        and kinds == sorted(kinds, key=order.index)
        and all(kinds.count(kind) <= 1 for kind in order if kind != "fine-tuned")
        and 0 <= found.chosen < len(kinds)
        and (found.unchosen is None or _is_comparison(found.unchosen, len(kinds)))
        and found.networks in (1, 2)
    )


def _is_comparison(found: Unchosen, candidates: int) -> bool:
    """Return whether positions exist, and whether the loss is lower than another."""
    return (
        {found.position, found.other} <= set(range(candidates))
        and found.loss < 0
        and min(found.loss_error, found.score_error, found.needed) >= 0
    )
