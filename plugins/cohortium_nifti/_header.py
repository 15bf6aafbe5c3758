"""Voxels of a NIfTI file, read within bounds that its header and its size set.

The file may come from anyone. Its header is read from its first bytes, and compared with the file's
size before more is read or unpacked.
"""

from __future__ import annotations

import gzip
import math
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import numpy as np
from attrs import field, frozen

from cohortium.plugin import DataError, replace_library_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from nibabel.nifti1 import Nifti1Header
    from numpy.typing import NDArray

MAX_VALUES: Final = 1 << 27
"""Largest number of values of a file, the same as of one image of a study."""

MAX_OFFSET: Final = 1 << 24
"""Largest number of bytes before the voxels: the header and its extensions."""

_DEFLATION: Final = 1032
"""Largest number of bytes that deflate makes of one: its longest match, 258, of two bits."""

_HEADER_BYTES: Final = 540
"""Size of the larger of the two headers, that of NIfTI-2."""

_KINDS: Final = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_SUFFIXES: Final = (".nii", ".hdr", ".img")


@frozen(kw_only=True, eq=False)
class Voxels:
    """Stored voxels of a file.

    Attributes:
        stored: Values without scaling, shape (X, Y, Z) or (X, Y, Z, volumes), in the file's order.
        affine: Map from indices to mm in the patient's coordinates, shape (4, 4).
        slope: Factor of the stored values, 1 if there is no scaling.
        intercept: Value of a stored 0, 0 if there is no scaling.
    """

    stored: NDArray[Any] = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    slope: float
    intercept: float

    @property
    def is_scaled(self) -> bool:
        """Whether the values differ from the stored ones."""
        return (self.slope, self.intercept) != (1, 0)


def worded(path: Path) -> AbstractContextManager[None]:
    """Return a block in which any error about the file becomes one sentence."""
    return replace_library_errors(path, " cannot be read as NIfTI", logger="nibabel.global")


def read_voxels(path: Path) -> Voxels:
    """Read a file's stored voxels.

    Args:
        path: A file .nii or .nii.gz, or either file of a pair .hdr and .img.

    Raises:
        DataError: The file is missing, damaged or larger than the bound, or no NIfTI file. Or its
            header declares another size than the file has.
    """
    try:
        import nibabel  # noqa: F401 - the sentence for a missing package comes first
    except ImportError as error:
        raise DataError(
            "reading NIfTI files needs a package; pip install 'cohortium[nifti]'."
        ) from error
    head_path, data_path = _parts(path)
    with worded(head_path), _opened(head_path) as file:
        header = _header(file.read(_HEADER_BYTES), head_path, is_pair=head_path != data_path)
        shape, dtype = _declared(header, head_path)
        affine, (slope, intercept) = header.get_best_affine(), header.get_slope_inter()
        _require_geometry(header, affine, head_path)
        offset = int(header.get_data_offset())
    with worded(data_path), _opened(data_path) as file:
        size = math.prod(shape) * dtype.itemsize
        _require_size(data_path, offset, size)
        file.seek(offset)
        content = file.read(size)
        if len(content) < size or file.read(1):
            raise DataError(_differing(data_path, shape, dtype))
    stored = np.frombuffer(content, dtype).reshape(shape, order="F")
    return Voxels(
        stored=stored,
        affine=affine,
        slope=1 if slope is None else float(slope),
        intercept=0 if intercept is None else float(intercept),
    )


def _parts(path: Path) -> tuple[Path, Path]:
    """Return the file of the header and that of the voxels."""
    packing = ".gz" if path.name.lower().endswith(".gz") else ""
    stem = path.name[: len(path.name) - len(packing)]
    suffix = stem[-4:].lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"{path} is no NIfTI file by its name; give .nii, .nii.gz, .hdr or .img.")
    if suffix == ".nii":
        return path, path
    ending = path.name[len(path.name) - len(packing) :]
    both = (".HDR", ".IMG") if stem[-4:].isupper() else (".hdr", ".img")
    head, data = (path.with_name(stem[:-4] + name + ending) for name in both)
    return head, data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, and unpack it as it is read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no file; give NIfTI files.")
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    with file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast("BinaryIO", unpacked)
        else:
            yield file


def _header(content: bytes, path: Path, *, is_pair: bool) -> Nifti1Header:
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    kinds: tuple[Any, ...] = (
        (Nifti1PairHeader, Nifti2PairHeader) if is_pair else (Nifti1Header, Nifti2Header)
    )
    for kind in kinds:
        size = kind.sizeof_hdr
        if len(content) >= size and kind.may_contain_header(content):
            header: Nifti1Header = kind(content[:size], check=True)
            return header
    raise DataError(f"{path} is no NIfTI file; convert it to NIfTI, or leave it out.")


def _declared(header: Nifti1Header, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type of a file's voxels."""
    shape = tuple(int(length) for length in header.get_data_shape())
    dtype = np.dtype(header.get_data_dtype())
    if len(shape) not in (3, 4):
        raise DataError(f"{path} has {len(shape)} axes; save a volume of three, or several of one.")
    if min(shape) < 1:
        raise DataError(f"{path} declares the shape {shape}; copy the file anew, or leave it out.")
    if dtype.newbyteorder("=").name not in (*_KINDS, "float32", "float64"):
        raise DataError(f"{path} has voxels of type {dtype}; convert them to int16 or float32.")
    if math.prod(shape) > MAX_VALUES:
        raise DataError(
            f"{path} declares {_shown(shape, dtype)}, and at most {MAX_VALUES:,} are read; split "
            "it."
        )
    return shape, dtype


def _require_geometry(header: Nifti1Header, affine: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine that has no inverse, and lengths that are not in mm."""
    from nibabel.affines import voxel_sizes

    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise DataError(f"{path} states lengths in {unit}; save it with lengths in mm.")
    lengths = voxel_sizes(affine) if np.isfinite(affine).all() else np.zeros(3)
    # The volume of a voxel, as a part of its lengths' product: 0 if its axes lie in a plane.
    if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:  # noqa: PLR2004
        raise DataError(f"{path} has axes without three directions; correct its affine.")


def _require_size(path: Path, offset: int, size: int) -> None:
    """Refuse a file that cannot have the declared number of bytes, before it is unpacked."""
    found = path.stat().st_size
    is_packed = path.name.lower().endswith(".gz")
    if not 0 <= offset <= MAX_OFFSET:
        raise DataError(
            f"{path} declares that its voxels begin at byte {offset:,}, and at most "
            f"{MAX_OFFSET:,} is read; save it without extensions."
        )
    if offset + size > found * (_DEFLATION if is_packed else 1):
        raise DataError(
            f"{path} has {found:,} bytes, and its header declares {offset + size:,}"
            f"{' unpacked' if is_packed else ''}; copy the file anew, or leave it out."
        )


def _differing(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return (
        f"{path} declares {_shown(shape, dtype)}, and holds another number of bytes; copy the file "
        "anew, or leave it out."
    )


def _shown(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{' × '.join(map(str, shape))} voxels of {dtype.newbyteorder('=')}"
