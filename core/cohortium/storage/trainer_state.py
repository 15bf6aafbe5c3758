"""A trainer's state at a site between rounds, which survives restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from cohortium.errors import RefusalCode, RefusalError, RunError
from cohortium.storage import tensor_tree
from cohortium.storage.atomic import atomic_write, require_room

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import TypeGuard

    from torch import Tensor

FORMAT = 1


@frozen(eq=False, kw_only=True)
class TrainerState:
    """A site's state in its latest round.

    Attributes:
        round: Number of the round, from 0, or -1 before the first.
        at_round_start: The state with which the round began, equal for every attempt at the round.
        at_round_end: The state after the latest attempt, with which the next round begins.
    """

    round: int = -1
    at_round_start: Mapping[str, Tensor] = field(factory=dict, repr=False)
    at_round_end: Mapping[str, Tensor] = field(factory=dict, repr=False)

    @classmethod
    def of(
        cls, round_: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> TrainerState:
        """Return the state of a trainer after `round_`.

        The method copies it, because another site uses the network next.
        """
        copies = {name: tensor.detach().clone() for name, tensor in after.items()}
        return cls(round=round_, at_round_start=before, at_round_end=copies)

    def to_device(self, device: str) -> TrainerState:
        """Return the state on `device`."""
        before, after = (
            {name: tensor.to(device) for name, tensor in part.items()}
            for part in (self.at_round_start, self.at_round_end)
        )
        return TrainerState(round=self.round, at_round_start=before, at_round_end=after)

    def state_for(self, round_: int) -> Mapping[str, Tensor]:
        """Return the state with which `round_`, this or a later one, begins."""
        return self.at_round_end if round_ > self.round else self.at_round_start


class TrainerStateStore(Protocol):
    """Store of a site's state."""

    def read(self) -> TrainerState:
        """Return the last stored state, which is empty at first."""
        ...

    def write(self, kept: TrainerState) -> None:
        """Store `kept`, in place of the previous state."""
        ...

    def require_room(self, size: int) -> None:
        """Raise the error of storing `size` bytes, without storing them."""
        ...


def encode_trainer_state(session: bytes, kept: TrainerState, study: str = "") -> bytes:
    """Return the content of a run's file that stores `kept`.

    Args:
        session: Session of the run.
        kept: The state.
        study: Digest of the run's study, or "".

    Raises:
        RunError: The state has a value that is not a tensor.
    """
    return tensor_tree.dumps(
        {
            "format": FORMAT,
            "session": session.hex(),
            "study": study,
            "round": kept.round,
            "before": dict(kept.at_round_start),
            "after": dict(kept.at_round_end),
        }
    )


def read_trainer_state(path: Path) -> tuple[str, str, TrainerState]:
    """Return the session and the study of a file's run, and the state in it.

    Guarantees:
        Nothing in the file is executed.

    Raises:
        FileNotFoundError: The file does not exist.
        RunError: The file is damaged, is something else, or has another format.
    """
    content = tensor_tree.read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path} is no site's state of format {FORMAT}.")
    session: Any
    study: Any
    round_: Any
    session, round_ = content.get("session"), content.get("round")
    study = content.get("study", "")
    before, after = content.get("before"), content.get("after")
    is_typed = isinstance(session, str) and isinstance(study, str) and isinstance(round_, int)
    if not (is_typed and _is_state(before) and _is_state(after)):
        raise RunError(f"{path} is no site's state: its entries are of other types.")
    kept = TrainerState(round=round_, at_round_start=before, at_round_end=after)
    return session, study, kept


def _is_state(part: object) -> TypeGuard[dict[str, Tensor]]:
    import torch

    return isinstance(part, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in part.items()
    )


@frozen
class TrainerStateFile:
    """A site's file of its trainer state, which it never sends.

    Guarantees:
        `write` returns when the file survives a power cut.
        Until then, the previous file is unchanged.
        State of another run is not taken for this run's. Nor is it that of another study whose
        coordinator gives it the session of an earlier run. Such state may be private in another
        way than the study's guarantee assumes.

    Attributes:
        path: The file, of mode 0600. Its folder is created when it is needed.
        session: Session of the run.
        study: Digest of its study, or "" in a simulation.
    """

    path: Path
    session: bytes
    study: str = ""

    def read(self) -> TrainerState:
        """Return this run's last stored state, which is empty at first.

        Raises:
            RunError: The file is damaged, or has another format.
            RefusalError: The state is of another study with the same session.
        """
        try:
            session, study, kept = read_trainer_state(self.path)
        except FileNotFoundError:
            return TrainerState()
        if session != self.session.hex():
            return TrainerState()
        if study != self.study:
            raise RefusalError(
                RefusalCode.SESSION, "this site took part in that run with another study."
            )
        return kept

    def write(self, kept: TrainerState) -> None:
        """Store `kept`, in place of the previous state.

        Raises:
            OSError: The state cannot be written. The previous one is unchanged.
            RunError: The state has a value that is not a tensor.
        """
        data = encode_trainer_state(self.session, kept, self.study)
        self.path.parent.mkdir(exist_ok=True)
        atomic_write(self.path, data)

    def require_room(self, size: int) -> None:
        """Raise the error of writing `size` bytes or the present size.

        The larger of the two counts.

        The file is unchanged.

        Raises:
            OSError: The bytes cannot be written.
        """
        self.path.parent.mkdir(exist_ok=True)
        held = self.path.stat().st_size if self.path.exists() else 0
        require_room(self.path.parent, max(size, held))
