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
class Kept:
    """A site's state in its latest round.

    Attributes:
        round: From 0; -1 before the first.
        before: The state with which the round began, whichever attempt at it is made.
        after: The state after the latest attempt; the next round begins with it.
    """

    round: int = -1
    before: Mapping[str, Tensor] = field(factory=dict, repr=False)
    after: Mapping[str, Tensor] = field(factory=dict, repr=False)

    @classmethod
    def of(cls, round_: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Kept:
        """What a trainer hands back after `round_`; copied, for the network is another's next."""
        copies = {name: tensor.detach().clone() for name, tensor in after.items()}
        return cls(round=round_, before=before, after=copies)

    def on(self, device: str) -> Kept:
        """The same on `device`."""
        before, after = (
            {name: tensor.to(device) for name, tensor in part.items()}
            for part in (self.before, self.after)
        )
        return Kept(round=self.round, before=before, after=after)

    def entering(self, round_: int) -> Mapping[str, Tensor]:
        """The state with which `round_`, this one or a later one, begins."""
        return self.after if round_ > self.round else self.before


class Store(Protocol):
    """Where a site's state goes."""

    def read(self) -> Kept:
        """What was kept last; nothing at first."""
        ...

    def write(self, kept: Kept) -> None:
        """Keep `kept`, in place of what was kept before."""
        ...

    def require_room(self, size: int) -> None:
        """Raise what keeping `size` bytes would; nothing is kept."""
        ...


def content_of(session: bytes, kept: Kept) -> bytes:
    """What a file holds that keeps `kept` for a run.

    Raises:
        RunError: It holds something else than tensors.
    """
    return tensor_tree.dump(
        {
            "format": FORMAT,
            "session": session.hex(),
            "round": kept.round,
            "before": dict(kept.before),
            "after": dict(kept.after),
        }
    )


@frozen
class StateFile:
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

    def read(self) -> Kept:
        """What was kept last; nothing where nothing was, or only by another run.

        Raises:
            RunError: The file is damaged, or is something else.
        """
        try:
            content = tensor_tree.read(self.path)
        except FileNotFoundError:
            return Kept()
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RunError(f"{self.path} is no site's state of format {FORMAT}.")
        if content["session"] != self.session.hex():
            return Kept()
        return Kept(round=content["round"], before=content["before"], after=content["after"])

    def write(self, kept: Kept) -> None:
        """Keep `kept`, in place of what was kept before.

        Raises:
            OSError: It cannot be written; what was kept before stands.
            RunError: It holds something else than tensors.
        """
        data = content_of(self.session, kept)
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
