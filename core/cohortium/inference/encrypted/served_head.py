"""The head of a trained model, as a linear layer that answers encrypted queries."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.catalog.networks import blame_network
from cohortium.errors import RequestError
from cohortium.inference.encrypted.head_form import HeadForm
from cohortium.inference.encrypted.protocol import MAX_WEIGHT_NORM
from cohortium.inference.encrypted.public_model import probe_image
from cohortium.learning.preprocessing import preprocess
from cohortium.messages.encrypted import MAX_CLASSES, MAX_FEATURES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.inference.classifier import Classifier
    from cohortium.learning.private_whitening import PrivateWhiteningHead

FEATURE_AXES: Final = 2
"""Axes of features: image and feature."""

BLOCK: Final = 256
"""Rows of the identity that the network maps at a time."""

TOLERANCE: Final = 1e-6
"""Largest difference of an output from that of the matrix, relative to the largest output."""


@frozen(eq=False)
class ServedHead:
    """A head in the form in which it is served.

    Attributes:
        form: The numbers that a clinic encrypts, and the logits from an answer.
        weights: Of the linear layer under encryption, shape (outputs, inputs).
        bias: Its bias, shape (outputs,).
        probe: Features of the synthetic image, shape (D,), in `float32`.
    """

    form: HeadForm
    weights: NDArray[np.float64] = field(repr=False)
    bias: NDArray[np.float64] = field(repr=False)
    probe: NDArray[np.float32] = field(repr=False)

    @classmethod
    def of(cls, classifier: Classifier) -> ServedHead:
        """Take the head of a trained model.

        Raises:
            RequestError: The network takes images, or is neither a linear nor a whitened head.
        """
        from cohortium.learning.private_whitening import PrivateWhiteningHead

        inputs = preprocess(classifier.model, probe_image(classifier.spec), classifier.spec)
        if inputs.ndim != FEATURE_AXES or len(classifier.spec.output_shape) != 1:
            raise _not_served(classifier)
        probe = inputs[0].float().numpy().astype(np.dtype("<f4"))
        if isinstance(classifier.net, PrivateWhiteningHead):
            form, weights, bias = whitened(classifier.net)
        else:
            form, weights, bias = _linear(classifier, inputs)
        return cls(form, weights.numpy(), bias.numpy(), probe)


def _linear(classifier: Classifier, inputs: Tensor) -> tuple[HeadForm, Tensor, Tensor]:
    """Return the weights (K, D) and the bias (K,) of a network that is affine in its features.

    The network maps zero, which gives the bias, and the identity, which gives the weights. So its
    layers may have any form. Random features confirm that it is affine.
    """
    import torch

    size = inputs.shape[1]
    if size > MAX_FEATURES:
        raise _not_served(classifier)
    net = copy.deepcopy(classifier.net).double().eval()
    with torch.no_grad(), blame_network(classifier.model, net, "cannot be used"):
        bias = net(torch.zeros(1, size, dtype=torch.float64))[0]
        rows = []
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            block = torch.zeros(count, size, dtype=torch.float64)
            block[torch.arange(count), torch.arange(start, start + count)] = 1
            rows.append(net(block) - bias)
        weights = torch.cat(rows).T
        generator = torch.Generator().manual_seed(0)
        tried = torch.randn(8, size, generator=generator, dtype=torch.float64)
        tried *= inputs.double().norm() / tried.norm(dim=1, keepdim=True)
        found = net(tried)
        difference = (found - (tried @ weights.T + bias)).abs().max()
    if len(bias) > MAX_CLASSES or not difference <= TOLERANCE * max(1.0, float(found.abs().max())):
        raise _not_served(classifier)
    return HeadForm(size, len(bias)), weights, bias


def whitened(net: PrivateWhiteningHead) -> tuple[HeadForm, Tensor, Tensor]:
    """Return the weights of a whitened head, for features and then their products.

    A factor of M leaves the logits as they are. It is chosen so that the weights' norms fit the
    encryption.
    """
    import torch

    with torch.no_grad():
        whitening = net.whitening().double().cpu()
        head = net.head.weight.double().cpu()
        bias = net.head.bias.double().cpu()
    classes, size = head.shape
    form = HeadForm(size, classes, tuple(bias.tolist()))
    if form.inputs > MAX_FEATURES or form.outputs > MAX_CLASSES:
        raise RequestError(
            f"a whitened head of {size} features has {form.inputs:,} numbers to encrypt, and "
            f"{MAX_FEATURES:,} are possible; use a model with fewer components."
        )
    linear = net.norm * head @ whitening.T  # x·M·Aᵀ, as rows
    square = whitening @ whitening.T
    square = 2 * square - square.diag().diag()  # x_i·x_j and x_j·x_i are one product
    first, second = torch.triu_indices(size, size)
    products = square[first, second]
    room = MAX_WEIGHT_NORM / 2
    factor = max(float(linear.norm(dim=1).max()) / room, math.sqrt(float(products.norm()) / room))
    weights = torch.zeros(form.outputs, form.inputs, dtype=torch.float64)
    weights[:-1, :size] = linear / factor
    weights[-1, size:] = products / factor**2
    return form, weights, torch.zeros(form.outputs, dtype=torch.float64)


def _not_served(classifier: Classifier) -> RequestError:
    table: Any = classifier.study.get("model")
    name = table.get("name") if isinstance(table, dict) else table
    return RequestError(
        f"the model '{name}' of {classifier.folder} is not one layer on fixed features, and only "
        "such a model can be served encrypted: 'descriptor', 'scatternet', or 'pretrained' with "
        'trainable = "head".'
    )
