"""Memory of training and prediction on a set of images that is larger than memory.

    python tests/benchmarks/large_set.py --images 1000 10000 --side 512

For each number of images, a process of its own writes an uncompressed npz of noise.  It trains on
that for two rounds at one site, and predicts the first images.  The table is in Markdown.  Private
memory is what the process holds beside mapped files, which the system can evict.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

from cohortium import Federation
from cohortium.inference.classifier import Classifier
from cohortium_fedsgd import FedSGD
from cohortium_npz import Npz

PART = 128
"""Images that are written at a time."""

PREDICTED = 2_000
"""Most images that are predicted."""


def write(path: Path, images: int, side: int) -> None:
    """Write an uncompressed npz of noise with four classes."""
    block = np.random.default_rng(0).integers(0, 256, (PART, side, side), dtype=np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("train_images.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (images, side, side)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, images, PART):
                file.write(block[: min(PART, images - start)].data)
        with archive.open("train_labels.npy", "w") as file:
            np.lib.format.write_array(file, np.arange(images) % 4)


class Meter(threading.Thread):
    """Samples the private memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Sample until the process ends."""
        status = Path("/proc/self/status")
        while True:
            held = status.read_text().split("RssAnon:")[1].split()[0]
            self.peak = max(self.peak, int(held))
            time.sleep(0.02)


def measure(images: int, side: int, model: str) -> None:
    """Train and predict, and print one row."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "large.npz"), Path(folder, "run")
        write(path, images, side)
        meter = Meter()
        meter.start()
        began = time.perf_counter()
        data = Npz(path=str(path))
        Federation(
            dataset=data, model=model, trainer=FedSGD(sampling_rate=0.002), privatizer="none",
            aggregator="plain", sites=1, rounds=2, threads=1,
        ).run(out)  # fmt: skip
        trained, peak = time.perf_counter() - began, meter.peak
        meter.peak = 0
        Classifier.open(out).predict(data.load().train.images[:PREDICTED])
        predicted = time.perf_counter() - began - trained
        print(
            f"| {images:,} | {images * side * side / 2**30:.1f} | {peak / 2**20:.2f} | "
            f"{trained:.0f} | {meter.peak / 2**20:.2f} | {predicted:.0f} |"
        )


def main() -> None:
    """Measure each number of images in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    given = parser.parse_args()
    if given.alone:
        measure(given.images[0], given.side, given.model)
        return
    print("| images | GiB of pixels | GiB to train | s | GiB to predict | s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for images in given.images:
        options = ["--images", str(images), "--side", str(given.side), "--model", given.model]
        subprocess.run([sys.executable, __file__, "--alone", *options], check=True)


if __name__ == "__main__":
    main()
