"""Where a hospital hears of runs: roll calls, invitations, and the requests of runs it is part of.

It is a state machine, like a site: it takes bytes and returns bytes, and knows no socket and no
thread.  Whoever sends them may be lying.
"""

from __future__ import annotations

import hashlib
import importlib
import time
import traceback
from typing import TYPE_CHECKING

from attrs import define

from cohortium.crypto.signing import KeyDirectory
from cohortium.deployment.admission import study_of
from cohortium.deployment.log_throttle import Throttle
from cohortium.deployment.participation import Visit, Visits
from cohortium.errors import (
    BrokenNetworkError,
    CohortiumError,
    DataError,
    MessageError,
    NetworkError,
    PrivacyError,
    RefusalError,
    StudyError,
)
from cohortium.learning.evaluation import torch_threads
from cohortium.messages import codec
from cohortium.messages.deployment import Acceptance, IdentifyReply, IdentifyRequest, Invitation
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.rounds.build_run_config import agree
from cohortium.runs.invite import differing, versions_of
from cohortium.study.toml import loads

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.data.examples import DataSpec, Examples
    from cohortium.deployment.site_config import Hospital
    from cohortium.rounds.site import Site
    from cohortium.storage.append_log import Journal

MOST_RUNS = 4
"""Runs that a hospital takes part in at a time."""

IDLE = 3600.0
"""Seconds without a request after which a run gives its place to another."""

REASON = 1000
"""Characters of a refusal."""

HEAVY = ("torch", "scipy.fft", "scipy.optimize", "scipy.special")
"""Packages that take a second or more to import; an invitation needs them before its policy."""


@define(eq=False)
class Seat:
    """A hospital's place in one run."""

    site: Site
    visit: Visit
    threads: int
    acceptance: bytes
    heard: float


