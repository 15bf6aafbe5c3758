"""What users write, for type checkers: mypy and pyright read it as they read a user's program.

`tests/typing/test_public_typing.py` holds that it leaves nothing public out.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import cohortium
from cohortium import (
    Catalog,
    CohortiumError,
    EvaluationPlan,
    Federation,
    Guarantee,
    Measurement,
    PluginRecord,
    PriorRelease,
    Result,
    Search,
    Tuning,
    TuningResult,
    discover,
    tune,
)
from cohortium.plugin import (
    Aggregator,
    Dataset,
    DeploymentEngine,
    Engine,
    Event,
    Model,
    Multiclass,
    Observer,
    OwnModelTrainer,
    Partitioner,
    Privatizer,
    RoundCompleted,
    ServerStateTrainer,
    SiteScored,
    Task,
    Trainer,
)
from cohortium_additive import Additive
from cohortium_backbone import Backbone
from cohortium_cnn import CNN
from cohortium_descriptor import Descriptor
from cohortium_dicom import DicomDataset
from cohortium_dirichlet import Dirichlet
from cohortium_dpresnet import DPResNet
from cohortium_events import Events
from cohortium_fedavg import (
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedDyn,
    FedPer,
    FedProx,
    FedYogi,
    Scaffold,
)
from cohortium_fedmic import FedMIC
from cohortium_fedsgd import FedSGD
from cohortium_flower import Flower
from cohortium_folder import Folder
from cohortium_gaussian import Gaussian
from cohortium_iid import IID
from cohortium_inline import Inline
from cohortium_medmnist import MedMNIST
from cohortium_mlflow import MLflow
from cohortium_module import Module
from cohortium_moments import Moments
from cohortium_multilabel import Multilabel
from cohortium_natural import Natural
from cohortium_nifti import NiftiDataset
from cohortium_none import NoPrivacy
from cohortium_npz import Npz
from cohortium_phantom import Phantom, PhantomFields
from cohortium_plain import Plain
from cohortium_pretrained import Pretrained
from cohortium_progress import Progress
from cohortium_quantity import Quantity, QuantityPairs
from cohortium_ray import Ray
from cohortium_resnet9 import ResNet9
from cohortium_resnet18 import ResNet18
from cohortium_scatternet import ScatterNet
from cohortium_secagg import SecAgg
from cohortium_segmentation import Segmentation
from cohortium_skellam import Skellam
from cohortium_standardized import Standardized
from cohortium_table import TableDataset
from cohortium_tensorboard import TensorBoard
from cohortium_unet import UNet
from cohortium_vgg16 import VGG16


def compose() -> Federation:
    """Instances, names and numbers, as the README has them."""
    return Federation(
        dataset="phantom",
        partitioner=Dirichlet(alpha=0.5),
        model="descriptor",
        trainer="fedsgd",
        privatizer=Gaussian(epsilon=6.0, delta=1.9e-4, clip_norm=7.0),
        aggregator=SecAgg(reconstruction_threshold=4),
        sites=10,
        rounds=60,
        seed=1,
    )


def run(federation: Federation) -> Result:
    """A run, and what can be asked of its result."""
    try:
        result = federation.run(Path("record"), observers=[Progress()])
    except CohortiumError as error:
        assert_type(error.exit_code, int)
        raise SystemExit(error.exit_code) from error
    assert_type(result, Result)
    assert_type(result.accuracy, float | None)
    assert_type(result.guarantee, Guarantee | None)
    assert_type(result.rounds, int)
    if result.guarantee is not None:
        assert_type(result.guarantee.epsilon, float)
    for event in result.history:
        assert_type(event, RoundCompleted)
    if result.scores is not None:
        assert_type(result.scores.main, float)
    return result


def evaluate(federation: Federation) -> float | None:
    """An evaluation at the sites, and the statistics before a run."""
    assert_type(Measurement(of="images", data="train").by, tuple[str, ...])
    assert_type(PriorRelease(noise_multiplier=4.0).releases, int)
    result = federation.evaluate("record", EvaluationPlan(epsilon=1.0, by=("site",), every=10))
    for each in result.measured_by_round:
        assert_type(each.trained_rounds, int | None)
    assert_type(result, Result)
    return None if result.measured is None else result.measured.estimates[0].value


def choose_inside_epsilon(federation: Federation) -> float | None:
    """A search whose guarantee covers the final run, too."""
    tuning = Tuning(studies={"one": federation}, rounds=3, share=0.3, score="public")
    result = tune(federation, tuning, "tuned")
    assert_type(result, TuningResult)
    assert_type(federation.search, Search | None)
    assert_type(result.final.guarantee, Guarantee | None)
    return result.choice.scores[0].value


def look() -> Catalog:
    """What is installed."""
    catalog = discover()
    assert_type(catalog.records, tuple[PluginRecord, ...])
    assert_type(catalog.names("model"), list[str])
    assert_type(cohortium.__version__, str)
    return catalog


class Counter:
    """An observer by its methods alone."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.events = 0

    def start_run(self) -> Counter:
        """Be the listener too."""
        return self

    def __call__(self, event: Event) -> None:
        """Count, and follow the comparison of simulated sites."""
        self.events += 1
        if isinstance(event, SiteScored):
            assert_type(event.num_scored, int)
            assert_type(event.num_sites, int)


OBSERVER: Observer = Counter()

DATASETS: list[Dataset] = [
    Folder(path="cells"),
    MedMNIST(),
    Npz(path="images.npz"),
    Phantom(),
    PhantomFields(),
    TableDataset(path="cells.csv"),
    DicomDataset(path="ct.csv", window="file"),
    NiftiDataset(path="mr.csv"),
]
TASKS: list[Task] = [Multiclass(), Multilabel(), Segmentation()]
PARTITIONERS: list[Partitioner] = [Dirichlet(), IID(), Natural(), Quantity(), QuantityPairs()]
MODELS: list[Model] = [
    CNN(),
    Descriptor(),
    DPResNet(),
    Module(module="package:Class"),
    Backbone(architecture="resnet18"),
    Moments(features=Descriptor()),
    Pretrained(images=Phantom()),
    ResNet9(),
    ResNet18(),
    ScatterNet(),
    Standardized(model=CNN()),
    UNet(),
    VGG16(),
]
TRAINERS: list[Trainer] = [
    Ditto(),
    FedAdagrad(),
    FedAdam(),
    FedAvg(),
    FedAvgM(),
    FedBN(),
    FedDyn(),
    FedMIC(),
    FedPer(),
    FedProx(),
    FedSGD(),
    FedYogi(),
    Scaffold(),
]
SERVER_STATES: list[ServerStateTrainer] = [Scaffold()]
OWN_MODELS: list[OwnModelTrainer] = [Ditto()]
PRIVATIZERS: list[Privatizer] = [Gaussian(), NoPrivacy(), Skellam()]
AGGREGATORS: list[Aggregator] = [Additive(), Plain(), SecAgg()]
DEPLOYMENT_ENGINES: list[DeploymentEngine] = [Flower()]
ENGINES: list[Engine] = [Flower(), Inline(), Ray()]
OBSERVERS: list[Observer] = [Events(), MLflow(), Progress(), TensorBoard()]
