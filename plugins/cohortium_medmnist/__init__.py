"""The eighteen sets of MedMNIST, flat images and volumes, in their official splits.

>>> MedMNIST(flag="pneumoniamnist").load()  # doctest: +SKIP

The file is searched in `root`, in the folder that `COHORTIUM_DATA` names and in medmnist's own
`~/.medmnist`.  It is downloaded only if it is in none of them.  From any of these sources, its MD5
is the published one.  So figures from it can be compared with those of other people.
"""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import Attribute, field, frozen

from cohortium.plugin import (
    DataError,
    Dataset,
    Multiclass,
    Offer,
    StudyError,
    data_dir,
    first_existing,
    hookimpl,
    make_task,
    read_npz_splits,
)
from cohortium_medmnist._fetch import FetchError, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import Splits, Task

COHORTIUM_API = 1

SIZES: Final = (28, 64, 128, 224)
"""Sides of a flat image, in pixels."""

VOLUME_SIZES: Final = (28, 64)
"""Sides of a volume, in voxels."""

LABEL_BYTES: Final = 256
"""More bytes than the labels of an image take."""

HEADER_BYTES: Final = 1 << 20
"""More bytes than the headers of a file's arrays take."""

VOLUMES: Final = "3d"
"""Ending of the flag of a set of volumes."""

ORIGINS: Final[Mapping[str, str]] = {
    "adrenalmnist3d": "Yang et al., Scientific Data 2023",
    "bloodmnist": "Acevedo et al., Data in Brief 2020",
    "breastmnist": "Al-Dhabyani et al., Data in Brief 2020",
    "chestmnist": "Wang et al., CVPR 2017",
    "dermamnist": "Tschandl et al., Scientific Data 2018 and Codella et al., arXiv:1902.03368",
    "fracturemnist3d": "Jin et al., EBioMedicine 2020",
    "nodulemnist3d": "Armato et al., Medical Physics 2011",
    "octmnist": "Kermany et al., Cell 2018",
    "organamnist": "Bilic et al., Medical Image Analysis 2023 and Xu et al., IEEE TMI 2019",
    "organcmnist": "Bilic et al., Medical Image Analysis 2023 and Xu et al., IEEE TMI 2019",
    "organsmnist": "Bilic et al., Medical Image Analysis 2023 and Xu et al., IEEE TMI 2019",
    "organmnist3d": "Bilic et al., Medical Image Analysis 2023 and Xu et al., IEEE TMI 2019",
    "pathmnist": "Kather et al., PLOS Medicine 2019",
    "pneumoniamnist": "Kermany et al., Cell 2018",
    "retinamnist": "Liu et al., Patterns 2022",
    "synapsemnist3d": "Yang et al., Scientific Data 2023",
    "tissuemnist": "Ljosa et al., Nature Methods 2012",
    "vesselmnist3d": "Yang et al., CVPR 2020",
}
"""The sets, and the authors of the images of each.

RetinaMNIST's five grades are ordered.  They are taken as five classes, which is also how MedMNIST
itself scores them.
"""


def _offered(_: object, attribute: Attribute[str], flag: str) -> None:
    if flag not in ORIGINS:
        raise StudyError(
            f"medmnist: MedMNIST has no set '{flag}'; let {attribute.name} be one of "
            f"{', '.join(ORIGINS)}."
        )


def _made(dataset: MedMNIST, attribute: Attribute[int], size: int) -> None:
    sizes = VOLUME_SIZES if dataset.flag.endswith(VOLUMES) else SIZES
    if size not in sizes:
        raise StudyError(
            f"medmnist: {dataset.flag} has no images of {attribute.name} {size}; choose one of "
            f"{', '.join(map(str, sizes))}."
        )


@frozen(kw_only=True)
class MedMNIST:
    """A set of MedMNIST v2, or of its larger versions (MedMNIST+).

    Attributes:
        flag: MedMNIST's own name of the set, such as "bloodmnist".
        root: A folder to look in first, and to download to.
        size: Side of an image in pixels: 28, 64, 128 or 224.  Volumes have 28 or 64.
        download: Whether a file that is in none of the folders may be downloaded.
    """

    flag: str = field(default="bloodmnist", validator=_offered)
    root: str = ""
    size: int = field(default=28, validator=_made)
    download: bool = True

    def load(self) -> Splits:
        """Read the official file, and download it first if it is missing.

        Raises:
            DataError: It is missing and cannot be downloaded, or is not the official file.
        """
        info = _table()[self.flag]
        suffix = "" if self.size == SIZES[0] else f"_{self.size}"
        is_volume = self.flag.endswith(VOLUMES)
        values = info["n_channels"] * self.size ** (3 if is_volume else 2)
        remote = RemoteFile(
            name=f"{self.flag}{suffix}.npz",
            url=info[f"url{suffix}"],
            md5=info[f"MD5{suffix}"],
            max_bytes=sum(info["n_samples"].values()) * (values + LABEL_BYTES) + HEADER_BYTES,
        )
        path = self._file(remote)
        return read_npz_splits(
            path,
            name=f"{info['python_class']} {'×'.join([str(self.size)] * (3 if is_volume else 2))}",
            task=_task(info["task"]),
            classes=[info["label"][str(label)] for label in range(len(info["label"]))],
            source=(
                f"{info['python_class']} of MedMNIST v2 (Yang et al., Scientific Data 2023), "
                f"images from {ORIGINS[self.flag]}; {info['license']}"
            ),
            layout="volumes" if is_volume else "channels-last",
        )

    def _file(self, remote: RemoteFile) -> Path:
        """Return the path of the official file, and download it if missing."""
        own = Path(self.root).expanduser() if self.root else None
        cache = Path.home() / ".medmnist"
        folders = [folder for folder in (own, data_dir(), cache) if folder is not None]
        found = first_existing(*(folder / remote.name for folder in folders))
        if found is not None:
            return _checked(found, remote)
        if not self.download:
            failure = "download is false"
        else:
            try:
                return remote.fetch(own or cache)
            except FetchError as error:
                failure = f"downloading it failed: {error}"
        raise DataError(
            f"{remote.name} is not in {' or '.join(map(str, folders))}, and {failure}; get it "
            f"from {remote.url} and put it in {folders[0]}."
        )


def _task(kind: str) -> Task:
    """Return the task that MedMNIST calls `kind`."""
    return make_task("multilabel") if kind.startswith("multi-label") else Multiclass()


def _checked(path: Path, remote: RemoteFile) -> Path:
    try:
        official = remote.matches(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check who may read it.") from error
    if not official:
        raise DataError(
            f"{path} is not the official file, whose MD5 is {remote.md5}; replace it by "
            f"{remote.url}, or read it under a name of its own with the data set 'npz'."
        )
    return path


def _table() -> Mapping[str, Mapping[str, Any]]:
    """Return medmnist's description of each set.

    Only the module of its table is run, because importing the package imports torch, pandas and
    scikit-learn.
    """
    spec = importlib.util.find_spec("medmnist")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the package medmnist is not installed; pip install medmnist.")
    table: Mapping[str, Mapping[str, Any]] = runpy.run_path(
        str(Path(spec.submodule_search_locations[0]) / "info.py")
    )["INFO"]
    return table


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `medmnist`."""
    summary = "MedMNIST's eighteen official sets, 2D and 3D."
    return [Offer("medmnist", MedMNIST, summary, local_parameters=("root",), download="download")]
