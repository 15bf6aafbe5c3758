"""One site as its `site.toml` describes it.

The file names the site's data, keys, ledger and policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import and_, ge, le, lt, min_len

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.catalog.part_results import load_splits
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.data.examples import MAX_EXAMPLES
from cohortium.deployment.approvals import ApprovalStore
from cohortium.deployment.audit_trail import AuditTrail
from cohortium.deployment.own_images import OwnImages, SiteTestImages, can_be_shown
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import IdentityError, StudyError
from cohortium.learning.kept_features import MAX_FOLDER_GIB, FeatureFolder
from cohortium.ledger.account import Account
from cohortium.ledger.ledger import Ledger
from cohortium.roles.protocols import Dataset
from cohortium.rounds.shared_model import SharedModel
from cohortium.rounds.site import Site
from cohortium.storage.append_log import FileJournal
from cohortium.storage.trainer_state import TrainerStateFile
from cohortium.study import toml
from cohortium.study.study import MAX_SITES
from cohortium.text import did_you_mean, quote_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.data.examples import Examples
    from cohortium.deployment.own_images import Use
    from cohortium.rounds.run_config import RunConfig
    from cohortium.storage.append_log import Journal

TABLES = ("site", "dataset", "policy")
"""The tables that every site file has."""

TEST = "test"
"""The table of a site file that names test images. It is optional."""


@frozen(kw_only=True)
class SiteConfig:
    """Configuration of a site, which no study can change.

    Paths are relative to the folder of the file. Files of the data set are looked up there first.

    Attributes:
        id: The site's number in the federation.
        dataset_id: The site's name for the data. The ledger charges every release from the data to
            this name. Images that share a person must not have two names.
        ledger: The ledger's file.
        journal: File of facts that the site's aggregation must not forget in a restart.
        state_dir: Folder of state that trainers keep at the site between rounds. Each run that
            keeps state has a file.
        signing_key: File of its signing key. Empty if no study asks for one.
        key_directory: File of the directory that it has pinned. Empty if no study asks for one.
        runs_dir: Folder of its records of the runs that it takes part in.
        features: Folder that keeps features of the images between runs. It needs the protection of
            the images. Empty to keep none.
        max_features_gib: Largest size of that folder, in GiB.
        evaluations_dir: Folder of its own exact scores of the models that it evaluated.
        trail: File of its trail: its decisions and answers, in lines that show alterations.
        approvals_dir: Folder of the studies that its staff have approved, or have to.
        socket: File of the socket that carries messages to it, from this machine alone.
        client_user: The operating system's user who may connect, in addition to the site's own.
            Empty for none.
        group: Group whose members may connect to the socket. The client user must be a member.
            Empty for the client user's own group.
        declared_examples: Number of training examples that it declares. It is public, and every
            party that invites the site receives it. 0 declares none.
        dataset: Its own images.
        test: Its own test images, on which it evaluates models, or None.
        policy: Its floors.
        folder: Folder of its file.
    """

    id: int = field(validator=[ge(0), lt(MAX_SITES)])
    dataset_id: str = field(validator=and_(min_len(1), can_be_shown))
    ledger: str = "ledger.sqlite"
    journal: str = "journal"
    state_dir: str = "states"
    signing_key: str = ""
    key_directory: str = ""
    runs_dir: str = "runs"
    features: str = ""
    max_features_gib: int = field(default=MAX_FOLDER_GIB, validator=[ge(1), le(1 << 20)])
    evaluations_dir: str = "evaluations"
    trail: str = "audit.jsonl"
    approvals_dir: str = "approvals"
    socket: str = "site.sock"
    client_user: str = ""
    group: str = ""
    declared_examples: int = field(default=0, validator=[ge(0), le(MAX_EXAMPLES)])
    dataset: Dataset
    test: SiteTestImages | None = None
    policy: SitePolicy
    folder: Path

    def __attrs_post_init__(self) -> None:
        """Refuse two names for data of which the policy protects all together."""
        is_whole = self.policy.unit == "site" and not self.policy.insecure_rehearsal
        if is_whole and self.test is not None and self.test.dataset_id != self.dataset_id:
            raise ValueError(
                "the policy's unit 'site' protects all images of the site together, so [test] "
                "needs the dataset_id of [site]"
            )

    @classmethod
    def read(cls, path: Path) -> SiteConfig:
        """Read the site that a site file describes.

        Raises:
            RequestError: The file cannot be read.
            StudyError: A key is unknown or missing, or a value does not fit.
            PluginError: Its data set is of no usable plugin.
            IdentityError: The directory that it pins is missing or damaged.
        """
        where, tables = str(path), toml.read(path, what="the site file")
        for name in tables:
            if name not in (known := (*TABLES, TEST)):
                raise StudyError(
                    f"{where}: a site file has no [{quote_key(name)}]; {did_you_mean(name, known)}"
                )
        site, dataset, policy = (_table(tables, name, where=where) for name in TABLES)
        folder, pinned = path.absolute().parent, site.get("key_directory")
        dataset = construction.resolve_paths(discover(), "dataset", dataset, folder)
        directory = (
            KeyDirectory.read(folder / pinned) if pinned and isinstance(pinned, str) else None
        )
        site_config: SiteConfig = construction.construct(
            cls,
            site,
            where=f"{where} [site]",
            what="the site",
            ready={
                "dataset": construction.build_part(discover(), "dataset", dataset, where=where),
                "test": _test_images(tables, folder, where=where),
                "policy": construction.construct(
                    SitePolicy,
                    policy,
                    where=f"{where} [policy]",
                    what="the policy",
                    ready={"directory": directory},
                ),
                "folder": folder,
            },
        )
        return site_config

    @property
    def account(self) -> Account:
        """Ledger and budget of the site's training images."""
        return self.account_of("train")

    @property
    def accounts(self) -> dict[str, Account]:
        """Account of each of the site's names for its data."""
        uses: tuple[Use, ...] = ("train",) if self.test is None else ("train", "test")
        return {account.data: account for account in map(self.account_of, uses)}

    def account_of(self, use: Use) -> Account:
        """Return ledger and budget of the images of a use.

        Each name of data has the whole budget of the policy, because no person has two.
        """
        name = self.dataset_id
        if use == "test":
            assert self.test is not None
            name = self.test.dataset_id
        return Account(Ledger(self.folder / self.ledger), name, self.policy.budget)

    def declared(self, use: Use) -> int:
        """Return the number of images of a use that the file declares."""
        if use == "train" or self.test is None:
            return self.declared_examples
        return self.test.declared_examples

    def load_images(self) -> OwnImages:
        """Load the site's images.

        Raises:
            DataError: They are missing or damaged, overlap (see `OwnImages.load`), or are fewer
                than the file declares.
        """
        images = OwnImages.load(self.dataset, self.test, self.dataset_id)
        images.require("examples", images.train, self.declared("train"))
        if images.test is not None:
            images.require("test images", images.test, self.declared("test"))
        return images

    def warnings(self, images: OwnImages) -> tuple[str, ...]:
        """Return warnings for the site's own staff about its loaded images."""
        if self.policy.unit != "patient" or images.are_patients_apart(self.test):
            return ()
        sentence = (
            "the patients of [test] and [dataset] are not compared, because their numbers may "
            "differ; see to it that no patient is in both, and set has_same_patient_numbers under "
            "[test] if equal numbers mean one patient."
        )
        return (sentence,)

    def require_own_key(self) -> None:
        """Refuse a signing key that is not the site's own in the pinned directory.

        Raises:
            IdentityError: The directory gives the site another key, or none. Or the key cannot be
                used.
        """
        directory, key = self.policy.directory, self.key
        if directory is None or key is None:
            return
        listed = directory.keys[self.id] if self.id < len(directory.keys) else None
        if listed == key.public:
            return
        told = "no key" if listed is None else f"the key {listed.hex()[:16]}…"
        raise IdentityError(
            f"the signing key of site {self.id} is {key.public.hex()[:16]}…, and the pinned "
            f"directory gives that site {told}; pin the directory that has its present key, or put "
            "the signing key back."
        )

    @property
    def feature_folder(self) -> FeatureFolder | None:
        """Folder that keeps features between runs, or None."""
        if not self.features:
            return None
        return FeatureFolder(self.folder / self.features, self.max_features_gib << 30)

    def state_file(self, session: bytes) -> Path:
        """Return the file of the trainer's state that the site keeps for a run."""
        return self.folder / self.state_dir / f"{session.hex()}.safetensors"

    def open_journal(self) -> FileJournal:
        """Open the site's journal, which serves every run of this process.

        The caller must close it.

        Raises:
            RunError: It is damaged, in use, or cannot be opened.
        """
        return FileJournal(self.folder / self.journal)

    def open_trail(self) -> AuditTrail:
        """Open the site's trail, to which several processes may write.

        The caller must close it.

        Raises:
            RunError: It was altered, or cannot be used.
            RefusalError: It cannot be written.
            IdentityError: The site's key cannot be used.
        """
        return AuditTrail(self.folder / self.trail, self.id, self.key)

    def approvals(self, trail: AuditTrail) -> ApprovalStore | None:
        """Return the studies that people decide on, or None if the policy demands no approval."""
        if not self.policy.approve:
            return None
        return ApprovalStore(self.folder / self.approvals_dir, trail)

    @property
    def key(self) -> SigningKey | None:
        """The site's signing key, or None.

        Raises:
            IdentityError: It is missing, damaged, or others may read it.
        """
        return SigningKey.read(self.folder / self.signing_key) if self.signing_key else None

    def open(
        self,
        run_config: RunConfig,
        journal: Journal,
        examples: Examples | None = None,
        *,
        use: Use = "train",
        fingerprint: bytes | None = None,
        study: str = "",
    ) -> Site:
        """Take part in a run, with `examples` or the site's data set.

        Args:
            run_config: The run configuration.
            journal: Journal of the site.
            examples: Images of the run. None loads the training images.
            use: Use of the images, which decides the charged account.
            fingerprint: SHA-256 of all data of that account. None takes that of the images.
            study: Digest of the run's study.

        Raises:
            RefusalError: The run is below a floor, or does not fit the budget. Or the site has
                trainer state of another study with this session. Nothing is spent.
            CohortiumError: The site's own files are unusable.
        """
        return Site(
            run_config,
            self.id,
            load_splits(self.dataset).train if examples is None else examples,
            SharedModel(run_config),
            identity=self.key,
            journal=journal,
            policy=self.policy,
            account=self.account_of(use),
            fingerprint=fingerprint,
            declared=self.declared(use),
            store=TrainerStateFile(self.state_file(run_config.session), run_config.session, study),
            features=self.feature_folder,
        )


def _test_images(tables: Mapping[str, Any], folder: Path, *, where: str) -> SiteTestImages | None:
    """Return the test images that a site file names, or None."""
    if TEST not in tables:
        return None
    table = dict(_table(tables, TEST, where=where))
    ready: dict[str, Any] = {"dataset": None}
    if "dataset" in table:
        described = _table(
            {f"{TEST}.dataset": table.pop("dataset")}, f"{TEST}.dataset", where=where
        )
        described = construction.resolve_paths(discover(), "dataset", described, folder)
        ready["dataset"] = construction.build_part(
            discover(), "dataset", described, where=f"{where} [{TEST}]"
        )
    found: SiteTestImages = construction.construct(
        SiteTestImages, table, where=f"{where} [{TEST}]", what="the test images", ready=ready
    )
    return found


def _table(tables: Mapping[str, Any], name: str, *, where: str) -> Mapping[str, Any]:
    table = tables.get(name)
    if not isinstance(table, dict):
        raise StudyError(f"{where}: a site file needs a table [{name}].")
    return table
