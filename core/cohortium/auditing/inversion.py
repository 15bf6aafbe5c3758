"""Reconstruction of images from a gradient, by a coordinator that knows the network.

There are two attacks. If the first layer is linear with a bias, a quotient of its gradients is the
layer's input (Phong et al. 2018). Otherwise the attack searches images whose gradient points where
the release points, and which are smooth (Zhu et al. 2019, Geiping et al. 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from cohortium import parameters
from cohortium.data.multiclass import Multiclass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor, nn

    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Model

SMOOTHNESS: Final = (0.3, 0.005)
"""Weights of the total variation at the start of a search and at its end.

A smooth image is found first, and its details after it.
"""

RATE: Final = 0.1
"""Step size of the search at its start, in units of the range of intensities."""

_TINY: Final = 1e-12


@frozen(eq=False, kw_only=True)
class Inversion:
    """An attacker with a network, its weights and a release.

    Attributes:
        model: The study's model, whose `preprocess` is public.
        spec: Public facts about the data.
        net: The network with the round's global weights.
        gradient: The release as a gradient, shape (P,), up to a positive factor.
        device: Device on which the network computes.
    """

    model: Model
    spec: DataSpec
    net: nn.Module
    gradient: Tensor = field(repr=False)
    device: str = "cpu"

    def gives_pictures(self) -> bool:
        """Return whether the network's inputs are images, and gradients reach the pixels."""
        import torch

        images = torch.full((1, *self.spec.shape), 0.5, requires_grad=True)
        try:
            # A preprocessing step may work in place, which a leaf does not allow.
            inputs = self.model.preprocess(images * 1.0)
        except RuntimeError:  # it leaves torch, as for an array of NumPy
            return False
        return inputs.shape[1:] == images.shape[1:] and inputs.requires_grad

    def pieces(self) -> list[Tensor]:
        """Return the gradient of each trainable parameter."""
        trained = parameters.trainable(self.net)
        return [g.to(self.device) for g in parameters.split(self.gradient, trained)]

    def infer_label(self) -> Tensor | None:
        """Return the label of the only image, shape (1,) (iDLG: Zhao et al. 2020).

        The bias of the logits has a negative gradient for the true class alone.

        Returns:
            The label, or None if the task is another or the network has no such bias.
        """
        import torch

        biases = [
            g
            for p, g in zip(parameters.trainable(self.net), self.pieces(), strict=True)
            if tuple(p.shape) == self.spec.output_shape
        ]
        if type(self.spec.task) is not Multiclass or not biases:
            return None
        return torch.argmin(biases[-1]).reshape(1)

    def first_linear(self, inputs: Tensor) -> nn.Linear | None:
        """Return the linear layer with a bias that reads the network's inputs, or None.

        Args:
            inputs: Any inputs of the network, shape (N, …).
        """
        import torch

        found: list[nn.Linear] = []

        def note(layer: nn.Module, given: tuple[Tensor, ...], _out: object) -> None:
            is_trained = all(p is not None and p.requires_grad for p in (layer.weight, layer.bias))
            flat = inputs.flatten(1)
            if is_trained and given[0].shape == flat.shape and torch.equal(given[0], flat):
                found.append(layer)  # type: ignore[arg-type]

        linear = [each for each in self.net.modules() if isinstance(each, torch.nn.Linear)]
        hooks = [each.register_forward_hook(note) for each in linear]
        try:
            with torch.no_grad():
                self.net(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else None

    def divide(self, layer: nn.Linear, count: int) -> Tensor:
        """Return the inputs that a first linear layer's gradients give, shape (count, F).

        A row of the weight's gradient is the row's factor times the input, summed over the images.
        The bias has the factors alone. For one image, the quotient is exact.

        Args:
            layer: The layer.
            count: Largest number of rows, those with the largest factors.
        """
        by_parameter = {
            id(p): g for p, g in zip(parameters.trainable(self.net), self.pieces(), strict=True)
        }
        weight, bias = by_parameter[id(layer.weight)], by_parameter[id(layer.bias)]
        rows = bias.abs().argsort(descending=True)[:count]
        scale = bias[rows]
        scale[scale.abs() < _TINY] = _TINY
        return weight[rows] / scale[:, None]

    def to_pictures(self, inputs: Tensor, steps: int, tell: Callable[[float], None]) -> Tensor:
        """Return the images in [0, 1] whose inputs are nearest to `inputs`, shape (N, C, …)."""
        import torch

        wanted = inputs.detach().view(-1, *self.spec.shape)
        images = torch.full_like(wanted, 0.5).requires_grad_()

        def distance(_share: float) -> Tensor:
            apart: Tensor = self.model.preprocess(images * 1.0) - wanted
            away: Tensor = apart.square().sum()
            return away

        self._descend(images, distance, steps, tell, limits=(0.0, 1.0))
        return images.detach()

    def match(
        self,
        labels: Tensor,
        start: Tensor,
        steps: int,
        tell: Callable[[float], None],
        *,
        through: bool,
    ) -> Tensor:
        """Return images or inputs whose mean gradient has the direction of the release.

        Args:
            labels: Labels of the images, shape (N, …).
            start: Images in [0, 1], or inputs, at which the search begins, shape (N, …).
            steps: Steps of the search.
            tell: Receives the share that is done.
            through: Whether the search is for images, through the model's `preprocess`.
        """
        import torch

        wanted, trained = self.pieces(), parameters.trainable(self.net)
        labels = labels.to(self.device)
        sought = start.detach().clone().to(self.device).requires_grad_()

        def distance(share: float) -> Tensor:
            inputs = self.model.preprocess(sought * 1.0) if through else sought
            loss = self.spec.task.losses(self.net(inputs), labels).mean()
            found = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
            away = 1 - _cosine(found, wanted)
            if not through:
                return away
            first, last = SMOOTHNESS
            weight: float = first * (last / first) ** share
            return away + weight * _total_variation(sought)

        limits = (0.0, 1.0) if through else None
        self._descend(sought, distance, steps, tell, limits=limits)
        return sought.detach().cpu()

    def _descend(
        self,
        sought: Tensor,
        distance: Callable[[float], Tensor],
        steps: int,
        tell: Callable[[float], None],
        *,
        limits: tuple[float, float] | None,
    ) -> None:
        """Minimise `distance` over `sought` in place.

        As in Geiping et al. 2020, Adam sees the signs of the gradient. Its rate falls to zero.

        Args:
            sought: The images or inputs.
            distance: Returns the value to minimise, given the share of the steps that are done.
            steps: Steps of the search.
            tell: Receives the share that is done.
            limits: Range of the values, or None.
        """
        import torch

        optimizer = torch.optim.Adam([sought], lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            (sought.grad,) = torch.autograd.grad(distance(step / steps), [sought])
            sought.grad.sign_()
            optimizer.step()
            schedule.step()
            if limits is not None:
                with torch.no_grad():
                    sought.clamp_(*limits)
            tell((step + 1) / steps)


def start_images(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return noise around grey in [0, 1], at which a search begins."""
    import torch

    return (0.5 + 0.1 * torch.randn(shape, generator=generator)).clamp_(0, 1)


def _cosine(found: Sequence[Tensor | None], wanted: Sequence[Tensor]) -> Tensor:
    """Return the cosine of the angle between two gradients."""
    pairs = [(f, w) for f, w in zip(found, wanted, strict=True) if f is not None]
    product = sum((f * w).sum() for f, w in pairs)
    length = sum(f.square().sum() for f, _ in pairs)
    whole = sum(w.square().sum() for w in wanted)
    return product / (length * whole).clamp(min=_TINY).sqrt()  # type: ignore[union-attr]


def _total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, over the axes of the images."""
    axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
    return sum((images.diff(dim=axis).abs().mean() for axis in axes), start=images.sum() * 0.0)
