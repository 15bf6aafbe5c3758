"""A site's server for identify requests, invitations, and its runs' requests.

It is a state machine, like a site: it takes bytes and returns bytes, and uses no socket and no
thread. The sender of a message is not trusted.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
import traceback
from typing import TYPE_CHECKING

import attrs
from attrs import define

from cohortium import parameters
from cohortium.crypto.signing import KeyDirectory
from cohortium.deployment.admission import invited_study
from cohortium.deployment.log_throttle import Throttle
from cohortium.deployment.own_scores import SiteScore
from cohortium.deployment.participation import Participation, ParticipationStore
from cohortium.deployment.trained_study import trained_study
from cohortium.errors import (
    BrokenNetworkError,
    CohortiumError,
    DataError,
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
from cohortium.runs.invite import collect_versions, version_differences
from cohortium.study.toml import loads
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.data.examples import DataSpec, Examples
    from cohortium.data.splits import Splits
    from cohortium.deployment.own_images import OwnImages, Use
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.rounds.site import Site
    from cohortium.storage.append_log import Journal
    from cohortium.study.measurement import Measurement

_LOG = logging.getLogger(__name__)

MAX_ACTIVE_RUNS = 4
"""Most runs that a site takes part in at a time."""

IDLE_TIMEOUT = 3600.0
"""Idle seconds after which another run may take a run's place."""

MAX_REASON_LENGTH = 1000
"""Characters of a refusal."""

HEAVY = ("torch", "torch._dynamo", "scipy.fft", "scipy.optimize", "scipy.special")
"""Packages that take a second or more to import. An invitation needs them before the policy
check."""


@define(eq=False)
class ActiveRun:
    """A site's state in one active run."""

    site: Site
    participation: Participation
    threads: int
    acceptance: bytes
    last_request_at: float
    dataset_id: str
    images_sha256: str


