"""Our own plugins, held to the kit that every stranger's is held to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium.catalog.discovery import CatalogEntry, discover
from cohortium.roles import ROLES
from cohortium.testing import Check, checks_for, engines, suite
from cohortium.testing.values import check_plugin_import
from cohortium_npz import Npz
from tests.support import dicom_files, exported_programs, nifti_files
from tests.support.image_files import write_files

CATALOG = discover()

OURS = [offering for offering in CATALOG.entries if offering.record.distribution == "cohortium"]

SMALL: dict[tuple[str, str], list[str]] = {
    ("dataset", "phantom"): ["examples=24", "validation=8", "test=8"],
    ("dataset", "phantom-fields"): ["examples=24", "validation=8", "test=8"],
    ("dataset", "medmnist"): ["flag=pneumoniamnist", "download=false"],
    ("model", "dpresnet"): ["width=4"],
    ("model", "cnn"): ["width=4"],
    ("model", "resnet9"): ["width=4"],
    ("model", "resnet18"): ["width=4"],
    ("model", "unet"): ["width=4", "depth=2"],
    ("model", "vgg16"): ["width=2"],
    ("model", "scatternet"): ["angles=2", "groups=3"],
    ("model", "standardized"): ["model={name='cnn',width=4}"],
    ("model", "moments"): ["features={name='descriptor',bins=4,edge_bins=2}"],
    ("model", "module"): ["module=tests.support.federations:SmallConvNet"],
    ("model", "pretrained"): [
        "images={name='phantom',examples=32,validation=0,test=0}",
        "width=4",
        "epochs=1",
    ],
}
"""Parameters under which a plugin is quick; the others are checked as they come."""

MARKS = {"medmnist": [pytest.mark.data]}

MORE: list[tuple[str, str, list[str]]] = [
    ("privatizer", "gaussian", ["unit=site"]),
    ("privatizer", "gaussian", ["unit=site", "adjacency=replace-one"]),
    ("privatizer", "gaussian", ["adjacency=replace-one"]),
    ("privatizer", "gaussian", ["unit=patient"]),
    ("privatizer", "skellam", ["unit=patient", "noise=local"]),
    ("privatizer", "gaussian", ["noise=distributed"]),
    ("privatizer", "gaussian", ["noise=distributed", "unit=site"]),
    ("privatizer", "gaussian", ["rescale_to_unit_norm=true", "clip_norm=3"]),
    ("model", "dpresnet", ["width=2", "standardise=true"]),
    ("model", "resnet9", ["width=2", "norm=group"]),
    ("model", "resnet18", ["width=2", "stem=large", "norm=batch"]),
    ("model", "descriptor", ["center_on={name='phantom',examples=32,validation=0,test=0}"]),
    (
        "model",
        "descriptor",
        [
            "standardize=true",
            "extra_features={name='scatternet',angles=2,groups=3}",
            "center_on={name='phantom',examples=32,validation=0,test=0}",
            "components=20",
        ],
    ),
    (
        "model",
        "descriptor",
        [
            "center_on={name='phantom',examples=32,validation=0,test=0}",
            "whiten=0.5",
            "components=20",
            "private_whitening=true",
        ],
    ),
    (
        "model",
        "descriptor",
        [
            "center_on={name='phantom',examples=32,validation=0,test=0}",
            "components=20",
            (
                "parts={name='pretrained',epochs=1,network={name='unet',width=4,depth=1},"
                "images={name='phantom-fields',labels='masks',examples=8,validation=0,test=0}}"
            ),
        ],
    ),
    (
        "model",
        "pretrained",
        [
            "images={name='phantom',examples=32,validation=0,test=0}",
            "epochs=1",
            (
                "parts={name='pretrained',epochs=1,network={name='unet',width=4,depth=1},"
                "images={name='phantom-fields',labels='masks',examples=8,validation=0,test=0}}"
            ),
        ],
    ),
    (
        "model",
        "pretrained",
        [
            "images={name='phantom',examples=32,validation=0,test=0}",
            "network={name='dpresnet',width=4}",
            "epochs=1",
            "trainable=norms",
        ],
    ),
    ("model", "backbone", ["learn=lora", "rank=2", "taps=['block','norm']"]),
    (
        "model",
        "backbone",
        [
            "center_on={name='phantom',examples=32,validation=0,test=0}",
            "taps=['stem','block']",
            "components=4",
            "private_whitening=true",
        ],
    ),
    (
        "trainer",
        "fedavg",
        ["local_steps=2", "flips=true", "rotations=true", "augmentation_multiplicity=2"],
    ),
    ("trainer", "fedavg", ["local_steps=2", "mixup_alpha=0.4"]),
    ("trainer", "scaffold", ["local_steps=2"]),
    ("trainer", "fedmic", ["local_steps=2", "flips=true", "optimizer=adam"]),
    ("trainer", "fedmic", ["local_steps=2", "teacher={name='cnn',width=6}"]),
    ("trainer", "fedsgd", ["flips=true", "augmentation_multiplicity=2"]),
]
"""Further parameters, which lead down other paths."""


SLOW = {
    (*privatizer, check)
    for privatizer in (("skellam",), ("gaussian", "noise=distributed"))
    for check in ("influence is bounded", "noise is everywhere")
}
"""Checks of shared noise, which draw it for every site."""


def _cases() -> list[Any]:
    given = [(o, SMALL.get((o.role, o.offer.name), [])) for o in OURS]
    given += [
        (o, settings)
        for role, name, settings in MORE
        for o in OURS
        if (o.role, o.offer.name) == (role, name)
    ]
    # The import of a module does not depend on the class or its parameters.
    first = {o.offer.factory.__module__: n for n, (o, _) in reversed([*enumerate(given)])}
    return [
        pytest.param(
            offering,
            settings,
            check,
            id=" ".join([offering.role, offering.offer.name, *settings, "-", name]),
            marks=[
                *MARKS.get(offering.offer.name, []),
                *(
                    [pytest.mark.slow]
                    if (offering.offer.name, *settings, name) in SLOW
                    or (offering.offer.name == "ray" and check in engines.CHECKS)
                    else []
                ),
            ],
        )
        for number, (offering, settings) in enumerate(given)
        for name, check in checks_for(offering.role)
        if check is not check_plugin_import or number in first.values()
    ]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npz") / "small.npz"
    rng = np.random.default_rng(0)
    np.savez(
        path,
        train_images=rng.integers(0, 256, (24, 9, 7), dtype=np.uint8),
        train_labels=np.arange(24) % 3,
        train_clients=np.arange(24) % 4,
    )
    return path


@pytest.fixture(scope="module")
def files(npz: Path) -> dict[str, list[str]]:
    """Parameters of the parts that read files."""
    folder = npz.parent / "files"
    splits = Npz(path=str(npz), classes=("a", "b", "c")).load()
    table = write_files(splits, folder)
    dicom = write_files(splits, npz.parent / "dicom", suffix=".dcm", save=dicom_files.saved)
    nifti = write_files(
        splits,
        npz.parent / "nifti",
        suffix=".nii",
        save=lambda path, image: nifti_files.saved(path, image[..., None]),
    )
    backbone = exported_programs.parameters(npz.parent)
    return {
        "backbone": [f"{key}={value}" for key, value in backbone.items()],
        "npz": [f"path={npz}"],
        "folder": [f"path={folder}"],
        "dicom": [
            f"path={dicom}",
            f"root={dicom.with_suffix('')}",
            "split=split",
            "window=file",
            "patients=header",
            "patient_key=key",
        ],
        "nifti": [
            f"path={nifti}",
            f"root={nifti.with_suffix('')}",
            "split=split",
            "plane=axial",
            "site=label",
        ],
        "table": [f"path={table}", f"root={folder}", "split=split", "patient=label"],
    }


@pytest.fixture(scope="module")
def make(files: dict[str, list[str]]) -> Callable[[CatalogEntry, list[str]], Any]:
    """An offer's instance; equal ones are equal, so that their plans are calibrated once."""

    def make(offering: CatalogEntry, settings: list[str]) -> Any:
        own = files.get(offering.offer.name, [])
        if offering.offer.name == "medmnist" and not os.environ.get("COHORTIUM_DATA"):
            pytest.skip("COHORTIUM_DATA names no folder of real images")
        return suite.instance_of(CATALOG, offering, [*settings, *own])

    return make


@pytest.mark.parametrize(("offering", "settings", "check"), _cases())
def test_builtin_plugin_passes_conformance_check(
    offering: CatalogEntry,
    settings: list[str],
    check: Check,
    make: Any,
    request: pytest.FixtureRequest,
) -> None:
    if offering.offer.name == "ray" and check in engines.CHECKS:
        request.getfixturevalue("ray_cluster")
    check(make(offering, settings))


def test_every_role_has_builtin_plugin() -> None:
    assert {offering.role for offering in OURS} == set(ROLES)
