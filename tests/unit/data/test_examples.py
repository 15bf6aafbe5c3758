"""Images as values: equal ones are equal to torch as well."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cohortium.data.examples import Examples

ORDERS = list(itertools.permutations(range(4)))
"""Orders in which the axes of images may lie in memory."""


def in_order(shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """Images of `shape`, the axes of which lie in memory as `order` says."""
    flat = np.random.default_rng(0).integers(0, 256, [shape[axis] for axis in order])
    return flat.astype(np.uint8).transpose(np.argsort(order))


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    order=st.sampled_from(ORDERS),
)
def test_equal_images_have_equal_strides(
    shape: tuple[int, int, int, int], order: tuple[int, ...]
) -> None:
    given_images = in_order(shape, order)
    labels = np.arange(shape[0])
    plain = np.empty(shape, np.uint8)
    plain[...] = given_images
    examples = Examples(given_images, labels)
    assert np.array_equal(examples.images, plain)
    assert examples.images.strides == plain.strides
    assert examples.select(labels).images.strides == examples.images.strides


def test_grey_images_convolve_to_equal_bits() -> None:
    grey = in_order((32, 28, 28, 1), (0, 1, 2, 3))
    read = grey[..., 0][..., None].transpose(0, 3, 1, 2)
    taken = read[np.arange(32)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = torch.nn.Conv2d(1, 8, 3, 2, 1)
    outputs, gradients = [], []
    for images in (read, taken):
        pixels = torch.from_numpy(Examples(images, np.zeros(32, np.int64)).images).float()
        output = convolution(pixels)
        (gradient,) = torch.autograd.grad(output.square().sum(), convolution.weight)
        outputs.append(output)
        gradients.append(gradient)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
