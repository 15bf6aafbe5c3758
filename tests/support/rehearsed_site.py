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
from cohortium.deployment.rehearsal import write_rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_server import SiteServer
from cohortium.deployment.trail_check import CheckedTrail, check_trail
from cohortium.deployment.trail_entries import AnyEntry, decode_entry
from cohortium.messages.codec import Message, decode_either, encode
from cohortium.messages.deployment import Acceptance, IdentifyReply, Invitation
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

SECRET_WORDS = (
    "data.npz",
    "site.toml",
    "/tmp",
    "ledger.sqlite",
    "identity.pem",
    "site-0",
    "site-1",
    "test images\0",
)
"""Words of a site's own files, which no reply may hold."""


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
        if path.is_file():
            (place / path.name).write_bytes(path.read_bytes())
            (place / path.name).chmod(0o600)
    edit(place, policy=policy)
    return place


def edit(folder: Path, **changes: Any) -> None:
    """Change tables of a site file.  None removes one."""
    path = folder / "site.toml"
    file = toml.read(path, what="the site file")
    for name, values in changes.items():
        if values is None:
            del file[name]
        else:
            file[name] = {**file.get(name, {}), **values}
    path.write_text(tomli_w.dumps(file))


def changed(invitation: Invitation, **changes: Any) -> Invitation:
    """The invitation of another session, to a study with other tables.  None removes one."""
    shared = toml.loads(invitation.study, where="test")
    for name, values in changes.items():
        if values is None:
            del shared[name]
        else:
            shared[name] = (
                {**shared.get(name, {}), **values} if isinstance(values, dict) else values
            )
    return again(invitation, study=tomli_w.dumps(shared))


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
    """A site's server on its own files.

    Attributes:
        folder: Folder of the site's files.
        now: The time of the server's clock, in seconds.
    """

    folder: Path
    now: float = 0.0
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
        self.server = SiteServer(config, self.journal, clock=lambda: self.now)

    def stop(self) -> None:
        self.journal.close()
        self.server.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def send(self, message: Message | bytes, own: bytes = b"") -> Any:
        data = message if isinstance(message, bytes) else encode(message)
        reply = self.server.answer(data, own)
        for word in (*SECRET_WORDS, str(self.folder)):
            assert word.encode() not in reply
        return decode_either(reply, Acceptance, Refusal, Reply, IdentifyReply)

    def charges(self) -> dict[str, int]:
        """Number of charged attempts by name of data."""
        config = self.config
        with config.account.ledger.read_transaction() as book:
            return {name: sum(book.charge_counts(name).values()) for name in config.accounts}

    def charged(self) -> int:
        """Number of attempts that are charged to the training images."""
        return self.charges()[self.config.dataset_id]

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
