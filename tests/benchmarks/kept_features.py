"""Time of a network's inputs, computed and read from a folder of features.

    python tests/benchmarks/kept_features.py --images 2000 --repeat 3

The images are made up (`phantom`).  The contenders run in turn, with one thread, and the least of
the times counts.  The models are trained or fitted to public images before that.  The table is in
Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from cohortium.learning.kept_features import FeatureFolder
from cohortium.learning.preprocessing import preprocess
from cohortium.plugin import Model
from cohortium_descriptor import Descriptor
from cohortium_phantom import Phantom
from cohortium_pretrained import Pretrained
from cohortium_scatternet import ScatterNet

CELLS = Phantom(examples=200, validation=0, test=0, seed=5)
MODELS: dict[str, Model] = {
    "descriptor": Descriptor(center_on=CELLS),
    "pretrained": Pretrained(images=CELLS, epochs=1),
    "scatternet": ScatterNet(),
}


def main() -> None:
    """Measure each model, and print a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    splits = Phantom(examples=asked.images, validation=0, test=0).load()
    images, spec = splits.train.images, splits.spec
    print("| model | computed, ms | computed and written | read | computed / read |")
    print("| --- | --- | --- | --- | --- |")
    for name, model in MODELS.items():
        preprocess(model, images[:1], spec)  # fits or trains it
        times: dict[str, list[float]] = {"computed": [], "written": [], "read": []}
        for _ in range(asked.repeat):
            with tempfile.TemporaryDirectory() as place:
                for kind, found in times.items():
                    folder = None if kind == "computed" else FeatureFolder(Path(place))
                    began = time.perf_counter()
                    preprocess(model, images, spec, folder)
                    found.append(1e3 * (time.perf_counter() - began))
        computed, written, read = (min(times[kind]) for kind in times)
        print(f"| {name} | {computed:.0f} | {written:.0f} | {read:.0f} | {computed / read:.0f} |")


if __name__ == "__main__":
    main()
