"""A site's own network, from the state that the run's trainer keeps there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.errors import CohortiumError, DataError, RequestError, RunError
from cohortium.rounds.local_round import reading_own
from cohortium.storage.trainer_state import read_trainer_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from cohortium.roles.protocols import Trainer

MAX_STATE_BYTES = 1 << 33
"""Largest file of a site's state that is read."""


def own_network(trainer: Trainer, net: nn.Module, path: Path) -> nn.Module:
    """Return the site's own network, in evaluation mode.

    Args:
        trainer: The run's trainer.
        net: The run's global network, which is not changed.
        path: The site's file of the trainer's state.

    Guarantees:
        Nothing in the file is executed.

    Raises:
        RequestError: There is no such file, or the trainer keeps no network at a site.
        DataError: The state does not belong to this trainer and network, or has values that are no
            numbers. Or the file is damaged, or is something else.
    """
    import torch

    if not path.is_file():
        raise RequestError(f"{path} is no file; give the file of the site's state.")
    if path.stat().st_size > MAX_STATE_BYTES:
        raise DataError(f"{path} is larger than {MAX_STATE_BYTES:,} bytes, more than a state has.")
    try:
        _, _, kept = read_trainer_state(path)
    except RunError as error:
        told = str(error).removesuffix(".")
        raise DataError(f"{told}; give a file of the site's state_dir, or another copy.") from error
    state = reading_own(kept.at_round_end)
    for tensor in state.values():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{path} has values that are no finite numbers; take another copy.")
    try:
        own = trainer.personalize(net, state)
        is_finite = all(bool(torch.isfinite(p).all()) for p in own.parameters())
    except CohortiumError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        raise DataError(
            f"the state in {path} is not of this run's model and trainer "
            f"({type(error).__name__}); give the site's file of this run."
        ) from error
    if own is net:
        raise RequestError(
            f"{path} holds no network of the site's own, since the run's trainer keeps none; leave "
            "out --state."
        )
    if not is_finite:
        raise DataError(f"{path} gives weights that are no finite numbers; take another copy.")
    return own.eval()


def trainer_of(study: dict[str, Any], *, where: str) -> Trainer:
    """Return the trainer of a study's tables.

    Args:
        study: The tables.
        where: The file, for an error.

    Raises:
        StudyError: There is no such table, or it describes no trainer.
        PluginError: Its plugin cannot be used.
    """
    table = study.get("trainer")
    if not isinstance(table, dict):
        raise DataError(f"{where}: there is no table [trainer]; is it a run's own?")
    found: Trainer = construction.build_part(discover(), "trainer", table, where=where)
    return found
