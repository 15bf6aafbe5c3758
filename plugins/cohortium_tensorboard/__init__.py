"""A run written for TensorBoard: `pip install 'cohortium[tensorboard]'`.

`tensorboard --logdir runs` then shows all runs under `runs`.

Only the run's events are written, to the run's own folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from cohortium.plugin import (
    Observer,
    Offer,
    RoundCompleted,
    RunCompleted,
    RunFailed,
    RunStarted,
    StudyError,
    hookimpl,
)

if TYPE_CHECKING:
    from cohortium.plugin import Event

COHORTIUM_API = 1


@frozen
class TensorBoard:
    """Scalars by round, in the folder `tensorboard` of the run's record.

    A run without a record writes none.
    """

    def start_run(self) -> TensorBoardWriter:
        """Return a writer for one run.

        Raises:
            StudyError: The package tensorboard is not installed.
        """
        try:
            import tensorboard  # noqa: F401 - torch uses it
        except ImportError as error:
            raise StudyError(
                "the observer 'tensorboard' needs a package; pip install 'cohortium[tensorboard]'."
            ) from error
        return TensorBoardWriter()


@define
class TensorBoardWriter:
    """One event file, open from the run's start to its end."""

    file: Any = None

    def __call__(self, event: Event) -> None:
        """Write the numbers of `event`."""
        if isinstance(event, RunStarted) and event.folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.file = SummaryWriter(str(event.folder / "tensorboard"))
            self.file.add_text("guarantee", str(event.guarantee or "none"))
        if self.file is None:
            return
        match event:
            case RoundCompleted():
                for name, value in event.metrics().items():
                    self.file.add_scalar(name, value, event.round + 1)
                self.file.flush()  # a run that is killed keeps its rounds
            case RunCompleted() | RunFailed():
                self.file.close()


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `tensorboard`."""
    return [Offer("tensorboard", TensorBoard, "Scalars by round, for TensorBoard.")]
