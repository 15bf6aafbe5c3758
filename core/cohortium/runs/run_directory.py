"""A run's folder: the study, the checkpoint, the weights and the result, each written whole."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from typing import TYPE_CHECKING, Self

import attrs
from attrs import field, frozen

from cohortium.errors import RunError, StudyError
from cohortium.ledger.ledger import Ledger
from cohortium.runs.checkpoint import Checkpoint, RunLog
from cohortium.runs.dataset_info import DATASET_INFO
from cohortium.runs.result import BEST, LAST, OLDER, PREDICTIONS, RESULT, SITE_SCORES
from cohortium.storage.atomic import UNFINISHED, atomic_write, require_room, sweep
from cohortium.storage.writable import check_directory_writable, require_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from cohortium.data.metrics import Predictions
    from cohortium.runs.dataset_info import DatasetInfo
    from cohortium.runs.result import Result
    from cohortium.runs.site_scores import SiteScores

LOG, CHECKPOINT = "checkpoint/run.log", "checkpoint/state.safetensors"
STUDY, LEDGER, STATES = "study.toml", "ledger.sqlite", "trainer_state"
"""Where things are in a run's folder."""


@frozen(eq=False)
class RunDirectory:
    """Where a run's record goes, open in this process and in no other.

    Guarantees:
        Every file is written beside its place, made durable, and then moved there: a reader, or
        a crash, sees the old file or the new one and nothing between.

    Attributes:
        path: The folder.
        log: What was begun and finished.
    """

    path: Path
    log: RunLog = field(repr=False)

    @classmethod
    def create(cls, path: Path, study: str) -> RunDirectory:
        """A folder for a new run of `study`, which is kept as it was resolved.

        Raises:
            StudyError: It cannot be made, or holds a run already.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _require_no_run(path)
            (path / LOG).parent.mkdir(exist_ok=True)
            folder = cls(path, RunLog.open(path / LOG))
        except OSError as error:
            raise StudyError(f"cannot write to {path}: {error.strerror}.") from error
        try:
            # Once more: another process may have had the same folder in mind.
            _require_no_run(path)
            folder._write(STUDY, study.encode())
            folder.log.log_opening()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """The folder of a run that was broken off.

        Raises:
            StudyError: It holds no run, or one that is finished or under way.
            RunError: It is damaged, or cannot be written.
        """
        study_path(path)
        require_text(str(path), where="the folder")
        has_log = (path / LOG).exists()
        if has_log or not (path / RESULT).exists():
            try:
                (path / LOG).parent.mkdir(exist_ok=True)
                folder = cls(path, RunLog.open(path / LOG))
            except OSError as error:
                raise RunError(f"cannot write to {path}: {error.strerror}.") from error
            if not folder.log.is_complete:
                folder.remove_partial_files()
                if not has_checkpoint(path):
                    folder.log.log_opening()
                return folder
            folder.close()
        raise StudyError(f"the run in {path} is finished; its result is {path / RESULT}.")

    def remove_partial_files(self) -> None:
        """Remove what a process that was killed has left half written.

        Raises:
            RunError: It cannot be removed.
        """
        try:
            sweep(self.path)
        except OSError as error:
            self.close()
            raise RunError(f"cannot write to {self.path}: {error.strerror}.") from error

    def close(self) -> None:
        """Let another process have it."""
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state_dir(self) -> Path:
        """The folder of what simulated sites keep from round to round."""
        return self.path / STATES

    @property
    def resume_command(self) -> str:
        """The command with which the run goes on."""
        return resume_command(self.path)

    def state_files(self) -> tuple[str, ...]:
        """Names of the files in `state_dir`."""
        return tuple(sorted(path.name for path in self.state_dir.glob("*.safetensors")))

    def require_state_files(self, names: Collection[str]) -> None:
        """Refuse to go on without what sites have kept.

        Raises:
            RunError: Some of `names` are gone.
        """
        gone = sorted({*names} - {*self.state_files()})
        if gone:
            raise RunError(
                f"{self.state_dir / gone[0]} is gone, though a site needs what it kept there; put "
                "the "
                "whole folder back as it was, or begin another run."
            )

    def require_ledger(self) -> None:
        """See to it that there is a ledger; one is made only where no round has begun.

        Raises:
            RunError: It is gone.
            LedgerError: It cannot be made.
        """
        ledger = run_ledger(self.path)
        if ledger.path.exists():
            return
        if self.log.last_attempt >= 0:
            raise RunError(
                f"{ledger.path} is gone, though attempts are charged there; put the whole "
                "folder back as it was, or begin another run."
            )
        ledger.create()

    def read_checkpoint(self) -> Checkpoint | None:
        """How things stood after the last round; None where the first had not begun.

        Raises:
            RunError: It is damaged, or was lost.
        """
        checkpoint = Checkpoint.read(self.path / CHECKPOINT)
        gone = None
        if checkpoint is None and self.log.last_attempt >= 0:
            gone = self.path / CHECKPOINT
        elif checkpoint is not None and not self.log.is_opened:
            gone = self.path / LOG
        if gone is not None:
            raise RunError(
                f"{gone} is gone, though the run had begun; put the whole folder back as it was, "
                "or begin another run."
            )
        return checkpoint

    def require_room(self, size: int) -> None:
        """Raise `RunError` where `size` bytes more cannot be written, while nothing is spent."""
        with self._writing(CHECKPOINT) as target:
            require_room(target.parent, size)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep how things stand; what `weights` gives anyone to use lies beside it.

        Raises:
            RunError: It cannot be written; the checkpoint before stands.
        """
        with self._writing(CHECKPOINT) as target:
            checkpoint.write(target)
        if checkpoint.rounds:
            notes = {"rounds": str(checkpoint.rounds)}
            self._write_weights(LAST, checkpoint.server["weights"], notes)

    def write_best(self, weights: Mapping[str, Tensor], *, rounds: int, accuracy: float) -> None:
        """Keep, beside the last weights, those that have done best so far.

        Args:
            weights: By name.
            rounds: After how many rounds.
            accuracy: On the public validation images.

        Raises:
            RunError: They cannot be written.
        """
        self._write_weights(BEST, weights, {"rounds": str(rounds), "accuracy": repr(accuracy)})

    def write_dataset_info(self, facts: DatasetInfo) -> None:
        """Keep what a user of the weights needs to know of the data.

        Raises:
            RunError: It cannot be written.
        """
        text = json.dumps(attrs.asdict(facts), indent=2, ensure_ascii=False)
        self._write(DATASET_INFO, text.encode() + b"\n")

    def write_predictions(self, predictions: Predictions) -> None:
        """Keep what was said of each test image, so that runs can be compared image by image.

        It goes into `simulation/`, as all does that only a simulator knows; see `predictions_of`.

        Raises:
            RunError: It cannot be written.
        """
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            probabilities=predictions.probabilities.astype(np.float32),
            labels=predictions.labels,
            classes=np.array(predictions.classes),
        )
        self._write(PREDICTIONS, buffer.getvalue())

    def write_site_scores(self, scores: Sequence[SiteScores]) -> None:
        """Keep how each site's own model and the global one do on what the site held out.

        Raises:
            RunError: It cannot be written.
        """
        text = json.dumps([attrs.asdict(each) for each in scores], indent=2)
        self._write(SITE_SCORES, text.encode() + b"\n")

    def write_result(self, result: Result) -> None:
        """Keep the result."""
        text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
        self._write(RESULT, text.encode() + b"\n")

    def _write_weights(
        self, name: str, weights: Mapping[str, Tensor], notes: dict[str, str]
    ) -> None:
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        self._write(name, save(tensors, metadata=notes))

    def _write(self, name: str, data: bytes) -> None:
        with self._writing(name) as target:
            atomic_write(target, data)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        target = self.path / name
        try:
            target.parent.mkdir(exist_ok=True)
            yield target
        except OSError as error:
            raise RunError(f"cannot write {target}: {error.strerror}.") from error


