"""The key of a model's features of a set of images.

It covers all that determines them:

- the images: their bytes, type, shape and intensity range
- the model: its class, its parameters and those of its parts
- files that a parameter names, such as weights, by their SHA-256
- code: the source files of the classes and of their packages' top folders, and the versions of
  Cohortium, NumPy and torch
- the machine: its processor, and torch's number of threads, which decide the last bits
- a sample: the features of some of the images themselves

The sample is computed anew in every run. So weights that a model learns or reads in any other way,
and code in other files, change the key too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from cohortium.catalog.provenance import file_digest, parts_inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Model

MAX_SAMPLE: Final = 16
"""Most images of the sample."""

PART_BYTES: Final = 1 << 26
"""Size of a part of the images that is hashed at a time: 64 MiB."""


def sample_positions(count: int) -> NDArray[np.int64]:
    """Return the positions of the sample among `count` images, evenly spaced."""
    spaced = np.linspace(0, count - 1, min(count, MAX_SAMPLE))
    return np.unique(spaced.astype(np.int64))


def feature_key(model: Model, images: NDArray[Any], spec: DataSpec, sample: Tensor) -> str:
    """Return the SHA-256, in hexadecimal digits, of all that determines the features.

    Args:
        model: Model, an attrs value.
        images: Stored images, shape (N, C, …), in memory or mapped.
        spec: Public facts about the data.
        sample: The model's features of the images at `sample_positions`.
    """
    import torch

    stated = {
        "images": _images_digest(images),
        "dtype": images.dtype.str,
        "shape": list(images.shape),
        "intensity_range": [float(bound) for bound in spec.intensity_range],
        "model": repr(model),
        "code": dict(_code_of(model)),
        "files": {str(path): _file_digest(path) for path in _files_of(model)},
        "versions": {name: version(name) for name in ("cohortium", "numpy", "torch")},
        "machine": [
            platform.machine(),
            torch.backends.cpu.get_cpu_capability(),
            torch.get_num_threads(),
        ],
        "sample": [
            str(sample.dtype),
            list(sample.shape),
            hashlib.sha256(sample.detach().contiguous().numpy().tobytes()).hexdigest(),
        ],
    }
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _images_digest(images: NDArray[Any]) -> str:
    """Return the SHA-256 of the images' bytes, read part by part."""
    digest = hashlib.sha256()
    step = max(1, PART_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        part = np.ascontiguousarray(images[start : start + step])
        digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _code_of(model: Model) -> Iterator[tuple[str, list[str]]]:
    """Yield the class of a model and of each of its parts, with SHA-256 of source files."""
    for name, part in parts_inside("model", model):
        own = getattr(part, "code", None)
        for code in (type(part), *([own()] if callable(own) else [])):
            sources = sorted(map(file_digest, _sources(code)))
            yield f"{name} {code.__module__}:{code.__qualname__}", sources


def _sources(code: Any) -> list[Path]:
    """Return a class's source file, and those of the same folder if it is a package."""
    try:
        found = inspect.getsourcefile(code)
    except TypeError:
        found = None
    if found is None:
        return []
    file = Path(found)
    return [*file.parent.glob("*.py")] if file.name == "__init__.py" else [file]


def _files_of(model: Model) -> Iterator[Path]:
    """Yield the files that parameters of a model and its parts name."""
    for _, part in parts_inside("model", model):
        kind: Any = type(part)
        for each in attrs.fields(kind) if attrs.has(kind) else ():
            value = getattr(part, each.name, None)
            if isinstance(value, str) and value and "\0" not in value and _is_file(Path(value)):
                yield Path(value)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text that is too long for a name
        return False


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