class SiteServer:
    """Server of one site, where every message from outside ends.

    Guarantees:
        `answer` returns bytes for any input: an encoded message.

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

        A run has one setting. A second invitation with its session gets the first one's answer if
        its bytes are equal. Otherwise it is refused.

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
        self._clock = clock
        self._log_refusal = Throttle(_LOG, "refusals", clock=clock)
        self._identity = site_config.key
        self._participations = ParticipationStore(site_config.folder / site_config.runs_dir)
        self._active_runs: dict[bytes, ActiveRun] = {}

    def self_check(self) -> None:
        """Check the site's own files before the first message.

        Raises:
            CohortiumError: A file is unusable. The sentence is for the site's own staff.
        """
        images = self._config.load_images()
        for warning in self._config.warnings(images):
            _LOG.warning("%s", warning)
        with self._config.account.ledger.read_transaction():
            pass
        self._participations.require_usable()

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
        """Write the number of refusals that the log has not shown."""
        self._log_refusal.close()

    def _answer(self, broadcast: bytes, own: bytes) -> bytes:
        message = codec.decode_either(broadcast, Request, Invitation, IdentifyRequest)
        if isinstance(message, IdentifyRequest):
            return self._identify(message)
        if isinstance(message, Invitation):
            return self._handle_invitation(message, broadcast)
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
        return codec.encode(Refusal(0, 0, code, reason[:MAX_REASON_LENGTH]))

    def _identify(self, call: IdentifyRequest) -> bytes:
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
        if active_run is None:
            active_run = self._join(invitation, participation)
            if known is None:
                self._participations.add(participation, broadcast, keep=self._active_runs)
            _LOG.info("takes part in the run %s", invitation.session.hex()[:8])
        return active_run.acceptance

    def _handle_request(self, request: Request, broadcast: bytes, own: bytes) -> bytes:
        active_run = self._active_runs.get(request.session) or self._rejoin(request.session)
        active_run.last_request_at = self._clock()
        digest = hashlib.sha256(hashlib.sha256(broadcast).digest() + own).digest()
        known = active_run.participation.reply(digest)
        if known is not None:
            return known
        released = active_run.site.last_release
        # An answer that cannot be saved must not be sent, and may already be paid for.
        active_run.participation.require_room(active_run.site.vector_bytes)
        with torch_threads(active_run.threads):
            reply = active_run.site.answer(broadcast, own)
        said = codec.decode_either(reply, Reply, Refusal)
        if isinstance(said, Refusal):
            self._log_refusal(f"refused ({said.code}) attempt {said.attempt}: {said.reason}")
        else:
            active_run.participation.save_reply(digest, reply)
            if active_run.site.last_release != released:
                self._keep_own_scores(request.session, active_run)
        return reply

    def _keep_own_scores(self, session: bytes, active_run: ActiveRun) -> None:
        """Write the site's own scores of the evaluated model to its log and its folder.

        A failure is logged, and changes nothing for the run.
        """
        site, site_config = active_run.site, self._config
        try:
            with torch_threads(active_run.threads):
                predictions = site.own_predictions()
            if predictions is None:
                return
            own = SiteScore(
                session=session,
                site=site_config.id,
                dataset_id=active_run.dataset_id,
                weights_sha256=parameters.sha256(site.shared_model.net),
                scores=predictions.scores,
                images_sha256=active_run.images_sha256,
                study=trained_study(self._participations, session),
            )
            for line in own.lines():
                _LOG.info("%s", sanitize(line))
            path = own.write(site_config.folder / site_config.evaluations_dir, predictions.values)
            _LOG.info("these scores are in %s, and nothing of them leaves this site", path)
        except CohortiumError as error:
            self._log_refusal(f"the site's own scores are not kept: {error}")
        except Exception:  # noqa: BLE001 - the run goes on without them
            self._log_refusal(traceback.format_exc())

    def _rejoin(self, session: bytes) -> ActiveRun:
        """Take part again in a run that a restart has interrupted."""
        participation = self._participations.for_session(session)
        known = participation.invitation()
        if known is None:
            raise RefusalError(RefusalCode.SESSION, "this site has not been invited to the run.")
        _LOG.info("takes part again in the run %s", session.hex()[:8])
        return self._join(codec.decode(known, Invitation), participation)

    def _join(self, invitation: Invitation, participation: Participation) -> ActiveRun:
        """Create the site of a run that meets all its demands.

        The demands are those of the site's file and policy.
        """
        self._evict_idle()
        site_config = self._config
        federation = invited_study(invitation, site_config.policy)
        spec = federation.data
        assert spec is not None
        if site_config.id >= federation.sites:
            raise RefusalError(RefusalCode.SITE_ERROR, f"the study has no site {site_config.id}.")
        use: Use = "train" if federation.measurement is None else federation.measurement.data
        images = self._load_images(spec, use)
        directory = KeyDirectory.parse(invitation.directory) if invitation.directory else None
        with torch_threads(federation.threads):
            run_config = build_run_config(
                federation,
                spec,
                session=invitation.session,
                directory=directory,
                policy=site_config.policy,
            )
            site = site_config.open(
                run_config,
                self._journal,
                self._grouped(images.of(use), spec, federation.measurement),
                use=use,
                fingerprint=images.fingerprint(use),
            )
        for warning in site.warnings:
            _LOG.warning("%s", sanitize(warning))
        ours = collect_versions(loads(invitation.study, where="the invitation"))
        accepted = Acceptance(
            session=invitation.session,
            site=site_config.id,
            examples=site_config.declared(use),
            versions=version_differences(invitation.versions, ours),
        )
        active_run = ActiveRun(
            site=site,
            participation=participation,
            threads=federation.threads,
            acceptance=codec.encode(accepted),
            last_request_at=self._clock(),
            dataset_id=site_config.account_of(use).data,
            images_sha256=images.of(use).train.fingerprint.hex(),
        )
        self._active_runs[invitation.session] = active_run
        return active_run

    def _evict_idle(self) -> None:
        """Remove the run that is idle longest, if all places are taken.

        Raises:
            RefusalError: No run has been idle for `IDLE_TIMEOUT` seconds.
        """
        if len(self._active_runs) < MAX_ACTIVE_RUNS:
            return
        session, oldest = min(self._active_runs.items(), key=lambda item: item[1].last_request_at)
        if self._clock() - oldest.last_request_at < IDLE_TIMEOUT:
            raise RefusalError(
                RefusalCode.BUSY, f"the site takes part in {MAX_ACTIVE_RUNS} other runs."
            )
        del self._active_runs[session]

    @staticmethod
    def _grouped(splits: Splits, spec: DataSpec, measurement: Measurement | None) -> Examples:
        """Return the images of a run, with the groups by which the study measures."""
        if measurement is None:
            # Training has no use for groups, and the study may declare others.
            return attrs.evolve(splits.train, groups=None)
        try:
            return spec.group_codes(splits.train, splits.groups)
        except DataError as error:  # it names the study's columns, and none of the site's
            raise RefusalError(RefusalCode.DATA, str(error)) from error

    def _load_images(self, spec: DataSpec, use: Use) -> OwnImages:
        """Return the site's own images, if those of `use` match the study's declaration."""
        if use == "test" and self._config.test is None:
            raise RefusalError(
                RefusalCode.DATA,
                "the study evaluates a model on test images, and this site has none; name some "
                "under [test] in its site file.",
            )
        images = self._config.load_images()
        splits = images.of(use)
        if not spec.describes(own := splits.spec):
            self._log_refusal(
                f"this site's images are {own.pixel_type} of shape {own.shape} from "
                f"{own.intensity_range[0]:g} to {own.intensity_range[1]:g}, with "
                f"{len(own.classes)} classes ({', '.join(own.classes)[:200]}) of the task "
                f"{type(own.task).__name__}; its data set must name every class "
                "of the study, those of which it has no image too."
            )
            raise RefusalError(
                RefusalCode.DATA,
                f"the study declares {spec.pixel_type} images of shape {spec.shape} in "
                f"{len(spec.classes)} classes ({', '.join(spec.classes)[:200]}), and the site's "
                "have another type, shape, range, task or classes.",
            )
        if (spec.patients is None) != (splits.train.patients is None):
            raise RefusalError(
                RefusalCode.DATA,
                "the study declares patients and the site's data name none, or vice versa.",
            )
        return images
