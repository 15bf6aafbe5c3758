"""The record of a run: a folder with the study, the weights and the result, each written whole."""

from __future__ import annotations

import contextlib
import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

import attrs
from attrs import frozen

from cohortium.checkpoint import Checkpoint, RunLog
from cohortium.errors import RunError, StudyError
from cohortium.files import UNFINISHED, write_whole
from cohortium.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from cohortium.events import RoundFinished
    from cohortium.guarantee import Guarantee
    from cohortium.metrics import Scores


PACKAGES = ("cohortium", "torch", "numpy", "opacus", "cryptography")
"""Whose versions a run's figures depend on, beside Python's."""


def versions() -> dict[str, str]:
    """Of Python and of `PACKAGES`."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


@frozen(kw_only=True)
class Seconds:
    """Where a run's time went: in the exchanges, in the coordinator's own work, and in all."""

    train: float
    aggregate: float
    total: float


@frozen(kw_only=True)
class Result:
    """What a run came to.

    Attributes:
        scores: On the test images, or None where there are none.
        guarantee: What the whole run promises, or None without privacy.
        rounds: That were completed.
        sites: In the federation.
        dropouts: Contributions that were asked for and did not enter a sum, over the run.
        upload_bytes_per_site_per_round: The largest that one site sent in a round.
        seconds: Where the time went.
        weights_sha256: Of the final weights; see `vector.fingerprint`.
        versions: Of Python and of the packages that the figures depend on.
        history: One event for each round.
        weights: The final global weights by name.
        folder: Where the record lies, or None.
    """

    scores: Scores | None = attrs.field(repr=False)
    guarantee: Guarantee | None
    rounds: int
    sites: int
    dropouts: int
    upload_bytes_per_site_per_round: int
    seconds: Seconds
    weights_sha256: str
    versions: Mapping[str, str] = attrs.field(repr=False)
    history: tuple[RoundFinished, ...] = attrs.field(repr=False)
    weights: Mapping[str, Tensor] = attrs.field(repr=False, eq=False)
    folder: Path | None = None

    @property
    def accuracy(self) -> float | None:
        """Share of test images called rightly, or None without test images."""
        return None if self.scores is None else self.scores.accuracy

    def as_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        scores, guarantee = self.scores, self.guarantee
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": None if scores is None else scores.balanced_accuracy,
            "auc": None if scores is None else scores.auc,
            "per_class": None if scores is None else [attrs.asdict(c) for c in scores.per_class],
            "confusion": None if scores is None else scores.confusion,
            "guarantee": None if guarantee is None else attrs.asdict(guarantee),
            "rounds": self.rounds,
            "sites": self.sites,
            "dropouts": self.dropouts,
            "upload_bytes_per_site_per_round": self.upload_bytes_per_site_per_round,
            "seconds": attrs.asdict(self.seconds),
            "weights_sha256": self.weights_sha256,
            "versions": dict(self.versions),
        }


LOG, CHECKPOINT = "checkpoint/journal", "checkpoint/state.safetensors"
WEIGHTS = "checkpoint/weights.safetensors"
STUDY, RESULT, LEDGER, STATES = "study.toml", "result.json", "ledger.sqlite", "sites"
"""Where things are in a run's folder."""


@frozen(eq=False)
class RunFolder:
    """Where a run's record goes, open in this process and in no other.

    Guarantees:
        Every file is written beside its place, made durable, and then moved there: a reader, or
        a crash, sees the old file or the new one and nothing between.

    Attributes:
        path: The folder.
        log: What was begun and finished.
    """

    path: Path
    log: RunLog = attrs.field(repr=False)

    @classmethod
    def create(cls, path: Path, study: str) -> RunFolder:
        """A folder for a new run of `study`, which is kept as it was resolved.

        Raises:
            StudyError: It cannot be made, or holds a run already.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _require_blank(path)
            (path / LOG).parent.mkdir(exist_ok=True)
            folder = cls(path, RunLog.open(path / LOG))
        except OSError as error:
            raise StudyError(f"cannot write to {path}: {error.strerror}.") from error
        try:
            # Once more: another process may have had the same folder in mind.
            _require_blank(path)
            folder._write(STUDY, study.encode())
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """The folder of a run that was broken off.

        Raises:
            StudyError: It holds no run, or one that is finished or under way.
            RunError: It is damaged, or cannot be written.
        """
        if not (path / STUDY).is_file():
            raise StudyError(f"{path} holds no run: there is no {STUDY} in it.")
        has_log = (path / LOG).exists()
        if has_log or not (path / RESULT).exists():
            try:
                (path / LOG).parent.mkdir(exist_ok=True)
                folder = cls(path, RunLog.open(path / LOG))
            except OSError as error:
                raise RunError(f"cannot write to {path}: {error.strerror}.") from error
            if not folder.log.is_complete:
                return folder
            folder.close()
        raise StudyError(f"the run in {path} is finished; its result is {path / RESULT}.")

    def close(self) -> None:
        """Let another process have it."""
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def states(self) -> Path:
        """The folder of what simulated sites keep from round to round."""
        return self.path / STATES

    def ledger(self) -> Ledger:
        """A ledger of what the simulated sites spend, made unless it is there.

        Nobody's privacy hangs on it, so that it need not outlive a power cut, only the process:
        waiting for the disk 600 times would take longer than the sums.
        """
        ledger = Ledger(self.path / LEDGER, is_synced=False)
        if not ledger.path.exists():
            ledger.create()
        return ledger

    def read_checkpoint(self) -> Checkpoint | None:
        """How things stood after the last round; None where the first had not begun.

        Raises:
            RunError: It is damaged, or was lost.
        """
        checkpoint = Checkpoint.read(self.path / CHECKPOINT)
        if checkpoint is None and self.log.begun >= 0:
            raise RunError(
                f"{self.path / CHECKPOINT} is gone, though the run had begun; put it back, or begin "
                "another run."
            )
        return checkpoint

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep how things stand; what `weights` gives anyone to use lies beside it.

        Raises:
            RunError: It cannot be written; the checkpoint before stands.
        """
        from safetensors.torch import save

        with self._writing(CHECKPOINT) as target:
            checkpoint.write(target)
        if checkpoint.rounds:
            weights = {name: w.contiguous() for name, w in checkpoint.server["weights"].items()}
            self._write(WEIGHTS, save(weights, metadata={"rounds": str(checkpoint.rounds)}))

    def write_result(self, result: Result) -> None:
        """Keep the result."""
        text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
        self._write(RESULT, text.encode() + b"\n")

    def _write(self, name: str, data: bytes) -> None:
        with self._writing(name) as target:
            write_whole(target, data)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        target = self.path / name
        try:
            target.parent.mkdir(exist_ok=True)
            yield target
        except OSError as error:
            raise RunError(f"cannot write {target}: {error.strerror}.") from error


def _require_blank(path: Path) -> None:
    """Refuse a folder that holds anything but what a process left that was killed at once."""
    left = {path / LOG, (path / LOG).parent}
    found = [p for p in path.rglob("*") if p not in left and p.suffix != UNFINISHED]
    if not found:
        return
    if (path / RESULT).exists():
        raise StudyError(f"{path} holds a finished run; give another folder with --out.")
    if (path / STUDY).exists():
        raise StudyError(
            f"{path} holds a run that is not finished: go on with it by `cohortium resume {path}`, "
            "or give another folder with --out."
        )
    raise StudyError(f"{path} is not empty; give another folder with --out.")
