"""Masks as NIfTI files that lie on their image in a viewer."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cohortium_nifti._header import worded

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIX: Final = ".nii.gz"
"""Ending of the files of masks."""

_TEXTS: Final = ("descrip", "aux_file", "db_name", "intent_name", "data_type")
"""Fields of a header that hold text, which may name a patient."""

_RIGHT_FRONT_HEAD: Final = ((0, 1), (1, 1), (2, 1))


def encode_mask(path: Path, mask: NDArray[Any], axis: int | None) -> bytes:
    """Return a mask as a NIfTI file with the axes, affine and geometry of its image's file.

    Texts and extensions of the image's header are left out, because they may name a patient.

    Args:
        path: The file of the image.
        mask: Classes, with the axes of the image as `read_nifti` returns it.
        axis: The axis of the image that has one voxel, which the mask lacks, or None.

    Raises:
        DataError: The file of the image cannot be read.
    """
    import nibabel
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    volume = mask if axis is None else np.expand_dims(mask, axis)
    with worded(path):
        source: Any = nibabel.load(path)
        header = source.header.copy()
        affine = header.get_best_affine()
        turn = ornt_transform(np.array(_RIGHT_FRONT_HEAD), io_orientation(affine))
        labels = np.ascontiguousarray(apply_orientation(volume, turn), dtype=np.uint8)
        header.extensions.clear()
        for name in _TEXTS:
            header[name] = b""
        header["cal_min"] = header["cal_max"] = 0
        header.set_intent("none")
        header.set_data_shape(labels.shape)
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        made = type(source)(labels, affine, header)
        # Without a time, equal masks give equal files.
        return gzip.compress(made.to_bytes(), mtime=0)
