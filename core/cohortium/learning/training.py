"""Common parts of trainers: augmented losses, optimizers by name, schedules."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from attrs import field, frozen
from attrs.validators import and_, deep_iterable, ge, le, max_len

from cohortium.errors import BrokenNetworkError, StudyError
from cohortium.roles.values import Workload
from cohortium.text import did_you_mean, escape_control_characters, quote_key, truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from attrs import Attribute
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.roles.values import ExampleIndices, FederationSpec, LocalTask

Schedule = Literal["constant", "linear", "cosine"]
"""Course of a learning rate over the rounds.

It stays constant, or falls to zero.
"""


def schedule_factor(schedule: Schedule, round: int, rounds: int) -> float:  # noqa: A002
    """Return the learning rate's factor by `schedule` in `round` of `rounds`.

    Examples:
        >>> schedule_factor("linear", 15, 60)
        0.75
    """
    if schedule == "linear":
        return 1 - round / rounds
    if schedule == "cosine":
        return (1 + math.cos(math.pi * round / rounds)) / 2
    return 1.0


MAX_COPIES = 128
"""Most augmented copies of an example.

It is several times the largest number that the literature has tried.
"""

MIXUP_ALPHA: Any = (ge(0), le(1e3))
"""Validators of attrs for the α of MixUp.

At the upper limit, each mixed image is nearly the mean of two.
"""

RATE: Any = (ge(1e-12), le(1e6))
"""Validators of attrs for a learning rate."""

CLASS_WEIGHTS: Any = (max_len(10_000), deep_iterable(and_(ge(1e-6), le(1e6))))
"""Validators of attrs for declared factors of classes.

Beyond these limits, single precision has no precision left.
"""

MAX_OPTIONS = 16


def valid_options(_: object, attribute: Attribute[Any], given: Mapping[str, float | bool]) -> None:
    """Refuse arguments of an optimizer that are not usable numbers.

    A validator of attrs, for tables such as `[trainer.optimizer_options]`.

    Args:
        _: The instance.
        attribute: The parameter.
        given: Its value.

    Raises:
        ValueError: There are too many, or one is not such a number.
    """
    if len(given) > MAX_OPTIONS:
        raise ValueError(f"'{attribute.name}' has more than {MAX_OPTIONS} entries")
    for key, value in given.items():
        if not abs(value) <= MAX_OPTION:
            raise ValueError(
                f"'{attribute.name}' has {quote_key(key)} = {value!r}; give a number from "
                f"-{MAX_OPTION:g} to {MAX_OPTION:g}"
            )


MAX_OPTION = 1e6


WITH_MOMENTUM = ("muon", "rmsprop", "sgd")
"""Optimizers of `torch.optim` that have an option `momentum`."""


def default_momentum(optimizer: str, momentum: float) -> dict[str, float | bool]:
    """Return the default options of a trainer that sets a momentum, for its optimizer.

    Args:
        optimizer: Name of the optimizer, in upper or lower case.
        momentum: The momentum, which an optimizer without one does not get.

    Examples:
        >>> default_momentum("sgd", 0.9), default_momentum("adam", 0.9)
        ({'momentum': 0.9}, {})
    """
    return {"momentum": momentum} if optimizer.lower() in WITH_MOMENTUM else {}


def check_optimizer(
    name: str, options: Mapping[str, float | bool], *, key: str = "optimizer_options"
) -> None:
    """Refuse an optimizer that cannot be made, before a run.

    Args:
        name: Name of its class in `torch.optim`.
        options: Its keyword arguments in addition to the learning rate.
        key: The trainer's parameter that holds the options.

    Raises:
        StudyError: There is no optimizer of that name, or it refuses an option.
    """
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1, 1))
    make_optimizer(name, [parameter], learning_rate=1e-3, options=options, key=key)


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    options: Mapping[str, float | bool],
    key: str = "optimizer_options",
) -> Optimizer:
    """Make the optimizer of `torch.optim` called `name`, in upper or lower case.

    Args:
        name: Name of its class.
        parameters: Parameters that it moves.
        learning_rate: Its `lr`.
        options: Its other keyword arguments.
        key: The trainer's parameter that holds the options, for an error.

    Raises:
        StudyError: There is no optimizer of that name, or it has no such option.
    """
    import torch

    kinds: dict[str, type[Optimizer]] = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    kinds.pop("optimizer", None)
    kind = kinds.get(name.lower())
    if kind is None:
        raise StudyError(
            f"torch.optim has no optimizer {truncate(name)}; {did_you_mean(name.lower(), kinds)}"
        )
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known or option == "params":
            raise StudyError(
                f"trainer.{key}: the optimizer {name.lower()} has no option {quote_key(option)}; "
                f"its options are {', '.join(_options_of(known))}."
            )
    arguments: dict[str, Any] = {"lr": learning_rate, **options}
    try:
        return kind(parameters, **arguments)
    except (TypeError, ValueError) as error:
        raise StudyError(
            f"optimizer {truncate(name)}: {escape_control_characters(str(error))}."
        ) from error


def _options_of(known: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the options of an optimizer that a number can be."""
    return sorted(
        option
        for option, parameter in known.items()
        if option not in ("params", "lr") and not isinstance(parameter.default, tuple)
    )


