"""The contract of an `OwnModelTrainer`: a site's own tensors reach no release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.roles.protocols import OwnModelTrainer
from cohortium.testing import samples
from cohortium.testing.contract import ensure
from cohortium.testing.probes import (
    COHORT,
    EXAMPLES,
    ProbePrivatizer,
    declared_workload,
    local_task,
    on_unchanged_data,
    poisson_batches,
    train,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cohortium.roles.protocols import Trainer
    from cohortium.roles.values import LocalResult


def check_own_tensors(trainer: Trainer) -> str | None:
    """Training a site's own tensors changes nothing that a release depends on.

    The second round is compared before and after the own tensors are trained, on other images.
    """
    import torch

    if not isinstance(trainer, OwnModelTrainer):
        return None
    first = _release(trainer, 0, {})
    one = _release(trainer, 1, first.state)
    own = _train_own(trainer, {}, first.state)
    own = _train_own(trainer, own, first.state)
    other = _release(trainer, 1, first.state)
    ensure(
        torch.equal(one.vector, other.vector)
        and one.state.keys() == other.state.keys()
        and all(torch.equal(one.state[name], other.state[name]) for name in one.state),
        "the release of a round depends on the site's own tensors of the round before, which no "
        "clip and no noise covers; let train_own keep nothing on the trainer and change no tensor "
        "that it is given.",
    )
    ensure(
        not own.keys() & one.state.keys(),
        f"train and train_own give tensors of one name ({', '.join(own.keys() & one.state.keys())})"
        "; choose others.",
    )
    net = samples.network()
    require_logits(trainer.personalize(net, {**one.state, **own}))
    return None


def require_logits(personal: nn.Module) -> None:
    """Require that a personal network gives logits as the global one does."""
    import torch

    with torch.no_grad():
        found = personal.eval()(torch.zeros(2, 3, samples.SIDE, samples.SIDE))
    ensure(
        tuple(found.shape) == (2, len(samples.CLASSES)),
        f"the personal network gives shape {tuple(found.shape)} for 2 images of "
        f"{len(samples.CLASSES)} classes; it must give logits as the global one does.",
    )


def _release(trainer: Trainer, round_: int, state: Mapping[str, Tensor]) -> LocalResult:
    batches = poisson_batches(declared_workload(trainer))
    return train(trainer, ProbePrivatizer(batches, fill=None), round=round_, state=state)


def _train_own(
    trainer: OwnModelTrainer, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    import torch

    data = samples.examples(EXAMPLES, seed=COHORT.rounds)
    task = local_task(trainer, data=data, state=state)
    given = [*own.values(), *state.values()]
    kept = [tensor.clone() for tensor in given]
    found = on_unchanged_data(task, lambda: trainer.train_own(task, own))
    ensure(
        all(map(torch.equal, kept, given)),
        "train_own changed a tensor that it was given; return new ones.",
    )
    ensure(
        isinstance(found, dict)
        and all(isinstance(tensor, torch.Tensor) for tensor in found.values()),
        "train_own must return tensors by name.",
    )
    return {name: tensor.detach().clone() for name, tensor in found.items()}
