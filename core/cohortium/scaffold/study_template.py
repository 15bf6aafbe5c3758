"""A study for beginners: a commented file from a few answers.

It runs at once.
"""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
import tomli_w
from attrs import frozen
from attrs.validators import ge

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.data.table import TABLE_SUFFIXES
from cohortium.errors import RequestError, StudyError
from cohortium.runs.prepare import prepare
from cohortium.study import study_file
from cohortium.study.layered_tables import merge
from cohortium.study.study import Study

if TYPE_CHECKING:
    from cohortium.data.examples import Examples
    from cohortium.data.splits import Splits
    from cohortium.runs.prepare import PreparedStudy


def _positive(_: object, __: object, epsilon: float | None) -> None:
    if epsilon is not None and not epsilon > 0:
        raise StudyError(f"epsilon is {epsilon}; give a number above 0, or None without privacy.")


@frozen(kw_only=True)
class Answers:
    """Answers to the questions of `cohortium init`.

    Attributes:
        data: A data set that needs no parameters, an npz file, or one of MedMNIST's flags.
        sites: Number of simulated sites.
        epsilon: ε of the whole run, or None without privacy.
        secagg: Whether the coordinator sees only sums.
    """

    data: str = "phantom"
    sites: int = attrs.field(default=10, validator=ge(1))
    epsilon: float | None = attrs.field(default=6.0, validator=_positive)
    secagg: bool = True


def render_study(answers: Answers) -> tuple[str, PreparedStudy]:
    """Return a study file's text, and the prepared study.

    Raises:
        CohortiumError: The data cannot be loaded, or the answers are not possible together.
    """
    table = _dataset(answers.data)
    splits = construction.build_part(discover(), "dataset", table, where="--data").load()
    text = _text(answers, table, splits)
    tables = merge(study_file.quick_start(), tomllib.loads(text), where="the new study")
    drafted = study_file.build(tables, where="the new study", into=Study)
    return text, prepare(drafted, loaded=splits)


def validate_dataset_name(data: str) -> str:
    """Return `data` if it names a data set or a file.

    Nothing is loaded.

    Raises:
        CohortiumError: There is no such data set, or no such file. Or the path is one of images or
            of a table, which `cohortium pack` converts.
    """
    table = _dataset(data)
    try:
        construction.build_part(discover(), "dataset", table, where="--data")
    except StudyError as error:
        # A folder may have the name of one of MedMNIST's sets.
        if table["name"] == "medmnist" and os.path.exists(data):  # noqa: PTH110 - Path.exists raises
            raise _unpacked(data) from error
        raise
    if table["name"] == "npz" and not Path(data).is_file() and "COHORTIUM_DATA" not in os.environ:
        raise RequestError(f"--data: there is no file {data}.")
    return data


def _unpacked(data: str) -> RequestError:
    """Return the refusal of a table, a folder or a file that is no npz file."""
    store = f"{Path(data).name.split('.')[0] or 'data'}.npz"
    return RequestError(
        f"--data {data}: init reads an npz file or a MedMNIST set; convert a table or a folder of "
        f"images with 'cohortium pack {data} -o {store}', and give --data {store}."
    )


def _dataset(data: str) -> dict[str, str]:
    if Path(data).suffix.lower() == ".npz":
        return {"name": "npz", "path": data}
    if data in ("npz", "medmnist"):
        wanted = "the path of a file that ends in .npz" if data == "npz" else "one of its flags"
        raise RequestError(f"--data {data}: give {wanted}.")
    if data in discover().names("dataset"):
        return {"name": data}
    if "/" in data or os.sep in data or Path(data).suffix.lower() in TABLE_SUFFIXES:
        raise _unpacked(data)
    return {"name": "medmnist", "flag": data}


def customary_delta(units: int) -> float:
    """Return the largest power of ten below 0.1 / `units`.

    >>> customary_delta(6000)
    1e-05
    """
    return float(f"1e{math.ceil(math.log10(0.1 / units)) - 1}")


