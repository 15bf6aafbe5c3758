"""Dual Knowledge Distillation: teacher and student with the losses of FedKD.

The scheme is that of Wu et al. 2022, "Communication-efficient federated learning via knowledge
distillation", equations 1 to 6.  CE are the cross-entropies, p the probabilities and h the features
of teacher t and student s.  W is a linear map.  For each example

    A   = CE_t + CE_s
    L_t = CE_t + KL(p_s‖p_t)/A + MSE(h_t, W h_s)/A
    L_s = CE_s + KL(p_t‖p_s)/A + MSE(h_t, W h_s)/A

Each network descends its own loss, in which the other's part and A are constants.  W descends the
last term.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from cohortium.plugin import (
    DataSpec,
    Multiclass,
    StudyError,
    build_network,
    find_batch_mixing_layers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.plugin import Augmentation, LocalTask, Model

MIN_SCALE = 1e-2
"""The least A.  Without it, the losses of well-learned examples would be divided by nearly zero."""

TEACHER = "teacher."
MAP = "map"
SHAPE = "shape"
"""Name of an image's shape, (C, H, W), in the state.  From it, a teacher of another architecture is
built again.
"""


class TeacherStudentPair(nn.Module):
    """The student, the teacher, and the map between them.

    The student is the site's resident network.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        widths = _last_linear(student).in_features, _last_linear(teacher).in_features
        self.map = nn.Linear(*widths, bias=False)
        nn.init.eye_(self.map.weight)

    @classmethod
    def of(
        cls, net: nn.Module, state: Mapping[str, Tensor], teacher: nn.Module
    ) -> TeacherStudentPair:
        """Return `net` as the student, `teacher`, and the map of `state`."""
        pair = cls(net, teacher).to(next(net.parameters()).device)
        if state:
            pair.map.weight.data.copy_(state[MAP])
        return pair.train()

    def state(self) -> dict[str, Tensor]:
        """Return copies of the weights that stay at the site."""
        kept = {f"{TEACHER}{k}": v.detach().clone() for k, v in self.teacher.state_dict().items()}
        return {**kept, MAP: self.map.weight.detach().clone()}

    def losses(
        self, task: LocalTask, augmentation: Augmentation
    ) -> Callable[[NDArray[np.int64]], Tensor]:
        """Return a function that gives L_t + L_s, shape (B,).

        Its argument is the positions of the examples.
        """

        def losses(batch: NDArray[np.int64]) -> Tensor:
            index = torch.from_numpy(batch).to(task.images.device)
            images, labels = augmentation(task.images[index], task.labels[index], task)
            each: Tensor = self(images, labels)
            return each

        return losses

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return L_t + L_s, shape (B,)."""
        h_s, z_s = _features(self.student, images)
        h_t, z_t = _features(self.teacher, images)
        mapped = self.map(h_s)
        ce_s = functional.cross_entropy(z_s, labels, reduction="none")
        ce_t = functional.cross_entropy(z_t, labels, reduction="none")
        scale = (ce_s + ce_t).detach().clamp_min(MIN_SCALE)
        loss_t = _divergence(z_s, z_t) + (h_t - mapped.detach()).square().mean(1)
        loss_s = _divergence(z_t, z_s) + (h_t.detach() - mapped).square().mean(1)
        total: Tensor = ce_t + ce_s + (loss_t + loss_s) / scale
        return total


def teacher_of(
    net: nn.Module, state: Mapping[str, Tensor], model: Model | None, shape: Sequence[int]
) -> nn.Module:
    """Return the teacher with the weights of `state`, if it has any.

    Args:
        net: The student.  Without a `model`, its copy is the teacher.
        state: State that the site has kept.
        model: Model that the teacher is built by.
        shape: Shape of the student's inputs, (C, H, W).

    Raises:
        StudyError: `model` builds teachers for images, and the student's inputs are none.  Or it
            builds teachers that mix the examples of a batch.
    """
    teacher = copy.deepcopy(net) if model is None else _built(model, net, shape)
    teacher.zero_grad(set_to_none=True)
    own = {k.removeprefix(TEACHER): v for k, v in state.items() if k.startswith(TEACHER)}
    if own:
        teacher.load_state_dict(own)
    return teacher


def _built(model: Model, net: nn.Module, shape: Sequence[int]) -> nn.Module:
    if len(shape) != 3:  # noqa: PLR2004
        raise StudyError(
            "trainer.teacher takes images, and the student's model makes features of them; leave "
            "it out, or give the study a model of another kind."
        )
    channels, *size = shape
    classes = tuple(map(str, range(_last_linear(net).out_features)))
    spec = DataSpec(channels=channels, size=tuple(size), task=Multiclass(classes), examples=1)
    teacher = build_network(model, spec, 0)
    if mixing := find_batch_mixing_layers(teacher):
        raise StudyError(
            f"trainer.teacher mixes the examples of a batch in {mixing[0]}, and its gradient is "
            "clipped example by example under privacy; use GroupNorm instead."
        )
    return teacher


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(p_target‖p) of each example.  The target is a constant."""
    p = target.detach().log_softmax(1)
    each = functional.kl_div(logits.log_softmax(1), p, reduction="none", log_target=True)
    return each.sum(1)


def _features(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last linear layer's inputs, (B, width), and the logits."""
    caught: list[Tensor] = []
    handle = _last_linear(net).register_forward_pre_hook(
        lambda _layer, inputs: caught.append(inputs[0])
    )
    try:
        logits: Tensor = net(images)
    finally:
        handle.remove()
    return caught[-1].flatten(1), logits


def _last_linear(net: nn.Module) -> nn.Linear:
    linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise StudyError(
            "fedmic compares the inputs of the last linear layer, and the model has none; use a "
            "model that ends in one."
        )
    return linear[-1]
