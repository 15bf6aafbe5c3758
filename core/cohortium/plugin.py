"""The API for plugin authors.

A plugin starts with `from cohortium.plugin import Model, Offer, hookimpl`.  Everything that a
plugin needs is here, and nothing else is.
"""

from __future__ import annotations

from cohortium import parameters
from cohortium.catalog.networks import build_network
from cohortium.catalog.tasks import make_task
from cohortium.clipping.batch_mixing import (
    find_batch_mixing_layers,
    require_no_batch_mixing,
    require_per_example_gradients,
)
from cohortium.clipping.clipped_sum import clipped_sum, mean_gradient
from cohortium.crypto.randomness import KeyStream, Randomness, Seeds
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.data.build import build_splits
from cohortium.data.csv_table import Delimiter
from cohortium.data.estimates import (
    Estimate,
    Ratio,
    area_rows,
    areas,
    mean_of_ratios,
    mean_ratio,
    share_ratio,
)
from cohortium.data.examples import DataSpec, Examples, valid_intensity_range
from cohortium.data.file_reader import FileImage, FileReader, MaskFormat
from cohortium.data.groups import GroupColumn
from cohortium.data.image_array import read_image_array, read_mask_array
from cohortium.data.image_file import (
    IMAGE_SUFFIXES,
    ImageFileOptions,
    decode_image,
    decode_mask,
    read_image,
    resize_image,
)
from cohortium.data.intensity import to_unit_range
from cohortium.data.labels import valid_names
from cohortium.data.library_errors import replace_library_errors
from cohortium.data.location import data_dir, find_data, first_existing, is_system_file
from cohortium.data.multiclass import Multiclass
from cohortium.data.npz import read_npz_splits
from cohortium.data.pixels import Layout
from cohortium.data.pseudonyms import pseudonyms, read_patient_key
from cohortium.data.readable_files import read_readable_images
from cohortium.data.resize import Resize
from cohortium.data.scores import (
    CalibrationBin,
    ClassScores,
    RocCurve,
    Scores,
    mean_of,
    metric_name,
    roc_auc,
    roc_curve,
)
from cohortium.data.splits import Splits
from cohortium.data.survey import DataSurvey
from cohortium.data.table import Table, read_table
from cohortium.data.table_dataset import FileTable
from cohortium.data.table_examples import ListedExample, ListedFormat
from cohortium.data.table_files import listed_files
from cohortium.data.table_labels import class_labels, finding_labels
from cohortium.data.task import Task
from cohortium.deployment.study_lead import resume_deployed_study, run_deployed_study
from cohortium.deployment.unix_socket import call_site
from cohortium.errors import (
    CohortiumError,
    DataError,
    MessageError,
    NetworkError,
    PluginError,
    PrivacyError,
    RefusalCode,
    RefusalError,
    RequestError,
    RunError,
    StudyError,
    TooFewSitesError,
)
from cohortium.learning.augmented_loss import (
    CLASS_WEIGHTS,
    LOGIT_ADJUSTMENT,
    MAX_COPIES,
    MIXUP_ALPHA,
    Augmentation,
    AugmentedLoss,
    AugmentedTraining,
)
from cohortium.learning.batch_sampling import (
    poisson_batches,
    poisson_patient_batches,
    sample_batches,
    shuffled_batches,
)
from cohortium.learning.heads import linear_head, whitened_linear_head
from cohortium.learning.image_axes import require_two_axes
from cohortium.learning.image_parts import part_shares
from cohortium.learning.local_training import LocalTraining, local_workload
from cohortium.learning.optimizers import (
    RATE,
    Schedule,
    attach_schedule,
    attach_weight_averaging,
    check_optimizer,
    default_momentum,
    make_optimizer,
    schedule_factor,
    valid_options,
)
from cohortium.learning.pretraining import pretrain
from cohortium.learning.server_step import ServerStep
from cohortium.learning.statistics_rounds import (
    attach_statistics_rounds,
    is_statistics_parameter,
    mark_statistics_parameters,
    reject_statistics_rounds,
    require_label_rounds,
    statistics_losses,
)
from cohortium.learning.whitening import (
    FeatureWhitening,
    PublicWhitening,
    as_channels,
    require_public_images,
    scale_to_norm,
)
from cohortium.messages.codec import Message, decode, decode_either, encode
from cohortium.messages.deployment import IdentifyReply, IdentifyRequest
from cohortium.privacy import accounting
from cohortium.privacy.guarantee import Adjacency, Guarantee, ProtectedAgainst, Unit
from cohortium.ring.ring import FixedPoint, Ring, RingBlock, RingSum, RingVector, Words
from cohortium.roles.events import (
    EVENT_NAMES,
    AttemptFailed,
    Event,
    RoundCompleted,
    RunCompleted,
    RunFailed,
    RunStarted,
    SiteFailed,
    SiteReplied,
    SiteScored,
    SitesEvaluated,
    StageStats,
)
from cohortium.roles.hooks import API, Offer, hookimpl
from cohortium.roles.protocols import (
    Aggregator,
    Dataset,
    DeploymentEngine,
    Engine,
    Model,
    Observer,
    OwnModelTrainer,
    Partitioner,
    Privatizer,
    ServerStateTrainer,
    Trainer,
)
from cohortium.roles.sessions import (
    CoordinatorSession,
    EngineSession,
    PrivacyPlan,
    RoundPlan,
    SiteFactory,
    SiteHandle,
    SitePrivatizer,
    SiteSession,
)
from cohortium.roles.values import (
    Adversary,
    AggregationConfig,
    AggregationGuarantee,
    ExampleIndices,
    FederationSpec,
    LocalResult,
    LocalTask,
    PlanState,
    ReleasedMean,
    SiteContext,
    SiteId,
    SiteRequest,
    StageRequests,
    Workload,
)
from cohortium.storage.append_log import FileJournal, Journal, MemoryJournal
from cohortium.storage.atomic import atomic_write
from cohortium.text import did_you_mean, escape_control_characters, quote_key
from cohortium.third_party import describe_fault