def _text(answers: Answers, dataset: dict[str, str], splits: Splits) -> str:
    spec = splits.spec
    shape = " × ".join(map(str, spec.shape))
    return "\n".join(
        [
            _HEAD.format(sites=answers.sites, rounds=60 if answers.epsilon else 20),
            f"# {len(splits.train):,} training images of {len(spec.classes)} classes, {shape}.",
            *_patients_note(splits.train),
            f"[dataset]\n{tomli_w.dumps(dataset)}",
            *_centres_note(splits.train),
            _PARTITIONER,
            _MODEL,
            _PRIVATE_TRAINER if answers.epsilon else _OPEN_TRAINER,
            _private(answers.epsilon, splits.train) if answers.epsilon else _OPEN,
            _SECAGG if answers.secagg else _PLAIN,
        ]
    )


def _num_patients(train: Examples) -> int | None:
    """Return the number of patients if one of them has several images, else None."""
    if train.patients is None:
        return None
    patients = len(np.unique(train.patients))
    return patients if patients < len(train) else None


def _patients_note(train: Examples) -> list[str]:
    patients = _num_patients(train)
    if patients is None:
        return []
    return [f"# They are of {patients:,} patients. All images of a patient go to one site."]


def _centres_note(train: Examples) -> list[str]:
    centres = 0 if train.clients is None else len(np.unique(train.clients))
    return [_CENTRES.format(centres=centres)] if centres > 1 else []


def _private(epsilon: float, train: Examples) -> str:
    patients = _num_patients(train)
    units = len(train) if patients is None else patients
    return _PRIVATE.format(
        epsilon=float(epsilon),
        delta=customary_delta(units),
        units=units,
        one="image" if patients is None else "patient",
        unit="" if patients is None else _PATIENT_UNIT,
    )


_HEAD = """\
# A federated study.
#   cohortium plan FILE     its guarantee and cost, before any training
#   cohortium run FILE      runs it
#   cohortium plugins NAME  the parameters of any part named below
# A key that is left out has the value of the quick start.

[federation]
sites = {sites}        # hospitals, simulated on this machine
rounds = {rounds}       # times that the global weights move
seed = 1          # of all that is public: initial weights, who gets which images
# retries = 2     # rounds that may fail and be tried again; privacy is planned for them too
# threads = 1     # of torch; equal bits need equal threads
"""

_CENTRES = """\
# The data name {centres} centres. With `name = "natural"` and no alpha, a site has whole centres,
# and sites is at most {centres}."""

_PARTITIONER = """\
# Images are split over the simulated sites: alpha = 0.5 skews the labels, 100 hardly.
[partitioner]
name = "dirichlet"
alpha = 0.5
"""

_MODEL = """\
# "descriptor" learns a linear layer on fixed features: the strongest start under privacy.
# "dpresnet" and "cnn" learn their features; they need more images, more rounds and more time.
[model]
name = "descriptor"
"""

_PRIVATE_TRAINER = """\
# One private gradient of each site a round; momentum is the server's.
[trainer]
name = "fedsgd"
"""

_OPEN_TRAINER = """\
# Sites train on their own for some epochs; the server takes the mean.
[trainer]
name = "fedavg"
local_epochs = 5
learning_rate = 0.002
optimizer_options = { momentum = 0.9 }
"""

_PRIVATE = """\
# Noise for the whole run, so that a site's updates hide each single {one}.
[privatizer]
name = "gaussian"
epsilon = {epsilon}     # smaller is more private: 1 is strong, 6 moderate, beyond 10 weak
delta = {delta}     # the chance that this fails: below a tenth of one over {units} {one}s
clip_norm = 7.0        # the most that one {one} may weigh in a step
{unit}# Sites that share the noise need less of it, where sums alone are seen and not all
# collude: with `noise = "distributed"` here set `max_colluding = 1` and `min_contributors`
# under [federation].
"""

_PATIENT_UNIT = """\
unit = "patient"       # patients have several images: "example" would hide one image of a patient
"""

_OPEN = """\
# Nothing here is private: a site's updates may reveal its images.
[privatizer]
name = "none"
"""

_SECAGG = """\
# The coordinator sees sums over sites, and no site's own release; dropouts are recovered.
[aggregator]
name = "secagg"
"""

_PLAIN = """\
# The coordinator sees what every site sends.
[aggregator]
name = "plain"
"""
