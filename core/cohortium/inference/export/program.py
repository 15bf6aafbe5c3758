"""A classifier as a torch program and as ONNX.

Each is compared with the classifier itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

from cohortium.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    from cohortium.inference.classifier import Classifier

PROBE_BATCH_SIZES = (1, 2, 5)
"""Numbers of made-up images on which a program is tried."""

TOLERANCE = 1e-4
"""Largest difference of a probability. Other libraries add in another order."""


class ExportableClassifier(nn.Module):
    """Network from stored images (N, C, …) to the task's predictions.

    These are probabilities, shape (N, classes), if each image has one class.
    """

    def __init__(self, classifier: Classifier) -> None:
        """Take the model's preparation and network."""
        super().__init__()
        self.net = classifier.net
        self._spec = classifier.spec
        self._prepare = classifier.model.preprocess

    def forward(self, images: Tensor) -> Tensor:
        """Scale and prepare the images, and predict."""
        low, high = self._spec.intensity_range
        scaled = images.float() / high if low == 0 else (images.float() - low) / (high - low)
        if self._spec.pixel_type != "uint8" or (low, high) != (0, 255):
            scaled = scaled.clamp(0, 1)
        return self._spec.task.predict(self.net(self._prepare(scaled)))


@frozen(eq=False)
class TracedProgram:
    """A program, with the most images that it takes at once.

    `most` is None for any number.
    """

    program: ExportedProgram
    most: int | None


def trace(classifier: Classifier) -> TracedProgram:
    """Return the classifier as a program.

    It takes any number of images, or one at a time if torch cannot export that.

    Raises:
        RunError: torch.export cannot follow the model's code.
    """
    deployed = ExportableClassifier(classifier).eval()
    reason = ""
    for most in (None, 1):
        images = torch.from_numpy(_probe_images(classifier, most or 3))
        shapes = {"images": {0: torch.export.Dim("batch")} if most is None else None}
        try:
            with torch.no_grad(), _quiet():
                deployed(images)  # values computed once should exist before the trace
                return TracedProgram(
                    torch.export.export(deployed, (images,), dynamic_shapes=shapes), most
                )
        except Exception as error:  # noqa: BLE001 - torch.export raises whatever its parts raise
            reason = _first_line(error)
    raise RunError(
        f"torch.export cannot trace the model ({reason}); use its weights with "
        "`cohortium predict`, or rewrite its prepare without data-dependent Python."
    )


def as_torch(traced: TracedProgram, classifier: Classifier) -> bytes:
    """Return the content of a `.pt2` file.

    Raises:
        RunError: On made-up images, its probabilities differ from the classifier's.
    """
    file = io.BytesIO()
    with _quiet():
        torch.export.save(traced.program, file, extra_files={"classes.json": _classes(classifier)})
        data = file.getvalue()
        module = torch.export.load(io.BytesIO(data)).module()

    def call(images: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            called: NDArray[Any] = module(torch.from_numpy(images)).numpy()
            return called

    _require_equal_outputs(call, traced, classifier, what="the exported program")
    return data


def as_onnx(traced: TracedProgram, classifier: Classifier) -> bytes:
    """Return the content of an `.onnx` file.

    Raises:
        RunError: torch cannot translate the program. Or its probabilities on made-up images differ
            from the classifier's.
    """
    import onnxruntime

    try:
        with _quiet():
            made: Any = torch.onnx.export(
                traced.program.run_decompositions(_decompositions()),
                (torch.from_numpy(_probe_images(classifier, traced.most or 3)),),
                input_names=["images"],
                output_names=["probabilities"],
                dynamo=True,
                verbose=False,
            )
        proto = made.model_proto  # built anew at every access
        note = proto.metadata_props.add()
        note.key, note.value = "classes", _classes(classifier)
        data: bytes = proto.SerializeToString()
    except Exception as error:
        raise RunError(
            f"torch cannot write this model as ONNX ({_first_line(error)}); export it without."
        ) from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def call(images: NDArray[Any]) -> NDArray[Any]:
        called: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: images})[0]
        return called

    _require_equal_outputs(call, traced, classifier, what="the ONNX file")
    return data


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return decompositions of operations that ONNX does not know."""

    def hypot(x: Tensor, y: Tensor) -> Tensor:
        return torch.sqrt(x * x + y * y)

    return {
        **torch.export.default_decompositions(),
        torch.ops.aten.hypot.default: hypot,
    }


def _require_equal_outputs(
    call: Callable[[NDArray[Any]], NDArray[Any]],
    traced: TracedProgram,
    classifier: Classifier,
    *,
    what: str,
) -> None:
    numbers: Sequence[int] = PROBE_BATCH_SIZES if traced.most is None else (traced.most,)
    for number in numbers:
        images = _probe_images(classifier, number)
        apart = float(np.abs(call(images) - classifier.predict(images)).max())
        if not apart <= TOLERANCE:
            raise RunError(
                f"{what} differs from the model by {apart:.2g} in a probability, so that it is not "
                "written; does the model's prepare keep anything from one call to the next?"
            )


def _probe_images(classifier: Classifier, number: int) -> NDArray[Any]:
    """Return images of noise, with a black image first."""
    images = classifier.spec.sample_images(number, np.random.default_rng(number))
    images[0] = classifier.spec.intensity_range[0]
    return images


def _classes(classifier: Classifier) -> str:
    return json.dumps(classifier.spec.classes, ensure_ascii=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's messages about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
