"""The contract of a `Partitioner`: no overlap, and no hidden input.

The partition is a function of its arguments alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.errors import StudyError
from cohortium.testing import samples
from cohortium.testing.contract import Check, ConformanceError, ensure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cohortium.data.examples import Examples
    from cohortium.roles.protocols import Partitioner
    from cohortium.roles.values import ExampleIndices

EXAMPLES = 240
"""Number of examples that are partitioned."""

SITES = (1, 3, 6)
"""Numbers of sites."""


def check_honours_the_number_of_sites(partitioner: Partitioner) -> None:
    """One part for each site, and none empty."""
    for sites, partition in _deals(partitioner):
        ensure(
            len(partition) == sites,
            f"{sites} sites were asked for and {len(partition)} parts made; make one for each.",
        )
        for site, indices in enumerate(partition):
            ensure(
                isinstance(indices, np.ndarray) and indices.dtype == np.int64 and indices.ndim == 1,
                f"the part of site {site} is no one-dimensional int64 array but "
                f"{getattr(indices, 'dtype', type(indices).__name__)}; convert it.",
            )
            ensure(
                len(indices),
                f"site {site} of {sites} was assigned no example; give every site an example, or "
                "raise StudyError.",
            )


def check_no_example_twice(partitioner: Partitioner) -> str | None:
    """No example goes to two sites, or twice to one.

    A note tells whether some examples go to no site.
    """
    left = 0
    for sites, partition in _deals(partitioner):
        dealt = np.concatenate(list(partition))
        ensure(
            dealt.size == 0 or (dealt.min() >= 0 and dealt.max() < EXAMPLES),
            f"a position outside 0…{EXAMPLES - 1} was assigned to {sites} sites; use positions "
            "that exist.",
        )
        ensure(
            len(np.unique(dealt)) == len(dealt),
            f"an example was assigned twice among {sites} sites; its owner's privacy would be "
            "spent twice. Cut one permutation into parts.",
        )
        left = max(left, EXAMPLES - len(dealt))
    return f"leaves up to {left} of {EXAMPLES} examples undealt" if left else None


def check_deal_is_repeatable(partitioner: Partitioner) -> None:
    """The partition depends on the arguments and `rng` alone.

    NumPy's global generator has no influence.
    """
    state = np.random.get_state()  # noqa: NPY002 - the check is that nobody uses it
    try:
        np.random.seed(1)  # noqa: NPY002
        one = list(_deals(partitioner))
        np.random.seed(2)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
        other = list(_deals(partitioner))
        after = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002
    same = all(
        len(a) == len(b) and all(map(np.array_equal, a, b))
        for (_, a), (_, b) in zip(one, other, strict=True)
    )
    ensure(
        same and np.array_equal(before, after),
        "equal arguments and generators gave different partitions, or moved NumPy's global "
        "generator; "
        "draw from the `rng` that is passed in, and from nothing else.",
    )


def check_examples_untouched(partitioner: Partitioner) -> None:
    """The given examples stay unchanged."""
    data, kept = samples.examples(EXAMPLES), samples.examples(EXAMPLES)
    for _ in _deals(partitioner, data):
        pass
    for name in ("images", "labels", "clients"):
        ensure(
            np.array_equal(getattr(data, name), getattr(kept, name)),
            f"partitioning changed the {name} it was shown; work on a copy.",
        )


def check_refuses_too_many_sites(partitioner: Partitioner) -> None:
    """More sites than examples raise a `StudyError`.

    The partition has no empty part, and no other exception is raised.
    """
    try:
        partitioner.partition(samples.examples(4), 9, np.random.default_rng(0))
    except StudyError:
        return
    except Exception as error:
        raise ConformanceError(
            f"4 examples for 9 sites raised {type(error).__name__}: {error}; raise a StudyError "
            "whose sentence names a remedy."
        ) from error
    raise ConformanceError(
        "4 examples were split over 9 sites; raise StudyError for an impossible split."
    )


CHECKS: tuple[Check, ...] = (
    check_honours_the_number_of_sites,
    check_no_example_twice,
    check_deal_is_repeatable,
    check_examples_untouched,
    check_refuses_too_many_sites,
)
"""Every check of a partitioner."""


def _deals(
    partitioner: Partitioner, data: Examples | None = None
) -> Iterator[tuple[int, Sequence[ExampleIndices]]]:
    """Yield the partitions for the numbers of sites that are not refused."""
    data = samples.examples(EXAMPLES) if data is None else data
    refusals = []
    for sites in SITES:
        try:
            partition = partitioner.partition(data, sites, np.random.default_rng(sites))
        except StudyError as error:
            refusals.append(str(error))
            continue
        yield sites, partition
    ensure(
        len(refusals) < len(SITES),
        f"{EXAMPLES} examples of 12 clients could be split over no number of sites: "
        f"{' '.join(dict.fromkeys(refusals))}",
    )
