"""A run's directory, open in one process, with its study, log and checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from attrs import field, frozen

from cohortium.errors import RequestError, RunError
from cohortium.ledger.ledger import Ledger
from cohortium.runs.checkpoint import Checkpoint, RunLog
from cohortium.runs.rehearsal_mark import is_rehearsal, start_command
from cohortium.runs.result import EVALUATION, LAST, RESULT
from cohortium.runs.resume_command import deployment_engine, resume_command
from cohortium.runs.run_files import RunFiles, result_bytes
from cohortium.runs.run_folder import STUDY, require_run_folder
from cohortium.runs.signatures import SIGNATURES, coordinator_signature
from cohortium.runs.signer import SIGNER, name_signer, require_signer
from cohortium.storage.atomic import UNFINISHED, require_room, sweep
from cohortium.storage.writable import check_directory_writable, require_text

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from cohortium.crypto.signing import SigningKey
    from cohortium.runs.result import Result


SEARCH = "search.json"
"""Record of a search, in the folder that holds the folders of its runs."""

LOG, CHECKPOINT = "checkpoint/run.log", "checkpoint/state.safetensors"
LEDGER, STATES = "ledger.sqlite", "trainer_state"
"""Paths in a run's directory."""


@frozen(eq=False)
class RunDirectory(RunFiles):
    """Directory of a run, open in this process and in no other.

    Guarantees:
        Every file is written next to its place, made durable, and then moved there.
        A reader, or a crash, sees the old file or the new one and nothing between.

        A run with a signing key has no result without its signature. It continues with this key
        alone.

    Attributes:
        log: Log of the attempts and rounds.
        signing_key: Key that signs the result as the coordinator, or None.
    """

    log: RunLog = field(repr=False)
    signing_key: SigningKey | None = field(default=None, repr=False)

    @classmethod
    def create(
        cls, path: Path, study: str, *, signing_key: SigningKey | None = None
    ) -> RunDirectory:
        """Create a directory for a new run of `study`.

        It stores the study as it was resolved.

        Args:
            path: The directory.
            study: The study's TOML.
            signing_key: Key that signs the result, or None.

        Raises:
            RequestError: The directory cannot be created, or has a run already.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _require_no_run(path)
            (path / LOG).parent.mkdir(exist_ok=True)
            folder = cls(path, RunLog.open(path / LOG), signing_key)
        except OSError as error:
            raise RequestError(f"cannot write to {path}: {error.strerror}.") from error
        try:
            # Check again: another process may have chosen the same folder.
            _require_no_run(path)
            name_signer(path / SIGNER, signing_key)
            folder._write(STUDY, study.encode())
            folder.log.log_opening()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def reopen(
        cls, path: Path, *, advice: str = "", signing_key: SigningKey | None = None
    ) -> RunDirectory:
        """Open the directory of an interrupted run.

        Args:
            path: The directory.
            advice: What to do if the run is complete.
            signing_key: Key that signs the result, or None.

        Raises:
            RequestError: The directory has no run, or one that is complete or in progress. Or its
                result is to be signed with another key.
            RunError: The directory is damaged, or cannot be written.
        """
        study_path(path)
        require_text(str(path), where="the folder")
        has_log = (path / LOG).exists()
        if has_log or not (path / RESULT).exists():
            try:
                (path / LOG).parent.mkdir(exist_ok=True)
                folder = cls(path, RunLog.open(path / LOG), signing_key)
            except OSError as error:
                raise RunError(f"cannot write to {path}: {error.strerror}.") from error
            if not folder.log.is_complete:
                try:
                    require_signer(path / SIGNER, signing_key, result=path)
                except BaseException:
                    folder.close()
                    raise
                folder.remove_partial_files()
                if not has_checkpoint(path):
                    folder.log.log_opening()
                return folder
            folder.close()
        told = f"the run in {path} is finished; its result is {path / RESULT}"
        raise RequestError("; ".join(filter(None, (told, advice))) + ".")

    def remove_partial_files(self) -> None:
        """Remove the half-written files of a killed process.

        Raises:
            RunError: A file cannot be removed.
        """
        try:
            sweep(self.path)
        except OSError as error:
            self.close()
            raise RunError(f"cannot write to {self.path}: {error.strerror}.") from error

    def write_result(self, result: Result) -> None:
        """Write the result, after its signature."""
        if self.signing_key is not None:
            data = result_bytes(result)
            made = coordinator_signature(self.path, data, result.weights_sha256, self.signing_key)
            self._write(SIGNATURES, made)
        super().write_result(result)

    def close(self) -> None:
        """Close the directory, so that another process can open it."""
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state_dir(self) -> Path:
        """Folder of the simulated sites' trainer state."""
        return self.path / STATES

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return resume_command(self.path)

    def state_files(self) -> tuple[str, ...]:
        """Return the names of the files in `state_dir`."""
        return tuple(sorted(path.name for path in self.state_dir.glob("*.safetensors")))

    def require_state_files(self, names: Collection[str]) -> None:
        """Refuse to continue without the stored trainer state of sites.

        Raises:
            RunError: Some of `names` are missing.
        """
        gone = sorted({*names} - {*self.state_files()})
        if gone:
            raise RunError(
                f"{self.state_dir / gone[0]} is gone, though a site needs its files there; put the "
                "whole folder back as it was, or start another run."
            )

    def require_ledger(self) -> None:
        """Require a ledger, and create it only if no round has begun.

        Raises:
            RunError: The ledger is missing.
            LedgerError: The ledger cannot be created.
        """
        ledger = run_ledger(self.path)
        if ledger.path.exists():
            return
        if self.log.last_attempt >= 0:
            raise RunError(
                f"{ledger.path} is gone, though attempts are charged there; put the whole "
                "folder back as it was, or start another run."
            )
        ledger.create()

    def read_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint after the last round, or None before the first.

        Raises:
            RunError: The checkpoint is damaged, or was lost.
        """
        checkpoint = Checkpoint.read(self.path / CHECKPOINT)
        gone = None
        if checkpoint is None and self.log.last_attempt >= 0:
            gone = self.path / CHECKPOINT
        elif checkpoint is not None and not self.log.is_opened:
            gone = self.path / LOG
        if gone is not None:
            raise RunError(
                f"{gone} is gone, though the run had started; put the whole folder back as it was, "
                "or start another run."
            )
        return checkpoint

    def require_room(self, size: int) -> None:
        """Refuse to continue without room for `size` bytes, before any spending.

        Raises:
            RunError: The bytes cannot be written.
        """
        with self._writing(CHECKPOINT) as target:
            require_room(target.parent, size)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and, next to it, the weights for use.

        Raises:
            RunError: The checkpoint cannot be written. The previous one is unchanged.
        """
        with self._writing(CHECKPOINT) as target:
            checkpoint.write(target)
        if checkpoint.rounds:
            notes = {"rounds": str(checkpoint.rounds)}
            self._write_weights(LAST, checkpoint.server["weights"], notes)


