"""Images that simulated sites hold out of their training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cohortium.data.examples import Examples
    from cohortium.crypto.randomness import Seeds
    from cohortium.roles.values import Index


def hold_out(
    examples: Examples, hands: tuple[Index, ...], share: float, seeds: Seeds
) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
    """Hands to train on, and for each site what it holds out: `share` of it, rounded down.

    Where the data name patients, whole patients are held out.  A site keeps at least one unit to
    train on.
    """
    kept, held = [], []
    for site, hand in enumerate(hands):
        owners = hand if examples.patients is None else examples.patients[hand]
        units = np.unique(owners)
        count = min(int(share * len(units)), len(units) - 1)
        chosen = seeds.generator("holdout", site).choice(units, count, replace=False)
        is_held = np.isin(owners, chosen)
        kept.append(hand[~is_held])
        held.append(hand[is_held])
    return tuple(kept), tuple(held)
