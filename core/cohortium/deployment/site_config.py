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
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.data.examples import MAX_EXAMPLES
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import StudyError
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
from cohortium.text import did_you_mean, is_printable, quote_key, truncate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrs import Attribute

    from cohortium.data.examples import Examples
    from cohortium.rounds.run_config import RunConfig
    from cohortium.storage.append_log import Journal

TABLES = ("site", "dataset", "policy")
"""The tables of a site file."""


def _can_be_shown(_: object, attribute: Attribute[str], value: str) -> None:
    if not is_printable(value):
        raise ValueError(
            f"'{attribute.name}' has characters that cannot be shown: {truncate(value)}"
        )


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
        socket: File of the socket that carries messages to it, from this machine alone.
        client_user: The operating system's user who may connect, in addition to the site's own.
            Empty for none.
        group: Group whose members may connect to the socket. The client user must be a member.
            Empty for the client user's own group.
        declared_examples: Number of training examples that it declares. It is public, and every
            party that invites the site receives it. 0 declares none.
        dataset: Its own images.
        policy: Its floors.
        folder: Folder of its file.
    """

    id: int = field(validator=[ge(0), lt(MAX_SITES)])
    dataset_id: str = field(validator=and_(min_len(1), _can_be_shown))
    ledger: str = "ledger.sqlite"
    journal: str = "journal"
    state_dir: str = "states"
    signing_key: str = ""
    key_directory: str = ""
    runs_dir: str = "runs"
    features: str = ""
    max_features_gib: int = field(default=MAX_FOLDER_GIB, validator=[ge(1), le(1 << 20)])
    socket: str = "site.sock"
    client_user: str = ""
    group: str = ""
    declared_examples: int = field(default=0, validator=[ge(0), le(MAX_EXAMPLES)])
    dataset: Dataset
    policy: SitePolicy
    folder: Path

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
            if name not in TABLES:
                raise StudyError(
                    f"{where}: a site file has no [{quote_key(name)}]; {did_you_mean(name, TABLES)}"
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
        """Ledger and budget of the site's data."""
        return Account(Ledger(self.folder / self.ledger), self.dataset_id, self.policy.budget)

    @property
    def feature_folder(self) -> FeatureFolder | None:
        """Folder that keeps features between runs, or None."""
        if not self.features:
            return None
        return FeatureFolder(self.folder / self.features, self.max_features_gib << 30)

    def open_journal(self) -> FileJournal:
        """Open the site's journal, which serves every run of this process.

        The caller must close it.

        Raises:
            RunError: It is damaged, in use, or cannot be opened.
        """
        return FileJournal(self.folder / self.journal)

    @property
    def key(self) -> SigningKey | None:
        """The site's signing key, or None.

        Raises:
            IdentityError: It is missing, damaged, or others may read it.
        """
        return SigningKey.read(self.folder / self.signing_key) if self.signing_key else None

    def open(
        self, run_config: RunConfig, journal: Journal, examples: Examples | None = None
    ) -> Site:
        """Take part in a run, with `examples` or the site's data set.

        Raises:
            RefusalError: The run is below a floor, or does not fit the budget. Nothing is spent.
            CohortiumError: The site's own files are unusable.
        """
        return Site(
            run_config,
            self.id,
            self.dataset.load().train if examples is None else examples,
            SharedModel(run_config),
            identity=self.key,
            journal=journal,
            policy=self.policy,
            account=self.account,
            store=TrainerStateFile(
                self.folder / self.state_dir / _name(run_config.session), run_config.session
            ),
            features=self.feature_folder,
        )


def _name(session: bytes) -> str:
    return f"{session.hex()}.safetensors"


def _table(tables: Mapping[str, Any], name: str, *, where: str) -> Mapping[str, Any]:
    table = tables.get(name)
    if not isinstance(table, dict):
        raise StudyError(f"{where}: a site file needs a table [{name}].")
    return table
