"""Seconds of encrypted inference for an image, over HTTP on this machine.

    python tests/benchmarks/encrypted.py [ROUNDS]

The weights are random, in the sizes of the models for images of 3 × 28 × 28.  The features are
random, too: the time does not depend on values.  A plain layer gives the largest error.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time

import numpy as np

from cohortium.inference.encrypted import protocol, scheme
from cohortium.inference.encrypted.client import EncryptedClassifier
from cohortium.inference.encrypted.service import InferenceServer, InferenceService
from cohortium.messages.encrypted import ServiceDescription

SIZES = {"pretrained": (512, 8), "descriptor": (2864, 8), "scatternet": (11907, 8)}
"""Number of features and classes."""

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


def measure(name: str, features: int, classes: int, rounds: int) -> None:
    rng = np.random.default_rng(1)
    library = scheme.Scheme.open()
    weights = rng.normal(size=(classes, features)) / features**0.5 * 4
    head = protocol.EncryptedHead.of(library, weights, np.zeros(classes))
    row = rng.normal(size=features)
    row *= NORM / np.linalg.norm(row)
    key = protocol.ClinicKey.draw(library, head.seed)
    image = key.encrypt(row)
    answer = head.answer(key.public, image)
    error = np.abs(key.decrypt(answer, classes) - weights @ row).max()
    described = ServiceDescription(
        scheme.NAME, bytes(32), features, classes, bytes(4 * features), head.seed
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
                lambda: key.encrypt(row),
                lambda: head.answer(key.public, image),
                lambda: key.decrypt(answer, classes),
                lambda: asked._ask(row[None]),
            )
        ]
        server.shutdown()
        thread.join()
    cells = [name, features, *(f"{each:.3f}" for each in times)]
    sizes = [f"{(len(image) + protocol.KEY_BYTES) / 1e6:.2f}", f"{len(answer) / 1e6:.2f}"]
    print("|", " | ".join(map(str, [*cells, *sizes, f"{error:.0e}"])), "|")


if __name__ == "__main__":
    print(
        "| model | features | key | encrypt | answer | decrypt | whole | MB out | MB back | error |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (features, classes) in SIZES.items():
        measure(name, features, classes, int((sys.argv[1:] or ["5"])[0]))
