"""Guard that limits a trainer to the work that privacy covers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field

from cohortium.catalog.part_results import require_result
from cohortium.errors import RefusalCode, RefusalError
from cohortium.parameters import flatten, flatten_gradients

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from cohortium.privacy.guarantee import Guarantee
    from cohortium.ring.ring import RingVector
    from cohortium.roles.sessions import SitePrivatizer
    from cohortium.roles.values import ExampleIndices, Workload


@define(eq=False)
class GuardedPrivatizer:
    """A site's privatizer at example level that counts its uses.

    Guarantees:
        A trainer takes gradients only of batches that the privatizer yielded, of each batch once,
        and of as many batches as were declared.
        Otherwise the site refuses to release anything.
        If only the release is noised, the released vector equals the gradient that was set.
        Any change that a trainer made to it would change the value that the noise protects.

    Attributes:
        privatizer: The guarded privatizer.
        steps: Number of declared batches.
        is_noised_late: Whether gradients are clipped, and not noised before the release.
    """

    privatizer: SitePrivatizer
    steps: int
    is_noised_late: bool = False
    _gradient: Tensor | None = field(default=None, repr=False)
    _has_yielded_batches: bool = False
    _yielded: list[ExampleIndices] = field(factory=list, repr=False)
    _num_taken: int = 0

    @property
    def wrapped_part(self) -> SitePrivatizer:
        """The privatizer inside, which an error names."""
        return self.privatizer

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield the privatizer's batches, once."""
        if self._has_yielded_batches:
            raise _contract_violation("draws batches twice in a round")
        self._has_yielded_batches = True
        batches: object = self.privatizer.batches(examples)
        require_result(
            self, "batches", batches, isinstance(batches, Iterable), "an iterator over batches"
        )
        assert isinstance(batches, Iterable)
        for count, batch in enumerate(batches, start=1):
            self._require_batch(batch, examples, count)
            self._yielded.append(batch)
            yield batch

    def _require_batch(self, batch: object, examples: int, count: int) -> None:
        """Refuse a batch that is none of the `examples`, or one more than was declared."""
        is_right = (
            count <= self.steps
            and isinstance(batch, np.ndarray)
            and batch.ndim == 1
            and batch.dtype.kind in "iu"
            and bool(((batch >= 0) & (batch < examples)).all())
        )
        if is_right:
            return
        found = f"{self.steps} batches of positions below {examples:,}"
        require_result(self, "batches", batch, False, found)  # noqa: FBT003

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Set the privatizer's gradient of a yielded, unused batch."""
        place = next((i for i, one in enumerate(self._yielded) if one is batch), None)
        if place is None:
            raise _contract_violation(
                "takes the gradient of a batch that was not drawn for it, or twice"
            )
        del self._yielded[place]
        self._num_taken += 1
        self.privatizer.set_private_gradient(net, losses, batch)
        if self.is_noised_late:
            self._gradient = flatten_gradients(net, before=flatten(net))

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Return the privatizer's release, if all went as declared."""
        if self._num_taken != self.steps:
            raise _contract_violation(
                f"took {self._num_taken} gradients where {self.steps} were declared"
            )
        if self._gradient is not None and not self._gradient.equal(vector.to(self._gradient)):
            raise _contract_violation("releases something else than the gradient that was clipped")
        return self.privatizer.release(vector, weight)


def guard(
    privatizer: SitePrivatizer, guarantee: Guarantee | None, workload: Workload
) -> SitePrivatizer:
    """Return `privatizer`, guarded if it protects examples or patients."""
    if guarantee is None or guarantee.unit == "site":
        return privatizer
    return GuardedPrivatizer(
        privatizer, workload.steps, is_noised_late=guarantee.against == "coordinator"
    )


def _contract_violation(what: str) -> RefusalError:
    return RefusalError(
        RefusalCode.TRAINER, f"the trainer {what}, which its guarantee does not cover."
    )
