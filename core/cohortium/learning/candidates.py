"""Candidates of a fine-tuning, and the choice among them by cross-validation.

`FineTuning` has the rule in words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from attrs import field, frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["start", "fine-tuned", "ensemble", "alone"]
"""A candidate: the network at the start, after some epochs, trained by the site alone, or an
ensemble of the last two."""

STRICT = 3
"""Factor of the margin for a candidate without a network that was trained alone."""


@frozen(kw_only=True)
class Candidate:
    """A network that could be the result, and its cross-validation.

    Attributes:
        kind: The candidate.
        epochs: Number of epochs of the fine-tuning, 0 for a network without one.
        score: Mean of the images' scores (`Task.example_scores`), each by a network that the site
            trained without the image.  (The start may have seen it before.)  For classes this is
            the accuracy.
        loss: Mean of the images' losses by the same networks.
        difference: The loss minus that of the reference.
        standard_error: Standard error of that difference, over images or patients.
    """

    kind: Kind
    epochs: int = 0
    score: float
    loss: float
    difference: float = 0.0
    standard_error: float = 0.0


@frozen(kw_only=True)
class Unchosen:
    """The candidate with the lowest loss, where another one was chosen.

    Attributes:
        position: Its position among the candidates.
        other: Position of the candidate that it had to be better than.
        loss: Its loss minus that of the other one.
        loss_error: Standard error of that difference.
        score: Its score minus that of the other one.
        score_error: Standard error of that difference.
        needed: Number of standard errors by which its loss had to be lower.
        is_strict: Whether its score had to be higher by as many.
    """

    position: int
    other: int
    loss: float
    loss_error: float
    score: float
    score_error: float
    needed: float
    is_strict: bool


@frozen
class _Requirement:
    """The row that a candidate has to be better than.

    Attributes:
        other: The row.
        margin: Number of standard errors by which the loss is lower.
        is_strict: Whether the score must be higher by as many.
    """

    other: int
    margin: float
    is_strict: bool = False


@frozen(eq=False)
class CandidateTable:
    """Losses and scores of the images, by candidate.

    Rows are the start, each epoch, the ensemble, and the network trained alone.

    Attributes:
        losses: Shape (E + 3, N), infinite where unknown.
        scores: Shape (E + 3, N).
        owner: Number of the unit of each image, shape (N,).
    """

    losses: NDArray[np.float64] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    owner: NDArray[np.intp] = field(repr=False)

    @classmethod
    def empty(cls, epochs: int, owners: NDArray[np.intp]) -> CandidateTable:
        """Return a table for images of these units."""
        losses = np.full((epochs + 3, len(owners)), math.inf)
        _, owner = np.unique(owners, return_inverse=True)
        return cls(losses, np.zeros_like(losses), owner)

    def put(
        self,
        row: int,
        positions: NDArray[np.intp],
        found: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> None:
        """Enter the losses and the scores of the images at `positions`."""
        self.losses[row, positions], self.scores[row, positions] = found

    def choose(
        self, margin: float, guess_loss: float, *, has_local_only: bool
    ) -> tuple[tuple[Candidate, ...], int, Unchosen | None]:
        """Return the candidates, the position of the chosen one, and an unchosen lowest loss.

        Args:
            margin: Number of standard errors.
            guess_loss: Loss above which the reference needs no margin.
            has_local_only: Whether a network was trained alone.
        """
        ensemble, alone = len(self.losses) - 2, len(self.losses) - 1
        is_known = [bool(np.isfinite(row).all()) for row in self.losses]
        epochs = [row for row in range(1, ensemble) if is_known[row]]
        has_ensemble = has_local_only and is_known[ensemble]
        rows = [0, *epochs, *[ensemble] * has_ensemble, *[alone] * has_local_only]
        reference = rows[-1] if has_local_only else 0
        others = [row for row in rows if row != reference]
        if self._mean_loss(reference) > guess_loss:
            requirements = dict.fromkeys(others, _Requirement(reference, 0.0))
        elif has_local_only:
            once = _Requirement(alone, margin)
            replaces = has_ensemble and self._is_better(ensemble, once)
            strict = _Requirement(ensemble if replaces else alone, STRICT * margin, is_strict=True)
            requirements = {row: once if row == ensemble else strict for row in others}
        else:
            requirements = dict.fromkeys(others, _Requirement(0, margin))
        better = [row for row in others if self._is_better(row, requirements[row])]
        chosen = min(better, key=self._mean_loss, default=reference)
        lowest = min((chosen, *others), key=self._mean_loss)
        return (
            tuple(self._candidate(row, reference) for row in rows),
            rows.index(chosen),
            None if lowest == chosen else self._unchosen(lowest, requirements[lowest], rows),
        )

    def _mean_loss(self, row: int) -> float:
        return float(self.losses[row].mean())

    def _unchosen(self, row: int, requirement: _Requirement, rows: list[int]) -> Unchosen:
        loss, loss_error = self._paired(self.losses[row] - self.losses[requirement.other])
        gain, gain_error = self._paired(self.scores[row] - self.scores[requirement.other])
        return Unchosen(
            position=rows.index(row),
            other=rows.index(requirement.other),
            loss=loss,
            loss_error=loss_error,
            score=gain,
            score_error=gain_error,
            needed=requirement.margin,
            is_strict=requirement.is_strict,
        )

    def _candidate(self, row: int, reference: int) -> Candidate:
        ensemble = len(self.losses) - 2
        kinds: tuple[Kind, ...] = ("start", "fine-tuned", "ensemble", "alone")
        difference, error = self._paired(self.losses[row] - self.losses[reference])
        return Candidate(
            kind=kinds[min(row, 1) + max(0, row - ensemble + 1)],
            epochs=min(row, ensemble - 1) if row <= ensemble else 0,
            score=float(self.scores[row].mean()),
            loss=float(self.losses[row].mean()),
            difference=difference,
            standard_error=error,
        )

    def _is_better(self, row: int, requirement: _Requirement) -> bool:
        """Return whether a row has a lower loss and no lower score."""
        loss, loss_error = self._paired(self.losses[row] - self.losses[requirement.other])
        gain, gain_error = self._paired(self.scores[row] - self.scores[requirement.other])
        if requirement.is_strict and not gain > requirement.margin * gain_error:
            return False
        return loss < 0 and loss + requirement.margin * loss_error < 0 and gain >= 0

    def _paired(self, differences: NDArray[np.float64]) -> tuple[float, float]:
        """Return the mean of images' differences, and its standard error over the units."""
        mean = float(differences.mean())
        sums = np.bincount(self.owner, differences - mean)
        scale = math.sqrt(len(sums) / (len(sums) - 1)) / len(differences)
        return mean, scale * float(np.sqrt((sums**2).sum()))