def attach_schedule(
    optimizer: Optimizer, schedule: Schedule, rounds: int, *, after: int = 0
) -> tuple[Optimizer, LRScheduler]:
    """Return `optimizer`, and the schedule of its learning rate that `schedule` names.

    The schedule covers `rounds` steps in all.  The first `after` of them have the full rate.  All
    of them may.
    """
    import torch

    def course(step: int) -> float:
        return schedule_factor(schedule, max(0, step - after), max(1, rounds - after))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, course)


def attach_weight_averaging(optimizer: Optimizer, *, rounds: int, share: float) -> None:
    """End a run with the mean of its last weights.

    Without this, a run ends with the last weights.

    After step `rounds` of the server's `optimizer`, every parameter becomes a mean of its own
    values.  The mean covers the values after each of the last `share` of the steps (Polyak and
    Juditsky 1992).

    The mean uses only weights that sites have received before, so it costs no privacy.  It removes
    some of the noise of private training.  The optimizer's state holds the mean so far.
    """
    import torch

    first = rounds - round(share * rounds)

    def after(stepping: Optimizer, *_: object) -> None:
        for parameter in (p for group in stepping.param_groups for p in group["params"]):
            state = stepping.state[parameter]
            done = state["rounds_done"] = state.get("rounds_done", 0) + 1
            if done <= first:
                continue
            with torch.no_grad():
                mean = state.setdefault("average", torch.zeros_like(parameter))
                mean.lerp_(parameter, 1 / (done - first))
                if done == rounds:
                    parameter.copy_(mean)

    if share:
        optimizer.register_step_post_hook(after)


def local_workload(
    federation_spec: FederationSpec,
    *,
    epochs: int,
    steps: int,
    batch_size: int,
    has_mixed_examples: bool = False,
) -> Workload:
    """Return the workload of a trainer that releases an update.

    The trainer takes steps at the site.

    Args:
        federation_spec: The federation.  Its declared mean size of a site turns a batch size
            into a sampling rate.
        epochs: Passes over a site's own data each round.
        steps: Batches each round instead of whole passes.  0 means that `epochs` applies.
        batch_size: Examples in a batch.
        has_mixed_examples: Whether the loss of one example depends on others, as in MixUp.
    """
    rate = min(1.0, batch_size / federation_spec.examples_per_site)
    return Workload(
        output="update",
        steps=steps or epochs * math.ceil(1 / rate),
        sampling_rate=rate,
        batch_size=batch_size,
        epochs=None if steps else epochs,
        has_mixed_examples=has_mixed_examples,
    )


@frozen(kw_only=True)
class Augmentation:
    """Random symmetries of images, drawn again for each copy of each example.

    A volume is mirrored and turned in its last two axes.  A label map takes part.

    Attributes:
        flips: Mirror left to right, with probability one half.
        rotations: Turn by 0, 90, 180 or 270 degrees, for square images.
        augmentation_multiplicity: Copies of an example in a step.  The example's loss is the mean
            over its copies, so a per-example gradient covers all of them (augmentation
            multiplicity: De et al. 2022).
    """

    flips: bool = False
    rotations: bool = False
    augmentation_multiplicity: int = field(default=1, validator=[ge(1), le(MAX_COPIES)])

    def __call__(self, images: Tensor, labels: Tensor, task: LocalTask) -> tuple[Tensor, Tensor]:
        """Return augmented copies of images, shape (B·copies, C, …), and their labels.

        The copies of one image follow one another.

        Args:
            images: Images, shape (B, C, …).
            labels: Their labels, shape (B, …).
            task: The round's task, whose generator draws the symmetries.

        Raises:
            StudyError: The model's inputs are not images, or not square ones.
        """
        import torch

        if self.augmentation_multiplicity > 1:
            images = images.repeat_interleave(self.augmentation_multiplicity, 0)
            labels = labels.repeat_interleave(self.augmentation_multiplicity, 0)
        if not self.flips and not self.rotations:
            return images, labels
        if images.ndim - 2 != len(task.spec.size):
            raise StudyError(
                "flips and turns need a model whose inputs are images; this one's are features."
            )
        if self.rotations and images.shape[-2] != images.shape[-1]:
            raise StudyError("turns need square images.")
        quarter = 4 if self.rotations else 1
        symmetry = torch.randint(
            0, quarter * (1 + self.flips), (len(images),), generator=task.generator
        )
        mapped = [images, *([labels] if tuple(labels.shape[1:]) == task.spec.size else [])]
        found = [torch.empty_like(each) for each in mapped]
        for s in range(quarter * (1 + self.flips)):
            chosen = (symmetry == s).to(images.device)
            for out, each in zip(found, mapped, strict=True):
                turned = each[chosen].rot90(s % quarter, (-2, -1))
                out[chosen] = turned.flip(-1) if s >= quarter else turned
        return found[0], found[1] if len(found) > 1 else labels


