"""Batches of a round: Poisson samples, which amplify privacy, or shuffled passes, which do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.randomness import Stream
    from cohortium.vocabulary import Index, Work


def poisson(work: Work, examples: int, stream: Stream) -> Iterator[Index]:
    """`work.steps` batches, each example in each with probability `work.sampling_rate`.

    Guarantees:
        The draws are independent, and as secret as `stream`; a published seed for them would
        void amplification by sampling.
    """
    for _ in range(work.steps):
        yield np.flatnonzero(stream.uniform(examples) < work.sampling_rate)


def shuffled(work: Work, examples: int, stream: Stream) -> Iterator[Index]:
    """Passes over the examples in batches of `work.batch_size`: `work.epochs`, or `work.steps`.

    Where the work declares no batch size, these are Poisson samples too.
    """
    if work.batch_size is None:
        yield from poisson(work, examples, stream)
        return
    rng = stream.generator()
    per_pass = -(-examples // work.batch_size)
    steps = work.steps if work.epochs is None else work.epochs * per_pass
    for step in range(steps):
        if step % per_pass == 0:
            order = rng.permutation(examples)
        start = step % per_pass * work.batch_size
        yield order[start : start + work.batch_size]
