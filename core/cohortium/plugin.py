"""The one door for plugin authors: everything a plugin needs, and nothing it must not touch.

`from cohortium.plugin import Model, Offer, hookimpl` is how a plugin begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium import parameters
from cohortium.catalog.networks import build_network
from cohortium.clipping.batch_mixing import (
    cross_example_layers,
    require_per_example,
    require_separable,
)
from cohortium.clipping.clipped_sum import clipped_sum, mean_gradient
from cohortium.crypto.randomness import Randomness, Seeds, Stream
from cohortium.crypto.signing import Directory, Identity
from cohortium.data.examples import DataSpec, Examples, Splits
from cohortium.data.metrics import Bin, ClassScores, Scores
from cohortium.data.npz import data_folder, find_file, read_splits
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
from cohortium.learning.batch_sampling import poisson, poisson_patients, sampled_units, shuffled
from cohortium.learning.heads import linear_head, whitened_head
from cohortium.learning.pretraining import pretrain
from cohortium.learning.statistics_rounds import (
    in_prelude,
    is_in_prelude,
    prelude_losses,
    refuse_prelude,
    with_prelude,
)
from cohortium.learning.training import (
    CLASS_WEIGHTS,
    MOST_COPIES,
    RATE,
    Augmentation,
    Objective,
    Schedule,
    factor,
    local_work,
    make_optimizer,
    valid_options,
    with_average,
    with_schedule,
)
from cohortium.learning.whitening import Reference, public_images
from cohortium.messages.codec import Message, decode, decode_either, encode
from cohortium.messages.deployment import Present, RollCall
from cohortium.privacy import accounting
from cohortium.privacy.guarantee import Adjacency, Against, Guarantee, Unit
from cohortium.ring.ring import FixedPoint, Piece, Ring, RingSum, RingVector, Words
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
    Exchange,
    OpenSite,
    PrivacyPlan,
    SitePrivacy,
    SiteRecipe,
    SiteSession,
)
from cohortium.roles.values import (
    Adversary,
    Ask,
    Cohort,
    Index,
    Member,
    Requests,
    Secrecy,
    SiteId,
    SumSetting,
    Task,
    Trained,
    Work,
)
from cohortium.storage.append_log import FileJournal, Journal, MemoryJournal
from cohortium.storage.atomic import write_whole
from cohortium.text import printable
from cohortium.third_party import fault_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cohortium.federation import Federation
    from cohortium.runs.result import Result


def ask_site(
    path: Path, common: bytes, own: bytes, *, user: int | None = None, patience: float = 0.0
) -> bytes:
    """The reply of a hospital's site process on this machine.

    Args:
        path: The process' socket.
        common: The part that all sites are sent.
        own: The part for this one alone.
        user: The number of the user that it runs as; None is this process's own.
        patience: Seconds for which a site that is not there is tried again with the same bytes.

    Raises:
        RunError: It is not there, or is not who it should be.
        MessageError: What it says is no frame.
    """
    from cohortium.deployment import unix_socket

    return unix_socket.ask(path, common, own, user=user, patience=patience)


def lead(
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

    return study_lead.lead(path, engine, out=out, muster_only=muster_only)


__all__ = [
    "API",
    "CLASS_WEIGHTS",
    "EVENT_NAMES",
    "MOST_COPIES",
    "RATE",
    "Adjacency",
    "Adversary",
    "Against",
    "Aggregator",
    "Ask",
    "Augmentation",
    "Bin",
    "ClassScores",
    "Cohort",
    "CohortiumError",
    "CoordinatorSession",
    "DataError",
    "DataSpec",
    "Dataset",
    "Directory",
    "Engine",
    "Event",
    "Examples",
    "Exchange",
    "FileJournal",
    "FixedPoint",
    "Guarantee",
    "Identity",
    "Index",
    "Journal",
    "Layout",
    "Member",
    "MemoryJournal",
    "Message",
    "MessageError",
    "Model",
    "NetworkError",
    "Objective",
    "Observer",
    "Offer",
    "OpenSite",
    "Partitioner",
    "Phase",
    "Piece",
    "PluginError",
    "Present",
    "PrivacyError",
    "PrivacyPlan",
    "Privatizer",
    "Randomness",
    "Reference",
    "RefusalError",
    "Requests",
    "Ring",
    "RingSum",
    "RingVector",
    "RollCall",
    "RoundFailed",
    "RoundFinished",
    "RunError",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "Schedule",
    "Scores",
    "Secrecy",
    "Seeds",
    "SiteAnswered",
    "SiteFailed",
    "SiteId",
    "SitePrivacy",
    "SiteRecipe",
    "SiteSession",
    "Splits",
    "Stream",
    "StudyError",
    "SumSetting",
    "Task",
    "TooFewSitesError",
    "Trained",
    "Trainer",
    "Unit",
    "Words",
    "Work",
    "accounting",
    "ask_site",
    "build_network",
    "clipped_sum",
    "cross_example_layers",
    "data_folder",
    "decode",
    "decode_either",
    "encode",
    "factor",
    "fault_text",
    "find_file",
    "hookimpl",
    "in_prelude",
    "is_in_prelude",
    "lead",
    "linear_head",
    "local_work",
    "make_optimizer",
    "mean_gradient",
    "parameters",
    "poisson",
    "poisson_patients",
    "prelude_losses",
    "pretrain",
    "printable",
    "public_images",
    "read_splits",
    "refuse_prelude",
    "require_per_example",
    "require_separable",
    "sampled_units",
    "shuffled",
    "valid_options",
    "whitened_head",
    "with_average",
    "with_prelude",
    "with_schedule",
    "write_whole",
]
