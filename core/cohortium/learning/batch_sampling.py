"""Batches of a round: Poisson samples or shuffled passes.

Poisson samples amplify privacy.  Shuffled passes do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.errors import RefusalCode, RefusalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.crypto.randomness import KeyStream
    from cohortium.privacy.guarantee import Unit
    from cohortium.roles.values import ExampleIndices, Workload


def poisson_batches(
    workload: Workload, examples: int, stream: KeyStream
) -> Iterator[ExampleIndices]:
    """Draw `workload.steps` Poisson samples of `examples` at `workload.sampling_rate`.

    Guarantees:
        The draws are independent, and as secret as `stream`.
        A published seed for them would void amplification by sampling.
    """
    for _ in range(workload.steps):
        yield np.flatnonzero(stream.uniform(examples) < workload.sampling_rate)


def sample_batches(
    workload: Workload,
    unit: Unit,
    examples: int,
    patients: ExampleIndices | None,
    stream: KeyStream,
) -> Iterator[ExampleIndices]:
    """Return the batches that hide a `unit`.

    These are Poisson samples of examples or of patients.

    With unit "site" a batch hides nothing, and is drawn as the workload declares.

    Args:
        workload: The number of batches, and the sampling rate.
        unit: The unit that the batches hide.
        examples: Number of the site's examples.
        patients: The patient of each example, shape (N,).  None where the data do not name them.
        stream: As secret as the batches must be.

    Raises:
        RefusalError: The batches must hide patients, and the data do not name the patient of each
            image.
    """
    if unit == "site":
        return shuffled_batches(workload, examples, stream)
    if unit == "example":
        return poisson_batches(workload, examples, stream)
    if patients is None:
        raise RefusalError(RefusalCode.PATIENTS, "its data do not say whose each image is.")
    return poisson_patient_batches(workload, patients, stream)


def poisson_patient_batches(
    workload: Workload, patients: ExampleIndices, stream: KeyStream
) -> Iterator[ExampleIndices]:
    """Draw `workload.steps` Poisson samples of patients at `workload.sampling_rate`.

    One example represents each drawn patient.  It is drawn at random each time.  So no patient has
    more examples in a batch than another, however many the patient's examples.

    Args:
        workload: The number of batches, and the sampling rate.
        patients: The patient of each example, shape (N,).
        stream: As secret as the batches must be.
    """
    _, owner, held = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.argsort(owner, kind="stable")  # examples, patient by patient
    first = np.cumsum(held) - held
    for _ in range(workload.steps):
        drawn = np.flatnonzero(stream.uniform(len(held)) < workload.sampling_rate)
        chosen = first[drawn] + (stream.uniform(len(drawn)) * held[drawn]).astype(np.int64)
        yield order[chosen]


def shuffled_batches(
    workload: Workload, examples: int, stream: KeyStream
) -> Iterator[ExampleIndices]:
    """Pass over `examples`, shuffled, in batches of `workload.batch_size`.

    The order is drawn from `stream`.  Where the workload declares no batch size, the batches are
    Poisson samples too.

    Batches hide nothing here.  So none needs to have fewer than `workload.fewest` examples.  If
    fewer are left at the end of a pass, they join the batch before.  A Poisson sample with fewer
    counts as empty.

    Raises:
        RefusalError: The site has fewer examples than `workload.fewest`.
    """
    if examples < workload.fewest:
        raise RefusalError(
            RefusalCode.EXAMPLES,
            f"it has {examples} of the {workload.fewest} images on which this network can be "
            "trained at a time.",
        )
    if workload.batch_size is None:
        for batch in poisson_batches(workload, examples, stream):
            yield batch if len(batch) >= workload.fewest else batch[:0]
        return
    rng = stream.generator()
    per_pass, left = divmod(examples, workload.batch_size)
    per_pass += left >= workload.fewest or not per_pass
    steps = workload.steps if workload.epochs is None else workload.epochs * per_pass
    for step in range(steps):
        place = step % per_pass
        if place == 0:
            order = rng.permutation(examples)
        start = place * workload.batch_size
        yield order[start : start + workload.batch_size if place + 1 < per_pass else None]