__all__ = [
    "API",
    "CLASS_WEIGHTS",
    "EVENT_NAMES",
    "IMAGE_SUFFIXES",
    "LOGIT_ADJUSTMENT",
    "MAX_COPIES",
    "MIXUP_ALPHA",
    "RATE",
    "Adjacency",
    "Adversary",
    "AggregationConfig",
    "AggregationGuarantee",
    "Aggregator",
    "AttemptFailed",
    "Augmentation",
    "AugmentedLoss",
    "AugmentedTraining",
    "CalibrationBin",
    "ClassScores",
    "CohortiumError",
    "CoordinatorSession",
    "DataError",
    "DataSpec",
    "DataSurvey",
    "Dataset",
    "Delimiter",
    "DeploymentEngine",
    "Engine",
    "EngineSession",
    "Estimate",
    "Event",
    "ExampleIndices",
    "Examples",
    "FeatureWhitening",
    "FederationSpec",
    "FileImage",
    "FileJournal",
    "FileReader",
    "FileTable",
    "FixedPoint",
    "GroupColumn",
    "Guarantee",
    "IdentifyReply",
    "IdentifyRequest",
    "ImageFileOptions",
    "Journal",
    "KeyDirectory",
    "KeyStream",
    "Layout",
    "ListedExample",
    "ListedFormat",
    "LocalResult",
    "LocalTask",
    "LocalTraining",
    "MaskFormat",
    "MemoryJournal",
    "Message",
    "MessageError",
    "Model",
    "Multiclass",
    "NetworkError",
    "Observer",
    "Offer",
    "OwnModelTrainer",
    "Partitioner",
    "PlanState",
    "PluginError",
    "PrivacyError",
    "PrivacyPlan",
    "Privatizer",
    "ProtectedAgainst",
    "PublicWhitening",
    "Randomness",
    "Ratio",
    "RefusalCode",
    "RefusalError",
    "ReleasedMean",
    "RequestError",
    "Resize",
    "Ring",
    "RingBlock",
    "RingSum",
    "RingVector",
    "RocCurve",
    "RoundCompleted",
    "RoundPlan",
    "RunCompleted",
    "RunError",
    "RunFailed",
    "RunStarted",
    "Schedule",
    "Scores",
    "Seeds",
    "ServerStateTrainer",
    "ServerStep",
    "SigningKey",
    "SiteContext",
    "SiteFactory",
    "SiteFailed",
    "SiteHandle",
    "SiteId",
    "SitePrivatizer",
    "SiteReplied",
    "SiteRequest",
    "SiteScored",
    "SiteSession",
    "SitesEvaluated",
    "Splits",
    "StageRequests",
    "StageStats",
    "StudyError",
    "Table",
    "Task",
    "TooFewSitesError",
    "Trainer",
    "Unit",
    "Words",
    "Workload",
    "accounting",
    "area_rows",
    "areas",
    "as_channels",
    "atomic_write",
    "attach_schedule",
    "attach_statistics_rounds",
    "attach_weight_averaging",
    "build_network",
    "build_splits",
    "call_site",
    "check_optimizer",
    "class_labels",
    "clipped_sum",
    "data_dir",
    "decode",
    "decode_either",
    "decode_image",
    "decode_mask",
    "default_momentum",
    "describe_fault",
    "did_you_mean",
    "encode",
    "escape_control_characters",
    "find_batch_mixing_layers",
    "find_data",
    "finding_labels",
    "first_existing",
    "hookimpl",
    "is_statistics_parameter",
    "is_system_file",
    "linear_head",
    "listed_files",
    "local_workload",
    "make_optimizer",
    "make_task",
    "mark_statistics_parameters",
    "mean_gradient",
    "mean_of",
    "mean_of_ratios",
    "mean_ratio",
    "metric_name",
    "parameters",
    "part_shares",
    "poisson_batches",
    "poisson_patient_batches",
    "pretrain",
    "pseudonyms",
    "quote_key",
    "read_image",
    "read_image_array",
    "read_mask_array",
    "read_npz_splits",
    "read_patient_key",
    "read_readable_images",
    "read_table",
    "reject_statistics_rounds",
    "replace_library_errors",
    "require_label_rounds",
    "require_no_batch_mixing",
    "require_per_example_gradients",
    "require_public_images",
    "require_two_axes",
    "resize_image",
    "resume_deployed_study",
    "roc_auc",
    "roc_curve",
    "run_deployed_study",
    "sample_batches",
    "scale_to_norm",
    "schedule_factor",
    "share_ratio",
    "shuffled_batches",
    "statistics_losses",
    "to_unit_range",
    "valid_intensity_range",
    "valid_names",
    "valid_options",
    "whitened_linear_head",
]