@frozen(kw_only=True)
class AugmentedLoss:
    """The task's loss of augmented images, one value an example.

    Attributes:
        augmentation: Augmentation of each example, drawn again every time.
        class_weights: A *declared* factor for each class, or empty for ones.  It is never
            counted from a site's labels, which the privacy guarantee would not cover.
        mixup_alpha: α of MixUp (Zhang et al. 2018).  0 mixes nothing.  Each input x of a batch
            becomes λ·x + (1 - λ)·y.  Its loss is λ times the loss towards the target of x plus
            1 - λ times the loss towards that of y.  The y are the batch in random order, and each λ
            is from the distribution Beta(α, α).  A mixed example depends on two patients.  So the
            trainer declares `Workload.has_mixed_examples`.
    """

    augmentation: Augmentation
    class_weights: tuple[float, ...] = field(default=(), validator=CLASS_WEIGHTS)
    mixup_alpha: float = field(default=0.0, validator=MIXUP_ALPHA)

    def losses(self, task: LocalTask) -> Callable[[ExampleIndices], Tensor]:
        """Return a function for the loss of each example of `task`.

        The function takes positions, and returns losses of shape (B,).
        `SitePrivatizer.set_private_gradient` takes this function.

        Raises:
            StudyError: There are class weights, but not one for each class.  Or the inputs are
                whole numbers, which MixUp cannot mix.
        """
        import torch

        spec, weights = task.spec, None
        if self.class_weights:
            classes = len(spec.classes)
            if len(self.class_weights) != classes:
                raise StudyError(
                    f"there are {len(self.class_weights)} class weights, but {classes} "
                    "classes; give one for each, or none."
                )
            weights = torch.tensor(
                self.class_weights, device=task.images.device, dtype=torch.float32
            )
        copies = self.augmentation.augmentation_multiplicity
        if self.mixup_alpha and not task.images.is_floating_point():
            kind = str(task.images.dtype).removeprefix("torch.")
            raise StudyError(
                f"trainer.mixup_alpha = {self.mixup_alpha:g} mixes inputs, and the model's are "
                f"whole numbers ({kind}); set it to 0."
            )

        def losses(batch: ExampleIndices) -> Tensor:
            index = torch.from_numpy(batch).to(task.images.device)
            # Faster than indexing: it saves more time than a layer of a small network takes.
            images, labels = task.images.index_select(0, index), task.labels.index_select(0, index)
            images, labels = self.augmentation(images, labels, task)
            pairs = _Pairs.of(images, self.mixup_alpha, task) if self.mixup_alpha else None
            if pairs is not None:
                images = pairs.mix(images)
            outputs = task.net(images)
            if tuple(outputs.shape) != (len(labels), *spec.output_shape):
                kind = type(task.net)
                raise BrokenNetworkError(
                    f"{kind.__module__}:{kind.__qualname__} gives outputs of shape "
                    f"{tuple(outputs.shape)} for {len(labels)} images of "
                    f"{len(spec.classes)} classes, "
                    "and gave others before the run; let them depend on nothing but the images."
                )
            each = spec.task.losses(outputs, labels, weights)
            if pairs is not None:
                other = spec.task.losses(outputs, labels[pairs.partners], weights)
                each = torch.lerp(other, each, pairs.shares)
            return each if copies == 1 else each.view(len(batch), copies).mean(1)

        return losses


@frozen(eq=False)
class _Pairs:
    """Pairs of a batch for MixUp.

    Attributes:
        partners: Position of the other example of each pair, shape (B,).
        shares: λ, the share of the example itself, shape (B,).
    """

    partners: Tensor
    shares: Tensor

    @classmethod
    def of(cls, images: Tensor, alpha: float, task: LocalTask) -> _Pairs:
        """Draw pairs of a batch from the task's generator."""
        import torch

        seed = torch.randint(1 << 62, (), generator=task.generator)
        rng = np.random.default_rng(int(seed))
        partners = torch.from_numpy(rng.permutation(len(images)))
        shares = torch.from_numpy(rng.beta(alpha, alpha, len(images)))
        return cls(partners.to(images.device), shares.to(images))

    def mix(self, images: Tensor) -> Tensor:
        """Return λ·x + (1 - λ)·y for each image x and its partner y, shape (B, …)."""
        shares = self.shares.view(-1, *[1] * (images.ndim - 1))
        return images[self.partners].lerp(images, shares)
