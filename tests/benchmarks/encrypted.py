"""Seconds of encrypted inference for an image, over HTTP on this machine.

    python tests/benchmarks/encrypted.py [ROUNDS]

The weights are random, in the sizes of the models for images of 3 × 28 × 28.  The features are
random, too: the time does not depend on values.  The plain layer gives the error of a logit.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time

import numpy as np
from numpy.typing import NDArray

from cohortium.inference.encrypted import protocol, scheme
from cohortium.inference.encrypted.client import EncryptedClassifier
from cohortium.inference.encrypted.head_form import HeadForm
from cohortium.inference.encrypted.served_head import whitened
from cohortium.inference.encrypted.service import InferenceServer, InferenceService
from cohortium.learning.private_whitening import PrivateWhiteningHead
from cohortium.messages.encrypted import ServiceDescription

FORMS = {
    "`pretrained`": HeadForm(512, 8),
    "`descriptor`": HeadForm(2864, 8),
    "`scatternet`": HeadForm(11907, 8),
    "192 `components`, whitened": HeadForm(192, 8, (0.0,) * 8),
    "512 `components`, whitened": HeadForm(512, 8, (0.0,) * 8),
}
"""Numbers of features and classes."""

NORM = 70.0
"""Norm of the features of an image, as the models have it."""


def seconds(work: object, rounds: int) -> float:
    """The median time of a call."""
    assert callable(work)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def weights_of(form: HeadForm, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random weights, shape (outputs, inputs), of the form's head."""
    import torch

    if not form.is_whitened:
        return rng.normal(scale=4 / form.features**0.5, size=(form.classes, form.features))
    net = PrivateWhiteningHead(form.features, form.classes, floor=3e-3, norm=NORM)
    rows = rng.normal(size=(1000, form.features)) / np.arange(1, form.features + 1) ** 0.5
    head = rng.normal(size=net.head.weight.shape) / form.features**0.5
    with torch.no_grad():
        net.moments.weight.copy_(torch.from_numpy(rows.T @ rows))
        net.head.weight.copy_(torch.from_numpy(head))
    return np.asarray(whitened(net)[1])


def measure(name: str, form: HeadForm, rounds: int) -> None:
    rng = np.random.default_rng(1)
    library = scheme.Scheme.open()
    weights = weights_of(form, rng)
    head = protocol.EncryptedHead.of(library, weights, np.zeros(form.outputs))
    row = rng.normal(size=form.features)
    row *= NORM / np.linalg.norm(row)
    key = protocol.ClinicKey.draw(library, head.seed)
    inputs = form.encode(row)
    image = key.encrypt(inputs)
    answer = head.answer(key.public, image)
    found = form.logits(key.decrypt(answer, form.outputs), row)
    error = np.abs(found - form.logits(weights @ inputs, row)).max()
    described = ServiceDescription(
        scheme=scheme.NAME,
        model=bytes(32),
        features=form.features,
        classes=form.classes,
        bias=list(form.bias),
        probe=bytes(4 * form.features),
        seed=head.seed,
    )
    with InferenceServer(InferenceService(described, head), ("127.0.0.1", 0), None) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        public: object = None
        asked = EncryptedClassifier(public, server.url, None, described, key)  # type: ignore[arg-type]
        times = [
            seconds(work, rounds)
            for work in (
                lambda: protocol.ClinicKey.draw(library, head.seed),
                lambda: key.encrypt(form.encode(row)),
                lambda: head.answer(key.public, image),
                lambda: key.decrypt(answer, form.outputs),
                lambda: asked._ask(row[None]),
            )
        ]
        server.shutdown()
        thread.join()
    cells = [name, form.features, *(f"{each:.3f}" for each in times)]
    sizes = [f"{(len(image) + protocol.KEY_BYTES) / 1e6:.2f}", f"{len(answer) / 1e6:.2f}"]
    print("|", " | ".join(map(str, [*cells, *sizes, f"{error:.0e}"])), "|")


if __name__ == "__main__":
    print(
        "| model | features | key | encrypt | answer | decrypt | whole | MB out | MB back | error |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, form in FORMS.items():
        measure(name, form, int((sys.argv[1:] or ["5"])[0]))
