"""The statement of a finished run that a signature covers: its files' hashes, and its session."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from attrs import asdict, frozen

from cohortium.errors import RecordError, RequestError
from cohortium.runs.dataset_info import DATASET_INFO
from cohortium.runs.result import RESULT
from cohortium.storage.bounded_read import read_if_present, why_unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_RESULT_BYTES: Final = 1 << 29
_REMEDY: Final = "copy it anew from the run"

_STUDY: Final = "study.toml"

Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

OptionalHash = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
"""Hash of a file, or "" if there is none."""

Session = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")]
"""Session of a run as hexadecimal digits, or "" without one."""


@frozen
class Digests:
    """Hashes of the files that a signature covers, by the names of its fields."""

    result_sha256: str
    weights_sha256: str
    study_sha256: str
    dataset_sha256: str

    @classmethod
    def of(cls, folder: Path, result: bytes, weights_sha256: str) -> Digests:
        """Return the hashes of a result and of the other files in its folder.

        Raises:
            RecordError: A file cannot be read.
        """
        return cls(
            hashlib.sha256(result).hexdigest(),
            weights_sha256,
            _file_hash(folder / _STUDY),
            _file_hash(folder / DATASET_INFO),
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The hashes by the fields of a signature."""
        return asdict(self)


@frozen(kw_only=True)
class SiteReleases:
    """Releases of a site in one run, as the site's own trail has them.

    Attributes:
        session: Session of the run.
        study: Digest of the study that the site accepted, or "" if the trail has none.
        attempts: Round and attempt of each release, both from 0.
    """

    session: bytes
    study: str
    attempts: tuple[tuple[int, int], ...]


class _Round(msgspec.Struct):
    """Row of a completed round in a result: the round from 1, the attempt from 0."""

    round: int
    attempt: int


class _Stated(msgspec.Struct):
    """Fields of a result that signatures rely on. Older results have no session."""

    weights_sha256: str
    history: list[_Round]
    session: Session = ""


@frozen(kw_only=True)
class StatedResult:
    """The statement of a `result.json` that signatures cover.

    Attributes:
        digests: Hashes of the file and of those next to it.
        session: Session of the run, or "" in a result of an older version.
        completed: By attempt, the completed round that it ended, both from 0.
    """

    digests: Digests
    session: str
    completed: Mapping[int, int]

    @classmethod
    def read(cls, folder: Path) -> StatedResult | None:
        """Return the statement of the result in `folder`, or None without a result.

        Raises:
            RecordError: The result is damaged, or cannot be read.
        """
        path = folder / RESULT
        data = read_if_present(path, _MAX_RESULT_BYTES, RecordError, remedy=_REMEDY)
        if data is None:
            return None
        try:
            found = msgspec.json.decode(data, type=_Stated)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise RecordError(f"{path} is damaged; {_REMEDY}.") from error
        return cls(
            digests=Digests.of(folder, data, found.weights_sha256),
            session=found.session,
            completed={each.attempt: each.round - 1 for each in found.history},
        )

    def require_session(self) -> None:
        """Refuse the result of an older version, which names no session.

        Raises:
            RequestError: It names none.
        """
        if not self.session:
            raise RequestError(
                "the result does not name its run, as an older version wrote it, so a site cannot "
                "tell for which run it would sign; ask the coordinator to sign with --key."
            )

    def require_run_of(self, releases: SiteReleases) -> None:
        """Refuse a result that is not of the run with these releases.

        Raises:
            RequestError: The result names no run or another one, or its completed rounds contradict
                the releases.
        """
        self.require_session()
        if self.session != releases.session.hex():
            raise RequestError(
                f"the result is of the run {self.session[:8]}, and the site's releases are of the "
                f"run {releases.session.hex()[:8]}; sign the result of the run with the releases."
            )
        counted = [a for r, a in releases.attempts if self.completed.get(a) == r]
        others = [a for r, a in releases.attempts if self.completed.get(a, r) != r]
        if others or not counted:
            fault = (
                f"it has attempt {others[0]} in another round"
                if others
                else "no completed round has one of its releases"
            )
            raise RequestError(
                f"the result contradicts the site's trail: {fault}; ask the coordinator for the "
                "run's own result.json."
            )


def _file_hash(path: Path) -> str:
    """Return the hash of a file, or "" if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RecordError(f"cannot read {path}: {why_unreadable(path, error)}.") from error
