"""The linear layer of a trained model, as a matrix and a bias."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from cohortium.catalog.networks import blame_network
from cohortium.errors import RequestError
from cohortium.inference.encrypted.public_model import probe_image
from cohortium.learning.preprocessing import preprocess
from cohortium.messages.encrypted import MAX_CLASSES, MAX_FEATURES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cohortium.inference.classifier import Classifier

FEATURE_AXES: Final = 2
"""Axes of features: image and feature."""

BLOCK: Final = 256
"""Rows of the identity that the network maps at a time."""

TOLERANCE: Final = 1e-6
"""Largest difference of an output from that of the matrix, relative to the largest output."""


def linear_head(classifier: Classifier) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights (K, D) and the bias (K,) of a network that is affine in its features.

    The network maps the identity and zero, so the form of the
    network does not matter. Random features confirm the result.

    Raises:
        RequestError: The network takes images, or is not affine.
    """
    import torch

    inputs = preprocess(classifier.model, probe_image(classifier.spec), classifier.spec)
    if inputs.ndim != FEATURE_AXES:
        raise _not_linear(classifier)
    size = inputs.shape[1]
    if size > MAX_FEATURES or len(classifier.spec.output_shape) != 1:
        raise _not_linear(classifier)
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
        raise _not_linear(classifier)
    return weights.numpy(), bias.numpy()


def _not_linear(classifier: Classifier) -> RequestError:
    table: Any = classifier.study.get("model")
    name = table.get("name") if isinstance(table, dict) else table
    return RequestError(
        f"the model '{name}' of {classifier.folder} is not one linear layer on fixed features, and "
        "only such a model can be served encrypted: 'descriptor', 'scatternet', or 'pretrained' "
        'with trainable = "head".'
    )
