"""Models that must not leave a hospital, and the file that marks their folders.

No guarantee covers such a model: it was trained on the hospital's images, and has never been
released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import attrs
import msgspec
from attrs import field, frozen

from cohortium.errors import DataError
from cohortium.privacy.guarantee import Guarantee  # noqa: TC001 - decoded by its type
from cohortium.runs.personal_mark import PERSONAL, is_personal

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1

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
        seed: Seed of the validation part and of the batches.
        metric: Name of the scores.
        epochs: The chosen number of epochs.
        scores: Score on the validation part after each epoch, the first of the start.
        train_images: Number of images that trained.
        validation_images: Number of images that chose the number of epochs.
        written: Time of the end.
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
    seed: int
    metric: str
    epochs: int
    scores: tuple[float, ...] = field(repr=False)
    train_images: int
    validation_images: int
    written: str
    format: int = FORMAT
    note: str = "This folder must not leave the hospital."

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
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES:,} bytes; adapt the model again.")
        found = msgspec.json.decode(data, type=Adaptation)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); adapt the model again.") from error
    if found.format != FORMAT or not 0 <= found.epochs < len(found.scores):
        raise DataError(f"{path} is of another form; adapt the model again with this version.")
    return found