def study_path(path: Path) -> Path:
    """Return the study file of the run in `path`.

    Raises:
        RequestError: The directory is not that of a run, or has an older format.
    """
    require_run_folder(path)
    return path / STUDY


def run_ledger(path: Path) -> Ledger:
    """Return the ledger of simulated sites of the run in `path`.

    The runs of a search share the ledger in the folder of the search.

    The file may not exist yet. No person's privacy depends on it, so it needs to survive only the
    process, and not a power cut. Waiting for the disk 600 times would take longer than the sums.
    """
    # A run of a search, or the evaluation of one.
    folders = (path.absolute().parent, path.absolute().parent.parent)
    place = next((folder for folder in folders if (folder / SEARCH).is_file()), path)
    return Ledger(place / LEDGER, is_synced=False)


def require_empty(path: Path) -> None:
    """Refuse early a directory that `RunDirectory.create` would refuse.

    The check comes before the data are loaded and the noise is calibrated.

    Raises:
        RequestError: A run's directory cannot be created there, or the directory is not empty.
    """
    check_directory_writable(path)
    try:
        _require_no_run(path)
    except OSError as error:
        raise RequestError(f"cannot write to {path}: {error.strerror}.") from error


def has_run(path: Path) -> bool:
    """Return whether `path` holds a run, in any state."""
    return (path / STUDY).exists()


def is_finished(path: Path) -> bool:
    """Return whether the run in `path` has its result."""
    return (path / STUDY).exists() and (path / RESULT).exists()


def require_not_inner(path: Path) -> None:
    """Refuse to continue evaluations between rounds without the training.

    Raises:
        RequestError: `path` is the folder of an evaluation in that of a run.
    """
    if path.name == EVALUATION and has_run(path.parent):
        raise RequestError(
            f"{path} holds evaluations between the rounds of a run; continue with "
            f"{resume_command(path.parent)}."
        )


def has_checkpoint(path: Path) -> bool:
    """Return whether `path` has a checkpoint to resume a run from."""
    return (path / CHECKPOINT).exists()


def _require_no_run(path: Path) -> None:
    """Refuse a directory that is not empty.

    Leftovers of a process that was killed at its start are allowed.
    """
    left = {path / LOG, (path / LOG).parent, path / SIGNER}
    found = [p for p in path.rglob("*") if p not in left and p.suffix != UNFINISHED]
    if not found:
        return
    other = "give another folder with --out"
    if deployment_engine(path) is not None:
        other = "name another folder as `out`"
    if (path / RESULT).exists():
        raise RequestError(f"{path} holds a finished run; {other}.")
    if is_rehearsal(path):
        raise RequestError(
            f"{path} holds a rehearsal deployment, which is complete: start its sites, as with "
            f"{start_command(path)}, or give another folder with --out."
        )
    if (path / STUDY).exists():
        raise RequestError(
            f"{path} holds a run that is not finished: continue with {resume_command(path)}, or "
            f"{other}."
        )
    raise RequestError(f"{path} is not empty; give another folder with --out.")
