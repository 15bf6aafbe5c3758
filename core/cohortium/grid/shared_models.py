"""One model for all studies that have equal ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cohortium.federation import Federation
    from cohortium.roles.protocols import Model


def with_shared_models(studies: Iterable[Federation]) -> Iterator[Federation]:
    """Yield studies in which equal models are one value.

    A model computes the features of its public images at first use, and keeps them. So all studies
    that are prepared or run in this process compute them once.
    """
    models: list[Model] = []
    for study in studies:
        known = next((model for model in models if model == study.model), None)
        if known is None:
            models.append(study.model)
            yield study
        else:
            yield attrs.evolve(study, model=known)
