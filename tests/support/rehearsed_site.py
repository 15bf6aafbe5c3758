"""A site of a rehearsed deployment, and its study's coordinator."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import tomli_w
from attrs import define, evolve, field

from cohortium import Federation
from cohortium.deployment.admission import NoEngine
from cohortium.deployment.audit_trail import CheckedTrail, check_trail
from cohortium.deployment.rehearsal import write_rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_server import SiteServer
from cohortium.deployment.trail_entries import AnyEntry, decode_entry
from cohortium.messages.codec import Message, decode_either, encode
from cohortium.messages.deployment import Acceptance, Invitation
from cohortium.messages.run import Refusal, Reply
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.run_config import RunConfig
from cohortium.runs.invite import build_invitation
from cohortium.storage.append_log import FileJournal
from cohortium.storage.hash_chain import links
from cohortium.study import study_file, toml
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.federations import tiny_federation

SITES = 2


def rehearse(folder: Path, **changes: Any) -> Invitation:
    """Write the deployment of a small study, and return its invitation."""
    parts: dict[str, Any] = {
        "privatizer": Gaussian(epsilon=6.0, delta=1e-3, unit="site"),
        "trainer": FedSGD(sampling_rate=1.0),
        "sites": SITES,
        "rounds": 2,
    }
    write_rehearsal(tiny_federation(**(parts | changes)).prepare(), folder, engine="inline")
    return build_invitation(Federation.read(folder / "study.toml").prepare())


def copy_site(rehearsed: Path, place: Path, **policy: Any) -> Path:
    """Copy the files of site 1, with changes to its policy."""
    place.mkdir()
    for path in (rehearsed / "site-1").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
        (place / path.name).chmod(0o600)
    file = toml.read(place / "site.toml", what="the site file")
    file["policy"] |= policy
    (place / "site.toml").write_text(tomli_w.dumps(file))
    return place


def again(invitation: Invitation, **changes: Any) -> Invitation:
    """The invitation to another run, perhaps with another field."""
    fields = {name: getattr(invitation, name) for name in ("study", "directory", "versions")}
    return Invitation(**{"session": os.urandom(16), **fields, **changes})


@functools.cache
def run_config_of(study: str) -> RunConfig:
    """The configuration of a run of a study."""
    shared = toml.loads(study, where="test")
    return study_file.build(shared, engine=NoEngine(), into=Federation).prepare().run_config


def coordinator_of(invitation: Invitation) -> Coordinator:
    """The other side of a run."""
    return Coordinator(evolve(run_config_of(invitation.study), session=invitation.session))


@define(eq=False)
class RehearsedSite:
    """A site's server on its own files."""

    folder: Path
    server: SiteServer = field(init=False)
    journal: FileJournal = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start()

    @property
    def config(self) -> SiteConfig:
        return SiteConfig.read(self.folder / "site.toml")

    def start(self) -> None:
        config = self.config
        self.journal = config.open_journal()
        self.server = SiteServer(config, self.journal)

    def stop(self) -> None:
        self.journal.close()
        self.server.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def send(self, message: Message | bytes, own: bytes = b"") -> Any:
        data = message if isinstance(message, bytes) else encode(message)
        return decode_either(self.server.answer(data, own), Acceptance, Refusal, Reply)

    def charged(self) -> int:
        """Number of charged attempts."""
        config = self.config
        with config.account.ledger.read_transaction() as book:
            return sum(book.charge_counts(config.dataset_id).values())

    def trail(self) -> list[AnyEntry]:
        """The entries of the trail, which is checked first."""
        path = self.folder / "audit.jsonl"
        key = self.config.key
        check_trail(path, () if key is None else (key.public,))
        with path.open("rb") as file:
            return [decode_entry(link) for link in links(file)]

    def events(self) -> list[str]:
        """The kinds of the trail's entries."""
        return [str(entry.__struct_config__.tag) for entry in self.trail()]

    def check(self) -> CheckedTrail:
        """The outcome of a check by the site's own key."""
        key = self.config.key
        assert key is not None
        return check_trail(self.folder / "audit.jsonl", (key.public,))