class Reception:
    """A hospital at work: everything that reaches it from outside ends here.

    Guarantees:
        `answer` returns bytes whatever it is given: a message of `wire`.
        What leaves is a site's messages, a roll call's answer, an acceptance, and refusals.  A
        refusal quotes the study, or the one floor that it is below; never a path, an error of the
        hospital's own files or of a network's code, or the policy as a whole: those are told to
        `tell` alone, as is every refusal.
        However many refusals a caller provokes, `tell` hears of a bounded number of them a minute,
        and how many more there were.
        A run is taken part in only after `invite` and the policy's `admit` have let it pass,
        on data of exactly the declared shape and classes.
        A run has one setting: a second invitation with its session is answered as the first was
        if it is the same to the byte, and refused if not.
        An answer to a request is durable before it leaves.  The same request again gets the same
        bytes, also after a restart; every other request of an attempt that was cut short is
        refused, by the ledger, the journal, or because its secrets are gone.
        At most `MOST_RUNS` runs are open: one coordinator cannot push out the run of another that
        has been heard of within `IDLE` seconds.
    """

    def __init__(
        self,
        hospital: Hospital,
        journal: Journal,
        *,
        tell: Callable[[str], None] = lambda _sentence: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the hospital's own files.

        Raises:
            CohortiumError: They do not serve.
        """
        self._hospital, self._journal = hospital, journal
        self._tell, self._clock = tell, clock
        self._refused = Throttle(tell, "refusals", clock=clock)
        self._identity = hospital.key
        self._visits = Visits(hospital.folder / hospital.runs_dir)
        self._seats: dict[bytes, Seat] = {}

    def try_out(self) -> None:
        """See, before anyone asks, that the hospital's own files serve.

        Raises:
            CohortiumError: One does not; the sentence is for the hospital's own people.
        """
        self._require_declared(self._hospital.dataset.load().train)
        with self._hospital.account.ledger.reading():
            pass
        self._visits.require_usable()

    @staticmethod
    def warm_up() -> None:
        """Import, before anyone asks, what the first invitation would wait for."""
        for name in HEAVY:
            importlib.import_module(name)

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """The reply to one message; see the class."""
        try:
            return self._answer(broadcast, own)
        except CohortiumError as error:
            return self._refuse(*self._reason(error))
        except Exception:  # noqa: BLE001 - a hospital outlives a fault of a plugin
            self._refused(traceback.format_exc())
            return self._refuse("fault", "the site failed; its log says why.")

    def close(self) -> None:
        """Tell of the refusals that the log was spared."""
        self._refused.close()

    def _answer(self, broadcast: bytes, own: bytes) -> bytes:
        message = codec.decode_either(broadcast, Request, Invitation, IdentifyRequest)
        if isinstance(message, IdentifyRequest):
            return self._present(message)
        if isinstance(message, Invitation):
            return self._accept(message, broadcast)
        return self._serve(message, broadcast, own)

    def _reason(self, error: CohortiumError) -> tuple[str, str]:
        """The code and sentence of a refusal; what no coordinator is to know goes to the log."""
        if isinstance(error, RefusalError):
            return error.code, error.reason
        if isinstance(error, MessageError):
            return "malformed", str(error)
        # What an import says may name files and packages of this machine.
        if isinstance(error, NetworkError | BrokenNetworkError):
            self._refused(str(error))
            return "network", "the site cannot make or train the network; its log says why."
        if isinstance(error, StudyError | PrivacyError):
            return "study", str(error)
        self._refused(str(error))
        return "site", "the site's own files do not serve; its log says why."

    def _refuse(self, code: str, reason: str) -> bytes:
        self._refused(f"refused ({code}): {reason}")
        return codec.encode(Refusal(0, 0, code, reason[:REASON]))

    def _present(self, call: IdentifyRequest) -> bytes:
        number, key = self._hospital.id, self._identity
        text = IdentifyReply.statement(call.challenge, number)
        return codec.encode(IdentifyReply(number, b"" if key is None else key.sign(text)))

    def _accept(self, invitation: Invitation, broadcast: bytes) -> bytes:
        seat = self._seats.get(invitation.session)
        visit = self._visits.of(invitation.session)
        known = visit.invitation()
        if known is not None and known != broadcast:
            raise RefusalError("session", "the run was begun here with another setting.")
        if seat is None:
            seat = self._seat(invitation, visit)
            if known is None:
                self._visits.begin(visit, broadcast, keep=self._seats)
            self._tell(f"takes part in the run {invitation.session.hex()[:8]}")
        return seat.acceptance

    def _serve(self, request: Request, broadcast: bytes, own: bytes) -> bytes:
        seat = self._seats.get(request.session) or self._return(request.session)
        seat.heard = self._clock()
        digest = hashlib.sha256(hashlib.sha256(broadcast).digest() + own).digest()
        known = seat.visit.reply(digest)
        if known is not None:
            return known
        # An answer that cannot be kept must not leave, and may have been paid for.
        seat.visit.require_room(seat.site.vector_bytes)
        with torch_threads(seat.threads):
            reply = seat.site.answer(broadcast, own)
        said = codec.decode_either(reply, Reply, Refusal)
        if isinstance(said, Refusal):
            self._refused(f"refused ({said.code}) attempt {said.attempt}: {said.reason}")
        else:
            seat.visit.keep(digest, reply)
        return reply

    def _return(self, session: bytes) -> Seat:
        """Take part again in a run that a restart has cut short."""
        visit = self._visits.of(session)
        known = visit.invitation()
        if known is None:
            raise RefusalError("session", "this site has not been invited to the run.")
        self._tell(f"takes part again in the run {session.hex()[:8]}")
        return self._seat(codec.decode(known, Invitation), visit)

    def _seat(self, invitation: Invitation, visit: Visit) -> Seat:
        """Make the site of a run, if all of it is as the hospital demands."""
        self._make_room()
        hospital = self._hospital
        federation = study_of(invitation, hospital.policy)
        spec = federation.data
        assert spec is not None
        if hospital.id >= federation.sites:
            raise RefusalError("site", f"the study has no site {hospital.id}.")
        examples = self._data(spec)
        directory = KeyDirectory.parse(invitation.directory) if invitation.directory else None
        with torch_threads(federation.threads):
            setting = agree(
                federation,
                spec,
                session=invitation.session,
                directory=directory,
                policy=hospital.policy,
            )
            site = hospital.open(setting, self._journal, examples)
        for warning in site.warnings:
            self._tell(warning)
        ours = versions_of(loads(invitation.study, where="the invitation"))
        accepted = Acceptance(
            session=invitation.session,
            site=hospital.id,
            examples=hospital.declared_examples,
            versions=differing(invitation.versions, ours),
        )
        seat = Seat(site, visit, federation.threads, codec.encode(accepted), self._clock())
        self._seats[invitation.session] = seat
        return seat

    def _make_room(self) -> None:
        """Forget a run that nobody goes on with, where there is no place left.

        Raises:
            RefusalError: All are at work.
        """
        if len(self._seats) < MOST_RUNS:
            return
        session, oldest = min(self._seats.items(), key=lambda item: item[1].heard)
        if self._clock() - oldest.heard < IDLE:
            raise RefusalError("busy", f"the site takes part in {MOST_RUNS} other runs.")
        del self._seats[session]

    def _data(self, spec: DataSpec) -> Examples:
        """The hospital's own images, if they are what the study declares."""
        splits = self._hospital.dataset.load()
        declared, found = (spec.shape, spec.classes), (splits.spec.shape, splits.classes)
        if declared != found:
            self._refused(
                f"this site's images have shape {splits.spec.shape} and {len(splits.classes)} "
                f"classes ({', '.join(splits.classes)[:200]}); its data set must name every class "
                "of the study, those of which it has no image too."
            )
            raise RefusalError(
                "data",
                f"the study declares images of shape {spec.shape} in {len(spec.classes)} classes "
                f"({', '.join(spec.classes)[:200]}), and the site's have another shape or classes.",
            )
        if (spec.patients is None) != (splits.train.patients is None):
            raise RefusalError(
                "data", "the study declares patients and the site's data name none, or vice versa."
            )
        self._require_declared(splits.train)
        return splits.train

    def _require_declared(self, examples: Examples) -> None:
        declared = self._hospital.declared_examples
        if len(examples) < declared:
            raise DataError(
                f"the site file declares {declared} examples, and there are {len(examples)}."
            )
