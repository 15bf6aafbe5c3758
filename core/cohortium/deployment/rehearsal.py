"""Rehearsal deployment: each simulated site as a folder of its own.

DIR/study.toml            the study of the deployment, for the study lead
DIR/public.npz            its validation and test images, where there are some
DIR/directory.txt         the sites' public keys
DIR/site-0/site.toml      one site: give its folder away, and to nobody else
DIR/site-0/data.npz       its images, with test images if the study has an [evaluation]
DIR/site-0/identity.pem · ledger.sqlite · directory.txt
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import tomli_w

from cohortium.catalog import toml_tables
from cohortium.catalog.discovery import discover
from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.data.groups import NOT_STATED
from cohortium.data.pixels import FLAT
from cohortium.deployment.rehearsed_runs import RehearsedRuns
from cohortium.errors import RequestError, RunError
from cohortium.ledger.ledger import Ledger
from cohortium.storage.atomic import atomic_create
from cohortium.study import toml

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.data.examples import DataSpec, Examples
    from cohortium.data.groups import GroupColumn
    from cohortium.runs.prepare import PreparedStudy


def write_rehearsal(prepared: PreparedStudy, folder: Path, *, engine: str = "flower") -> None:
    """Write the files of a deployment that corresponds to a simulation.

    Args:
        prepared: The simulation.
        folder: New or empty.
        engine: Of the deployment.

    Guarantees:
        Only its owner can read a site's folder. The folder contains no other site's data or key.

        The sites' examples are those of the simulated sites, in the same order. With seeded noise,
        equal versions and equal threads, simulation and deployment give the same weights.

        With an [evaluation], the sites' test images are those of the simulated sites, in the same
        order. If they overlap with training images at a site, one account is charged for both.

    Raises:
        RequestError: The folder is not empty.
        StudyError: The study is of a deployment already.
        RunError: The folder cannot be written.
    """
    prepared.require_simulated()
    sites = range(prepared.run_config.federation_spec.sites)
    runs = RehearsedRuns.of(prepared)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RequestError(f"{folder} is not empty; give another folder with --out.")
        drawn = prepared.identities or tuple(
            SigningKey.generate(Randomness.system()) for _ in sites
        )
        directory = KeyDirectory(tuple(identity.public for identity in drawn))
        for site in sites:
            place = folder / f"site-{site}"
            place.mkdir(mode=0o700)
            drawn[site].create(place / "identity.pem")
            directory.write(place / "directory.txt")
            _write_site(place, site, runs)
        directory.write(folder / "directory.txt")
        has_public = _write_public(folder / "public.npz", prepared)
        study = _study(runs, engine, has_public=has_public)
        atomic_create(folder / "study.toml", tomli_w.dumps(study).encode())
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}.") from error


def _study(runs: RehearsedRuns, engine: str, *, has_public: bool) -> dict[str, Any]:
    prepared, measured = runs.trained, runs.measured
    study = toml.loads(prepared.federation.as_toml(), where="the study")
    del study["dataset"], study["partitioner"]
    # The sites' folders have the held-out images, or none.
    study["federation"]["holdout_fraction"] = 0.0
    study["federation"]["holdout_baselines"] = []
    if measured is not None:
        spec = measured.run_config.spec
        declared = {"examples": spec.examples, "patients": spec.patients}
        study["evaluation"] |= {name: n for name, n in declared.items() if n is not None}
    # Each site's file has the columns of groups.
    spec = attrs.evolve(prepared.run_config.spec, groups=prepared.splits.groups)
    study["data"] = toml_tables.to_values(discover(), spec)
    study["engine"] = {"name": engine}
    if has_public:
        study["dataset"] = _npz("public.npz", prepared.run_config.spec)
    if prepared.run_config.federation_spec.adversary == "active":
        study["federation"]["key_directory"] = "directory.txt"
    return study


def _npz(path: str, spec: DataSpec) -> dict[str, Any]:
    """Return the table of a data set that `_archive` wrote."""
    grey_volumes = spec.channels == 1 and len(spec.size) > FLAT
    task = toml_tables.to_table(discover(), "task", spec.task)
    del task["names"]  # the file has them, as a hospital's own would
    return {
        "name": "npz",
        "path": path,
        "layout": "volumes" if grey_volumes else "channels-last",
        "task": task,
        "intensity_range": list(spec.intensity_range),
    }


def _write_site(folder: Path, site: int, runs: RehearsedRuns) -> None:
    prepared, images = runs.trained, runs.images(site)
    spec = prepared.run_config.spec
    atomic_create(folder / "data.npz", _archive(spec.classes, prepared.splits.groups, **images))
    Ledger(folder / "ledger.sqlite").create()
    dataset_id = f"{prepared.splits.name}, site {site}"
    test_id = dataset_id if runs.is_one_account else f"{dataset_id}, test images"
    site_file = {
        "site": {
            "id": site,
            "dataset_id": dataset_id,
            "signing_key": "identity.pem",
            "key_directory": "directory.txt",
        },
        "dataset": _npz("data.npz", spec),
        **({} if images["test"] is None else {"test": {"dataset_id": test_id}}),
        "policy": {
            **runs.privacy(),
            "adversary": prepared.run_config.federation_spec.adversary,
            **runs.ceilings(),
        },
    }
    atomic_create(folder / "site.toml", tomli_w.dumps(site_file).encode())


def _write_public(path: Path, prepared: PreparedStudy) -> bool:
    if prepared.validation is None and prepared.test is None:
        return False
    # The layout also needs training images. The coordinator never uses them, so one public image
    # suffices.
    first = prepared.test or prepared.validation
    assert first is not None
    data = _archive(
        prepared.run_config.spec.classes,
        prepared.splits.groups,
        train=first.select(np.arange(1)),
        val=prepared.validation,
        test=prepared.test,
    )
    atomic_create(path, data)
    return True


def _archive(
    classes: tuple[str, ...], groups: tuple[GroupColumn, ...], **splits: Examples | None
) -> bytes:
    """Return splits in MedMNIST's array layout."""
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    if groups:
        most = max(len(column.values) for column in groups)
        arrays["group_names"] = np.array([column.name for column in groups])
        arrays["group_values"] = np.array(
            [[*column.values, *[""] * (most - len(column.values))] for column in groups]
        )
    for name, part in splits.items():
        if part is None:
            continue
        images = np.moveaxis(part.images, 1, -1)
        arrays[f"{name}_images"] = images[..., 0] if images.shape[-1] == 1 else images
        arrays[f"{name}_labels"] = part.labels
        if part.patients is not None:
            arrays[f"{name}_patients"] = part.patients
        if groups:
            codes = part.groups
            if codes is None:
                codes = np.full((len(part), len(groups)), NOT_STATED)
            arrays[f"{name}_groups"] = codes
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
