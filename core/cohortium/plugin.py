"""The one door for plugin authors: everything a plugin needs, and nothing it must not touch.

`from cohortium.plugin import Model, Offer, hookimpl` is how a plugin begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium import parameters
from cohortium.catalog.networks import build_network
from cohortium.clipping.batch_mixing import (
    find_batch_mixing_layers,
    require_no_batch_mixing,
    require_per_example_gradients,
)
from cohortium.clipping.clipped_sum import clipped_sum, mean_gradient
from cohortium.crypto.randomness import Randomness, Seeds, KeyStream
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.data.examples import DataSpec, Examples, Splits
from cohortium.data.metrics import CalibrationBin, ClassScores, Scores
from cohortium.data.npz import data_dir, first_existing, read_npz_splits
from cohortium.data.pixels import Layout
from cohortium.errors import (
    CohortiumError,
    DataError,
    MessageError,
    NetworkError,
    PluginError,
    PrivacyError,
    RefusalError,
    RunError,
    StudyError,
    TooFewSitesError,
)
from cohortium.learning.batch_sampling import poisson_batches, poisson_patient_batches, sample_batches, shuffled_batches
from cohortium.learning.heads import linear_head, whitened_linear_head
from cohortium.learning.pretraining import pretrain
from cohortium.learning.statistics_rounds import (
    mark_statistics_parameters,
    is_statistics_parameter,
    statistics_losses,
    reject_statistics_rounds,
    attach_statistics_rounds,
)
from cohortium.learning.training import (
    CLASS_WEIGHTS,
    MOST_COPIES,
    RATE,
    Augmentation,
    AugmentedLoss,
    Schedule,
    schedule_factor,
    local_workload,
    make_optimizer,
    valid_options,
    attach_weight_averaging,
    attach_schedule,
)
from cohortium.learning.whitening import FeatureWhitening, as_channels
from cohortium.messages.codec import Message, decode, decode_either, encode
from cohortium.messages.deployment import IdentifyReply, IdentifyRequest
from cohortium.privacy import accounting
from cohortium.privacy.guarantee import Adjacency, ProtectedAgainst, Guarantee, Unit
from cohortium.ring.ring import FixedPoint, RingBlock, Ring, RingSum, RingVector, Words
from cohortium.roles.events import (
    EVENT_NAMES,
    Event,
    Phase,
    RoundFailed,
    RoundFinished,
    RunFailed,
    RunFinished,
    RunStarted,
    SiteAnswered,
    SiteFailed,
)
from cohortium.roles.hooks import API, Offer, hookimpl
from cohortium.roles.protocols import (
    Aggregator,
    Dataset,
    Engine,
    Model,
    Observer,
    Partitioner,
    Privatizer,
    Trainer,
)
from cohortium.roles.sessions import (
    CoordinatorSession,
    EngineSession,
    SiteHandle,
    PrivacyPlan,
    SitePrivatizer,
    SiteFactory,
    SiteSession,
)
from cohortium.roles.values import (
    Adversary,
    SiteRequest,
    FederationSpec,
    ExampleIndices,
    SiteContext,
    StageRequests,
    AggregationGuarantee,
    SiteId,
    AggregationConfig,
    LocalTask,
    LocalResult,
    Workload,
)
from cohortium.storage.append_log import FileJournal, Journal, MemoryJournal
from cohortium.storage.atomic import atomic_write
from cohortium.text import printable
from cohortium.third_party import fault_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cohortium.federation import Federation
    from cohortium.runs.result import Result


def call_site(
    path: Path, broadcast: bytes, own: bytes, *, user: int | None = None, patience: float = 0.0
) -> bytes:
    """The reply of a hospital's site process on this machine.

    Args:
        path: The process' socket.
        broadcast: The part that all sites are sent.
        own: The part for this one alone.
        user: The number of the user that it runs as; None is this process's own.
        patience: Seconds for which a site that is not there is tried again with the same bytes.

    Raises:
        RunError: It is not there, or is not who it should be.
        MessageError: What it says is no frame.
    """
    from cohortium.deployment import unix_socket

    return unix_socket.ask(path, broadcast, own, user=user, patience=patience)


def run_deployed_study(
    path: Path, engine: Callable[[Federation], Engine], *, out: Path, muster_only: bool = False
) -> Result | tuple[str, ...]:
    """Run a deployment's study over an engine that is at work already.

    Args:
        path: The study file.
        engine: Makes, of the study, that engine.
        out: A new or empty folder for the run's record.
        muster_only: Only ask the hospitals whether they would take part.

    Returns:
        The result; of a muster its warnings.

    Raises:
        CohortiumError: The request was wrong, or a hospital does not take part, or the run failed.
    """
    from cohortium.deployment import study_lead

    return study_lead.run_deployed_study(path, engine, out=out, muster_only=muster_only)


__all__ = [
    "API",
    "CLASS_WEIGHTS",
    "EVENT_NAMES",
    "MOST_COPIES",
    "RATE",
    "Adjacency",
    "Adversary",
    "ProtectedAgainst",
    "Aggregator",
    "SiteRequest",
    "Augmentation",
    "CalibrationBin",
    "ClassScores",
    "FederationSpec",
    "CohortiumError",
    "CoordinatorSession",
    "DataError",
    "DataSpec",
    "Dataset",
    "KeyDirectory",
    "Engine",
    "Event",
    "Examples",
    "EngineSession",
    "FileJournal",
    "FixedPoint",
    "Guarantee",
    "SigningKey",
    "ExampleIndices",
    "Journal",
    "Layout",
    "SiteContext",
    "MemoryJournal",
    "Message",
    "MessageError",
    "Model",
    "NetworkError",
    "AugmentedLoss",
    "Observer",
    "Offer",
    "SiteHandle",
    "Partitioner",
    "Phase",
    "RingBlock",
    "PluginError",
    "IdentifyReply",
    "PrivacyError",
    "PrivacyPlan",
    "Privatizer",
    "Randomness",
    "FeatureWhitening",
    "RefusalError",
    "StageRequests",
    "Ring",
    "RingSum",
    "RingVector",
    "IdentifyRequest",
    "RoundFailed",
    "RoundFinished",
    "RunError",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "Schedule",
    "Scores",
    "AggregationGuarantee",
    "Seeds",
    "SiteAnswered",
    "SiteFailed",
    "SiteId",
    "SitePrivatizer",
    "SiteFactory",
    "SiteSession",
    "Splits",
    "KeyStream",
    "StudyError",
    "AggregationConfig",
    "LocalTask",
    "TooFewSitesError",
    "LocalResult",
    "Trainer",
    "Unit",
    "Words",
    "Workload",
    "accounting",
    "call_site",
    "build_network",
    "clipped_sum",
    "find_batch_mixing_layers",
    "data_dir",
    "decode",
    "decode_either",
    "encode",
    "schedule_factor",
    "fault_text",
    "first_existing",
    "hookimpl",
    "mark_statistics_parameters",
    "is_statistics_parameter",
    "run_deployed_study",
    "linear_head",
    "local_workload",
    "make_optimizer",
    "mean_gradient",
    "parameters",
    "poisson_batches",
    "poisson_patient_batches",
    "statistics_losses",
    "pretrain",
    "printable",
    "as_channels",
    "read_npz_splits",
    "reject_statistics_rounds",
    "require_no_batch_mixing",
    "require_per_example_gradients",
    "sample_batches",
    "shuffled_batches",
    "valid_options",
    "whitened_linear_head",
    "attach_weight_averaging",
    "attach_statistics_rounds",
    "attach_schedule",
    "atomic_write",
]
