"""Images that simulated sites hold out of their training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.errors import StudyError

if TYPE_CHECKING:
    from cohortium.crypto.randomness import Seeds
    from cohortium.data.examples import Examples
    from cohortium.roles.values import ExampleIndices


def hold_out(
    examples: Examples, partition: tuple[ExampleIndices, ...], share: float, seeds: Seeds
) -> tuple[tuple[ExampleIndices, ...], tuple[ExampleIndices, ...]]:
    """Return each site's training examples and its held-out examples.

    The held-out examples are `share` of the site's, rounded down. If the data name patients, whole
    patients are held out. A site keeps at least one unit for training.

    Raises:
        StudyError: No site has enough units to hold one out.
    """
    kept, held = [], []
    for site, indices in enumerate(partition):
        owners = indices if examples.patients is None else examples.patients[indices]
        units = np.unique(owners)
        count = min(int(share * len(units)), len(units) - 1)
        chosen = seeds.generator("holdout", site).choice(units, count, replace=False)
        is_held = np.isin(owners, chosen)
        kept.append(indices[~is_held])
        held.append(indices[is_held])
    if share and not any(len(indices) for indices in held):
        few = "images" if examples.patients is None else "patients"
        raise StudyError(
            f"federation.holdout_fraction = {share:g} holds no image out, because every site has "
            f"too few {few}; raise it, or take fewer sites."
        )
    return tuple(kept), tuple(held)
