"""What a trainer keeps at a site from one round to the next, where a restart finds it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from cohortium.errors import RunError
from cohortium.storage import tensor_tree
from cohortium.storage.atomic import atomic_write, require_room

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

FORMAT = 1


@frozen(eq=False, kw_only=True)
class TrainerState:
    """A site's state in its latest round.

    Attributes:
        round: From 0; -1 before the first.
        at_round_start: The state with which the round began, whichever attempt at it is made.
        at_round_end: The state after the latest attempt; the next round begins with it.
    """

    round: int = -1
    at_round_start: Mapping[str, Tensor] = field(factory=dict, repr=False)
    at_round_end: Mapping[str, Tensor] = field(factory=dict, repr=False)

    @classmethod
    def of(
        cls, round_: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> TrainerState:
        """What a trainer hands back after `round_`; copied, for the network is another's next."""
        copies = {name: tensor.detach().clone() for name, tensor in after.items()}
        return cls(round=round_, at_round_start=before, at_round_end=copies)

    def to_device(self, device: str) -> TrainerState:
        """The same on `device`."""
        before, after = (
            {name: tensor.to(device) for name, tensor in part.items()}
            for part in (self.at_round_start, self.at_round_end)
        )
        return TrainerState(round=self.round, at_round_start=before, at_round_end=after)

    def state_for(self, round_: int) -> Mapping[str, Tensor]:
        """The state with which `round_`, this one or a later one, begins."""
        return self.at_round_end if round_ > self.round else self.at_round_start


class TrainerStateStore(Protocol):
    """Where a site's state goes."""

    def read(self) -> TrainerState:
        """What was kept last; nothing at first."""
        ...

    def write(self, kept: TrainerState) -> None:
        """Keep `kept`, in place of what was kept before."""
        ...

    def require_room(self, size: int) -> None:
        """Raise what keeping `size` bytes would; nothing is kept."""
        ...


def encode_trainer_state(session: bytes, kept: TrainerState) -> bytes:
    """What a file holds that keeps `kept` for a run.

    Raises:
        RunError: It holds something else than tensors.
    """
    return tensor_tree.dumps(
        {
            "format": FORMAT,
            "session": session.hex(),
            "round": kept.round,
            "before": dict(kept.at_round_start),
            "after": dict(kept.at_round_end),
        }
    )


@frozen
class TrainerStateFile:
    """A site's own file for it; what is in it is never sent.

    Guarantees:
        `write` returns when the file outlives a power cut; until then the one before it stands.
        State of another run is not taken for this one's.

    Attributes:
        path: The file, of mode 0600; its folder is made when it is needed.
        session: The run's.
    """

    path: Path
    session: bytes

    def read(self) -> TrainerState:
        """What was kept last; nothing where nothing was, or only by another run.

        Raises:
            RunError: The file is damaged, or is something else.
        """
        try:
            content = tensor_tree.read(self.path)
        except FileNotFoundError:
            return TrainerState()
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RunError(f"{self.path} is no site's state of format {FORMAT}.")
        if content["session"] != self.session.hex():
            return TrainerState()
        return TrainerState(
            round=content["round"], at_round_start=content["before"], at_round_end=content["after"]
        )

    def write(self, kept: TrainerState) -> None:
        """Keep `kept`, in place of what was kept before.

        Raises:
            OSError: It cannot be written; what was kept before stands.
            RunError: It holds something else than tensors.
        """
        data = encode_trainer_state(self.session, kept)
        self.path.parent.mkdir(exist_ok=True)
        atomic_write(self.path, data)

    def require_room(self, size: int) -> None:
        """Raise what writing `size` bytes, or as many as there are, would; the file stays.

        Raises:
            OSError: They cannot be written.
        """
        self.path.parent.mkdir(exist_ok=True)
        held = self.path.stat().st_size if self.path.exists() else 0
        require_room(self.path.parent, max(size, held))
