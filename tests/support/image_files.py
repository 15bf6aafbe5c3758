"""A data set's images, written as files as a hospital has them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from cohortium.plugin import Splits

FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def _save_png(path: Path, image: NDArray[Any]) -> None:
    Image.fromarray(image).save(path)


def write_files(
    splits: Splits,
    folder: Path,
    *,
    suffix: str = ".png",
    save: Callable[[Path, NDArray[Any]], object] = _save_png,
) -> Path:
    """Write each grey image in a folder of its class, and return a table of all of them."""
    rows: list[tuple[object, ...]] = [("path", "label", "split")]
    for name, split in FOLDERS.items():
        part = getattr(splits, name)
        if part is None:
            continue
        for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            path = f"{split}/{splits.classes[label]}/{number:06d}{suffix}"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            save(folder / path, image[0])
            rows.append((path, splits.classes[label], split))
    table = folder.parent / f"{folder.name}.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return table
