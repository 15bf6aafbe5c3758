"""Made-up NIfTI files, written with nibabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray


def saved(
    path: Path,
    voxels: NDArray[Any],
    affine: NDArray[Any] | None = None,
    *,
    slope: float | None = None,
    intercept: float | None = None,
    version: int = 1,
    unit: str = "mm",
) -> Path:
    """Write stored `voxels` to `path`, which names the format by its ending."""
    is_single = ".nii" in path.name
    single: dict[int, Any] = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}
    pair: dict[int, Any] = {1: nibabel.Nifti1Pair, 2: nibabel.Nifti2Pair}
    kind = (single if is_single else pair)[version]
    image = kind(voxels, np.eye(4) if affine is None else affine, dtype=voxels.dtype)
    image.header.set_xyzt_units(unit)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    return path
