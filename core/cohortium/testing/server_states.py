"""The contract of a `ServerStateTrainer`: one vector, computed from released means alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium import parameters
from cohortium.roles.protocols import ServerStateTrainer
from cohortium.roles.values import ReleasedMean
from cohortium.testing import samples
from cohortium.testing.contract import ensure
from cohortium.testing.probes import (
    COHORT,
    ProbePrivatizer,
    declared_workload,
    poisson_batches,
    train,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.roles.protocols import Trainer


def check_server_state(trainer: Trainer) -> str | None:
    """The server state is a vector of constant length, and a function of its arguments.

    The further numbers of a release are as many as declared.
    """
    import torch

    if not isinstance(trainer, ServerStateTrainer):
        return None
    length = parameters.length(samples.network())
    declared = trainer.extra_length(length)
    state = _vector(trainer.initial_server_state(length), "initial_server_state")
    workload = declared_workload(trainer)
    trained = train(trainer, ProbePrivatizer(poisson_batches(workload), fill=None))
    extra = torch.zeros(0) if trained.extra is None else trained.extra
    ensure(
        extra.shape == (declared,) and extra.dtype == torch.float32,
        f"train gave further numbers of shape {tuple(extra.shape)} and {extra.dtype}, and "
        f"extra_length declares {declared} float32 numbers.",
    )
    ensure(
        not declared or workload.output == "update",
        "further numbers are released with a gradient, whose clip and noise do not cover them; "
        "release an update.",
    )
    ensure(torch.isfinite(extra).all(), "one round on noise images made NaN or infinity in extra.")
    rng = np.random.default_rng(0)
    for round_ in range(COHORT.rounds):
        mean = ReleasedMean(
            vector=torch.from_numpy(rng.normal(size=length).astype(np.float32)),
            extra=torch.from_numpy(rng.normal(size=declared).astype(np.float32)),
            round=round_,
            rounds=COHORT.rounds,
            steps=workload.steps,
            share=0.5,
        )
        given = state.clone(), mean.vector.clone(), mean.extra.clone()
        found, again = (
            _vector(trainer.next_server_state(state, mean), "next_server_state") for _ in range(2)
        )
        ensure(
            all(map(torch.equal, given, (state, mean.vector, mean.extra))),
            "next_server_state changed its arguments, so that a repeated attempt would begin with "
            "another state; return a new tensor.",
        )
        ensure(
            torch.equal(found, again),
            "next_server_state gave two states for equal arguments; keep nothing on the trainer, "
            "and draw nothing at random.",
        )
        ensure(
            found.shape == state.shape,
            f"the server state has {len(state)} numbers first and {len(found)} later; its length "
            "must not change.",
        )
        state = found
    return None


def _vector(state: Tensor, method: str) -> Tensor:
    import torch

    ensure(
        isinstance(state, torch.Tensor) and state.ndim == 1 and state.dtype == torch.float32,
        f"{method} must return a vector of float32.",
    )
    ensure(torch.isfinite(state).all(), f"{method} gave NaN or infinity.")
    return state
