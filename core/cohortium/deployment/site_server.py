"""A site's server for identify requests, invitations, and its runs' requests.

It is a state machine, like a site: it takes bytes and returns bytes, and uses no socket and no
thread. The sender of a message is not trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import time
import traceback
from typing import TYPE_CHECKING

from cohortium.crypto.signing import KeyDirectory
from cohortium.deployment.active_runs import ActiveRun, ActiveRuns
from cohortium.deployment.admission import invited_study
from cohortium.deployment.log_throttle import Throttle
from cohortium.deployment.matching_images import load_matching, with_groups
from cohortium.deployment.own_scoring import keep_own_scores
from cohortium.deployment.participation import ParticipationStore
from cohortium.deployment.study_facts import StudyFacts
from cohortium.deployment.study_record import InvitedStudy
from cohortium.deployment.trail_comparison import missing_entries
from cohortium.errors import (
    BrokenNetworkError,
    CohortiumError,
    IdentityError,
    MessageError,
    NetworkError,
    PrivacyError,
    RefusalCode,
    RefusalError,
    StudyError,
)
from cohortium.learning.evaluation import torch_threads
from cohortium.messages import codec
from cohortium.messages.deployment import Acceptance, IdentifyReply, IdentifyRequest, Invitation
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.rounds.build_run_config import build_run_config
from cohortium.runs.invite import collect_versions, shared_digest, version_differences
from cohortium.study.toml import loads
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cohortium.deployment.own_images import Use
    from cohortium.deployment.participation import Participation
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.rounds.run_config import RunConfig
    from cohortium.storage.append_log import Journal
    from cohortium.study.study import Study

_LOG = logging.getLogger(__name__)

MAX_REASON_LENGTH = 1000
"""Characters of a refusal."""

HEAVY = ("torch", "torch._dynamo", "scipy.fft", "scipy.optimize", "scipy.special")
"""Packages that take a second or more to import. An invitation needs them before the policy
check."""


class SiteServer:
    """Server of one site, where every message from outside ends.

    Guarantees:
        `answer` returns bytes for any input: an encoded message. A refusal of a well-formed request
        names its attempt and stage, so the coordinator knows to which request it belongs.

        The server sends only a site's messages, replies to identify requests, acceptances, and
        refusals. A refusal quotes the study, or the one floor that the study misses. It never
        quotes a path, an error of the site's own files or of a network's code, or the whole policy.
        Those go only to the log of this module, as does every refusal.

        However many refusals a caller provokes, the log receives a bounded number of them a minute,
        and the number of the others. Text of other parties is escaped in it.

        The site takes part in a run only after `invite` and the policy's `admit` have accepted it.
        The site's data must have exactly the declared shape and classes.

        A run that measures test images has those of the site file, and is charged to their account.
        Training and test images of two accounts have no image in common, or no run is accepted.

        The site's exact scores of an evaluated model go to its own log and folder. They are
        computed after the reply is durable, never change it, and never leave.

        If the policy demands it, a person at the site has approved the study. Without an approval,
        or after its end, the site answers nothing of the run and releases nothing more. A release
        that was computed meanwhile does not leave, though it is charged.

        Each acceptance and each answer to a request is an entry of the trail before it leaves. An
        identify reply is one, too, or is counted by the next.

        A run has one setting. A second invitation with its session gets the first one's answer if
        its bytes are equal. Otherwise it is refused. Of the older runs that `MAX_STORED_RUNS`
        removes, the site keeps charges, journal and trainer state. A later study with the session
        of one neither repeats an attempt nor begins with that state.

        An answer to a request is durable before it is sent. The same request again gets the same
        bytes, also after a restart. Every other request of an interrupted attempt is refused, by
        the ledger, by the journal, or because its secrets are gone.

        At most `MAX_ACTIVE_RUNS` runs are active. A run is evicted only after `IDLE_TIMEOUT`
        seconds without a request, so one coordinator cannot evict another coordinator's active run.
    """

    def __init__(
        self,
        site_config: SiteConfig,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the site's own files.

        Raises:
            CohortiumError: They are unusable.
        """
        self._config, self._journal = site_config, journal
        self._log_refusal = Throttle(_LOG, "refusals", clock=clock)
        self._identity = site_config.key
        self._participations = ParticipationStore(site_config.folder / site_config.runs_dir)
        self._trail = site_config.open_trail()
        self._approvals = site_config.approvals(self._trail)
        self._active_runs = ActiveRuns(clock)
        self._asked, self._asked_stage = b"", (0, 0)

    def self_check(self) -> bool:
        """Check the site's own files before the first message.

        A warning tells if the ledger or the approvals are older than the trail, as after a backup
        was restored. The site starts all the same, because its staff may have lowered the budget.

        Returns:
            Whether the trail agrees with the site's other files.

        Raises:
            CohortiumError: A file is unusable, or the directory gives this site another key. The
                sentence is for the site's own staff.
        """
        self._config.require_own_key()
        images = self._config.load_images()
        for warning in self._config.warnings(images):
            _LOG.warning("%s", warning)
        with self._config.account.ledger.read_transaction():
            pass
        self._participations.require_usable()
        if self._approvals is not None:
            self._approvals.require_usable()
        agrees = True
        try:
            for sentence in missing_entries(self._config):
                agrees = False
                _LOG.warning("%s", sentence)
        except CohortiumError as error:  # of files that the site may have no use for
            _LOG.warning("the trail is not compared with the site's other files: %s", error)
        return agrees

    def record_start(self) -> None:
        """Record in the trail that the site serves from now on.

        Raises:
            RefusalError: The trail cannot be written.
        """
        self._trail.started()

    @staticmethod
    def warm_up() -> None:
        """Import the packages that the first invitation would otherwise wait for."""
        for name in HEAVY:
            importlib.import_module(name)

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """Return the reply to one message, with the guarantees of the class."""
        try:
            return self._answer(broadcast, own)
        except CohortiumError as error:
            return self._refuse(*self._reason(error))
        except Exception:  # noqa: BLE001 - a site outlives a fault of a plugin
            self._log_refusal(traceback.format_exc())
            return self._refuse(RefusalCode.INTERNAL_ERROR, "the site failed; its log says why.")

    def close(self) -> None:
        """Write the number of refusals that the log has not shown, and close the trail."""
        self._log_refusal.close()
        self._trail.close()

    def _answer(self, broadcast: bytes, own: bytes) -> bytes:
        self._asked, self._asked_stage = b"", (0, 0)
        message = codec.decode_either(broadcast, Request, Invitation, IdentifyRequest)
        if isinstance(message, IdentifyRequest):
            return self._identify(message)
        self._asked = message.session
        if isinstance(message, Invitation):
            return self._handle_invitation(message, broadcast)
        self._asked_stage = message.attempt, message.stage
        return self._handle_request(message, broadcast, own)

    def _reason(self, error: CohortiumError) -> tuple[str, str]:
        """Return the code and sentence of a refusal.

        Facts that no coordinator may know go to the log instead.
        """
        if isinstance(error, RefusalError):
            return error.code, error.reason
        if isinstance(error, MessageError):
            return RefusalCode.MALFORMED, str(error)
        # An import's error may name files and packages of this machine.
        if isinstance(error, NetworkError | BrokenNetworkError):
            self._log_refusal(str(error))
            return (
                RefusalCode.NETWORK,
                "the site cannot make or train the network; its log says why.",
            )
        if isinstance(error, StudyError | PrivacyError):
            return RefusalCode.STUDY, str(error)
        self._log_refusal(str(error))
        return RefusalCode.SITE_ERROR, "the site's own files do not serve; its log says why."

    def _refuse(self, code: str, reason: str) -> bytes:
        self._log_refusal(f"refused ({code}): {reason}")
        self._record_refusal()
        return codec.encode(Refusal(*self._asked_stage, code, reason[:MAX_REASON_LENGTH]))

    def _record_refusal(self) -> None:
        """Record a refusal in the trail. It tells nothing, so it leaves even without an entry."""
        try:
            self._trail.refused(self._asked)
        except RefusalError as error:
            self._log_refusal(error.reason)

    def _identify(self, call: IdentifyRequest) -> bytes:
        self._trail.identified()
        number, key = self._config.id, self._identity
        text = IdentifyReply.statement(call.challenge, number)
        return codec.encode(IdentifyReply(number, b"" if key is None else key.sign(text)))

    def _handle_invitation(self, invitation: Invitation, broadcast: bytes) -> bytes:
        active_run = self._active_runs.get(invitation.session)
        participation = self._participations.for_session(invitation.session)
        known = participation.invitation()
        if known is not None and known != broadcast:
            raise RefusalError(
                RefusalCode.SESSION, "this site started the run with another configuration."
            )
        if active_run is not None:
            with self._approved(active_run):
                return active_run.acceptance
        active_run = self._join(invitation, participation)
        if known is None:
            self._participations.add(participation, broadcast, keep=self._active_runs.sessions)
        # Only now: a run without its invitation on disk would accept any other one.
        self._active_runs.add(active_run)
        _LOG.info("takes part in the run %s", invitation.session.hex()[:8])
        return active_run.acceptance

    def _handle_request(self, request: Request, broadcast: bytes, own: bytes) -> bytes:
        active_run = self._active_runs.get(request.session) or self._rejoin(request.session)
        if self._approvals is not None:
            self._approvals.begin(active_run.study, request.session)
        active_run.last_request_at = self._active_runs.clock()
        digest = hashlib.sha256(hashlib.sha256(broadcast).digest() + own).digest()
        known = active_run.participation.reply(digest)
        if known is not None:
            return known
        site = active_run.site
        released, warned = site.last_release, len(site.warnings)
        # An answer that cannot be saved must not be sent, and may already be paid for.
        active_run.participation.require_room(site.vector_bytes)
        self._trail.try_out()
        with torch_threads(active_run.threads):
            reply = site.answer(broadcast, own)
        for warning in site.warnings[warned:]:
            _LOG.warning("%s", sanitize(warning))
        said = codec.decode_either(reply, Reply, Refusal)
        if isinstance(said, Refusal):
            self._log_refusal(f"refused ({said.code}) attempt {said.attempt}: {said.reason}")
            self._record_refusal()
            return reply
        has_release = site.last_release != released
        # The training may have taken hours, in which the approval may have ended.
        with self._approved(active_run):
            self._trail.answered(request, reply, has_release=has_release)
            active_run.participation.save_reply(digest, reply)
        if has_release:
            keep_own_scores(active_run, self._config, self._participations, warn=self._log_refusal)
        return reply

    def _approved(self, active_run: ActiveRun) -> AbstractContextManager[object]:
        """Return a context in which nobody can revoke the approval of a run's study.

        Entering it raises a `RefusalError` without approval.
        """
        if self._approvals is None:
            return contextlib.nullcontext()
        return self._approvals.holding(active_run.study, active_run.session)

    def _rejoin(self, session: bytes) -> ActiveRun:
        """Take part again in a run that a restart has interrupted."""
        participation = self._participations.for_session(session)
        known = participation.invitation()
        if known is None:
            raise RefusalError(RefusalCode.SESSION, "this site has not been invited to the run.")
        _LOG.info("takes part again in the run %s", session.hex()[:8])
        active_run = self._join(codec.decode(known, Invitation), participation)
        self._active_runs.add(active_run)
        return active_run

    def _join(self, invitation: Invitation, participation: Participation) -> ActiveRun:
        """Create the site of a run that meets all its demands.

        The demands are those of the site's file and policy.
        """
        self._active_runs.make_room()
        site_config = self._config
        federation = invited_study(invitation, site_config.policy)
        spec = federation.data
        assert spec is not None
        if site_config.id >= federation.sites:
            raise RefusalError(RefusalCode.SITE_ERROR, f"the study has no site {site_config.id}.")
        use: Use = "train" if federation.measurement is None else federation.measurement.data
        directory = _directory(invitation)
        tables = loads(invitation.study, where="the invitation")
        ours = collect_versions(tables)
        invited = InvitedStudy.of(invitation, ours)
        with torch_threads(federation.threads):
            run_config = build_run_config(
                federation,
                spec,
                session=invitation.session,
                directory=directory,
                policy=site_config.policy,
            )
        # Reading all images takes long, so the policy has admitted the study before.
        images = load_matching(site_config, spec, use, self._log_refusal)
        with torch_threads(federation.threads):
            self._require_approval(invited, federation, run_config, use)
            site = site_config.open(
                run_config,
                self._journal,
                with_groups(images.of(use), spec, federation.measurement),
                use=use,
                fingerprint=images.fingerprint(use),
                study=invited.digest,
            )
        for warning in site.warnings:
            _LOG.warning("%s", sanitize(warning))
        accepted = Acceptance(
            session=invitation.session,
            site=site_config.id,
            examples=site_config.declared(use),
            versions=version_differences(invitation.versions, ours),
        )
        active_run = ActiveRun(
            site=site,
            session=invitation.session,
            study=invited.digest,
            participation=participation,
            threads=federation.threads,
            acceptance=codec.encode(accepted),
            last_request_at=self._active_runs.clock(),
            dataset_id=site_config.account_of(use).data,
            images_sha256=images.of(use).train.fingerprint.hex(),
        )
        self._trail.accepted(invitation.session, invited.digest, use, shared_digest(tables))
        return active_run

    def _require_approval(
        self, invited: InvitedStudy, federation: Study, run_config: RunConfig, use: Use
    ) -> None:
        """Refuse a study that no person has approved, after all other refusals."""
        if self._approvals is None:
            return
        # A person sees only studies that the site could take part in.
        account = self._config.account_of(use)
        account.check_run(run_config.session, run_config.costs())
        facts = StudyFacts.of(federation, run_config, data=account.data, use=use)
        self._approvals.admit(invited, facts)


def _directory(invitation: Invitation) -> KeyDirectory | None:
    """Return the coordinator's copy of the sites' public keys, or None without one.

    Raises:
        MessageError: The copy is no directory. That is the coordinator's fault, and not one of the
            site's own files.
    """
    if not invitation.directory:
        return None
    try:
        return KeyDirectory.parse(invitation.directory)
    except IdentityError as error:
        raise MessageError(f"the invitation's directory: {error}") from None
