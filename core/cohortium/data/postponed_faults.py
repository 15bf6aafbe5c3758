"""Faults of a data set as a whole, which a look at it tells together with those of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from attrs import field, frozen

from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

_Found = TypeVar("_Found")


@frozen
class PostponedFaults:
    """Faults that are raised at once in a run, and together after a look.

    Attributes:
        is_look: Whether faults are postponed.
    """

    is_look: bool
    _sentences: list[str] = field(factory=list, init=False)

    def attempt(self, read: Callable[[], _Found]) -> _Found | None:
        """Return the result of `read`, or None if its fault is postponed.

        Raises:
            DataError: `read` has a fault, and this is no look.
        """
        try:
            return read()
        except DataError as error:
            if not self.is_look:
                raise
            self._sentences.append(str(error))
            return None

    def raise_all(self) -> None:
        """Raise the postponed faults, if any.

        Raises:
            DataError: There are some. Each has a line.
        """
        if self._sentences:
            raise DataError("\n".join(self._sentences))
