"""Losses of augmented and mixed images, one value an example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen
from attrs.validators import and_, deep_iterable, ge, le, max_len

from cohortium.errors import BrokenNetworkError, StudyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cohortium.roles.values import ExampleIndices, LocalTask

MAX_COPIES = 128
"""Most augmented copies of an example.

It is several times the largest number that the literature has tried.
"""

MIXUP_ALPHA: Any = (ge(0), le(1e3))
"""Validators of attrs for the α of MixUp.

At the upper limit, each mixed image is nearly the mean of two.
"""

CLASS_WEIGHTS: Any = (max_len(10_000), deep_iterable(and_(ge(1e-6), le(1e6))))
"""Validators of attrs for declared factors of classes.

Beyond these limits, single precision has no precision left.
"""

LOGIT_ADJUSTMENT: Any = (max_len(10_000), deep_iterable(and_(ge(-100), le(100))))
"""Validators of attrs for declared numbers that are added to logits.

Beyond these limits, a class would have no probability in single precision.
"""


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
        logit_adjustment: A *declared* number for each class, or empty for zeros.  The loss adds it
            to the logit of its class, and predictions do without it (Menon et al. 2021, arXiv
            2007.07314).  With the logarithms of the classes' shares, training aims at the mean
            recall of the classes.  A clip of gradients weakens class weights, and leaves this.
        mixup_alpha: α of MixUp (Zhang et al. 2018).  0 mixes nothing.  Each input x of a batch
            becomes λ·x + (1 - λ)·y.  Its loss is λ times the loss towards the target of x plus
            1 - λ times the loss towards that of y.  The y are the batch in random order, and each λ
            is from the distribution Beta(α, α).  A mixed example depends on two patients.  So the
            trainer declares `Workload.has_mixed_examples`.
    """

    augmentation: Augmentation
    class_weights: tuple[float, ...] = field(default=(), validator=CLASS_WEIGHTS)
    logit_adjustment: tuple[float, ...] = field(default=(), validator=LOGIT_ADJUSTMENT)
    mixup_alpha: float = field(default=0.0, validator=MIXUP_ALPHA)

    def losses(self, task: LocalTask) -> Callable[[ExampleIndices], Tensor]:
        """Return a function for the loss of each example of `task`.

        The function takes positions, and returns losses of shape (B,).
        `SitePrivatizer.set_private_gradient` takes this function.

        Raises:
            StudyError: There are class weights, but not one for each class.  Or there are logit
                adjustments, but not one for each logit of an image or a pixel.  Or the inputs are
                whole numbers, which MixUp cannot mix.
        """
        import torch

        spec = task.spec
        device, shape = task.images.device, spec.output_shape
        weights = _one_each(self.class_weights, len(spec.classes), "class weight", "classes")
        adjustment = _one_each(self.logit_adjustment, shape[0], "logit adjustment", "logits")
        if weights is not None:
            weights = weights.to(device)
        if adjustment is not None:
            # Outputs are (B, classes), or (B, classes, …) if every pixel has a class.
            adjustment = adjustment.to(device).view(-1, *[1] * (len(shape) - 1))
        copies = self.augmentation.augmentation_multiplicity
        if self.mixup_alpha and not task.images.is_floating_point():
            kind = str(task.images.dtype).removeprefix("torch.")
            raise StudyError(
                f"trainer.mixup_alpha = {self.mixup_alpha:g} mixes inputs, and the model's are "
                f"whole numbers ({kind}); set it to 0."
            )

        def losses(batch: ExampleIndices) -> Tensor:
            index = torch.from_numpy(batch).to(device)
            # Faster than indexing: it saves more time than a layer of a small network takes.
            images, labels = task.images.index_select(0, index), task.labels.index_select(0, index)
            images, labels = self.augmentation(images, labels, task)
            pairs = _Pairs.of(images, self.mixup_alpha, task) if self.mixup_alpha else None
            if pairs is not None:
                images = pairs.mix(images)
            outputs = task.net(images)
            if tuple(outputs.shape) != (len(labels), *shape):
                kind = type(task.net)
                raise BrokenNetworkError(
                    f"{kind.__module__}:{kind.__qualname__} gives outputs of shape "
                    f"{tuple(outputs.shape)} for {len(labels)} images of {len(spec.classes)} "
                    "classes, and gave others before the run; let them depend on nothing but the "
                    "images."
                )
            if adjustment is not None:
                outputs = outputs + adjustment
            each = spec.task.losses(outputs, labels, weights)
            if pairs is not None:
                other = spec.task.losses(outputs, labels[pairs.partners], weights)
                each = torch.lerp(other, each, pairs.shares)
            return each if copies == 1 else each.view(len(batch), copies).mean(1)

        return losses


@frozen(kw_only=True, slots=False)
class AugmentedTraining:
    """Parameters of a trainer that augments, weights and mixes examples.

    A trainer inherits them, next to its other bases.

    Attributes:
        flips: Whether to augment by mirroring.
        rotations: Whether to augment by quarter turns.
        augmentation_multiplicity: Augmented copies of an example in one step.
        class_weights: A declared factor above 0 for each class.  Empty for ones.
        logit_adjustment: A declared number for each class, which the loss adds to its logit and
            predictions do without.  Logarithms of the classes' shares balance rare and common
            classes.  Empty for zeros.
        mixup_alpha: α of MixUp, which trains on convex pairs of images.  0 mixes nothing.  Refused
            under privacy of examples or patients.
    """

    flips: bool = False
    rotations: bool = False
    augmentation_multiplicity: int = field(default=1, validator=[ge(1), le(MAX_COPIES)])
    class_weights: tuple[float, ...] = field(default=(), validator=CLASS_WEIGHTS)
    logit_adjustment: tuple[float, ...] = field(default=(), validator=LOGIT_ADJUSTMENT)
    mixup_alpha: float = field(default=0.0, validator=MIXUP_ALPHA)

    @property
    def has_mixed_examples(self) -> bool:
        """Whether the loss of one example depends on others.  See `Workload`."""
        return self.mixup_alpha > 0

    @property
    def augmented_loss(self) -> AugmentedLoss:
        """The loss that the parameters describe."""
        augmentation = Augmentation(
            flips=self.flips,
            rotations=self.rotations,
            augmentation_multiplicity=self.augmentation_multiplicity,
        )
        return AugmentedLoss(
            augmentation=augmentation,
            class_weights=self.class_weights,
            logit_adjustment=self.logit_adjustment,
            mixup_alpha=self.mixup_alpha,
        )


def _one_each(declared: tuple[float, ...], number: int, what: str, of: str) -> Tensor | None:
    """Return `number` declared numbers, shape (number,), or None if none is declared.

    Raises:
        StudyError: There are some, but not that many.
    """
    import torch

    if not declared:
        return None
    if len(declared) != number:
        raise StudyError(
            f"there are {len(declared)} {what}s, but {number} {of}; give one for each, or none."
        )
    return torch.tensor(declared, dtype=torch.float32)


@frozen(eq=False)
class _Pairs:
    """Pairs of a batch for MixUp.

    Attributes:
        partners: Position of the other example of each pair, shape (B,).
        shares: λ, the share of the example itself, shape (B,).
    """

    partners: Tensor = field(repr=False)
    shares: Tensor = field(repr=False)

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