def study_path(path: Path) -> Path:
    """The study file of the run in `path`.

    Raises:
        StudyError: It holds none, or one of an older form.
    """
    if not (path / STUDY).is_file():
        raise StudyError(f"{path} holds no run: there is no {STUDY} in it.")
    if (path / OLDER).exists():
        raise StudyError(
            f"{path} is a run's folder of an older form; use the version of cohortium that "
            "wrote it."
        )
    return path / STUDY


def run_ledger(path: Path) -> Ledger:
    """Of what the simulated sites of the run in `path` spend; the file need not be there yet.

    Nobody's privacy hangs on it, so that it need not outlive a power cut, only the process: waiting
    for the disk 600 times would take longer than the sums.
    """
    return Ledger(path / LEDGER, is_synced=False)


def require_empty(path: Path) -> None:
    """Refuse early what `RunDirectory.create` would: before data are loaded and noise calibrated.

    Raises:
        StudyError: A run's folder cannot be made there, or something is in it.
    """
    check_directory_writable(path)
    try:
        _require_no_run(path)
    except OSError as error:
        raise StudyError(f"cannot write to {path}: {error.strerror}.") from error


def resume_command(path: Path) -> str:
    """The command with which the run in `path` goes on."""
    return f"`cohortium resume {shlex.quote(str(path))}`"


def has_checkpoint(path: Path) -> bool:
    """Whether `path` holds a run from which there is something to go on with."""
    return (path / CHECKPOINT).exists()


def _require_no_run(path: Path) -> None:
    """Refuse a folder that holds anything but what a process left that was killed at once."""
    left = {path / LOG, (path / LOG).parent}
    found = [p for p in path.rglob("*") if p not in left and p.suffix != UNFINISHED]
    if not found:
        return
    if (path / RESULT).exists():
        raise StudyError(f"{path} holds a finished run; give another folder with --out.")
    if (path / STUDY).exists():
        raise StudyError(
            f"{path} holds a run that is not finished: go on with {resume_command(path)}, or give "
            "another folder with --out."
        )
    raise StudyError(f"{path} is not empty; give another folder with --out.")
