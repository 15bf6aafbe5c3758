"""A site: a state machine that turns requests into replies.

It uses no socket, thread or clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium.catalog.part_results import planned_round, require_protocol, require_result
from cohortium.data.groups import NOT_STATED
from cohortium.data.predictions import Predictions
from cohortium.errors import (
    MessageError,
    RefusalCode,
    RefusalError,
    RunError,
)
from cohortium.learning.evaluation import predict
from cohortium.learning.preprocessing import preprocess
from cohortium.ledger.cost import AttemptCost, MadeAttempts
from cohortium.messages import codec
from cohortium.messages.run import Refusal, Reply
from cohortium.ring.ring import RingVector
from cohortium.roles.protocols import OwnModelTrainer
from cohortium.roles.sessions import SitePrivatizer, SiteSession
from cohortium.roles.values import SiteContext, SiteRequest
from cohortium.rounds.guard import guard
from cohortium.rounds.local_round import LocalRound, SiteData
from cohortium.rounds.server_state import extra_length, whole_release
from cohortium.rounds.shared_model import SharedModel
from cohortium.statistics.raw_images import RawImages
from cohortium.storage.append_log import MemoryJournal
from cohortium.storage.trainer_state import TrainerState
from cohortium.study.measurement import SITE

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.crypto.signing import SigningKey
    from cohortium.data.examples import Examples
    from cohortium.learning.preprocessing import Features
    from cohortium.ledger.account import Account
    from cohortium.messages.run import Request
    from cohortium.roles.sessions import RoundPlan, SiteHandle
    from cohortium.roles.values import SiteId
    from cohortium.rounds.run_config import AdmissionPolicy, RunConfig
    from cohortium.storage.append_log import Journal
    from cohortium.storage.trainer_state import TrainerStateFile, TrainerStateStore


class Site:
    """One hospital's side of a run.

    Guarantees:
        Only the aggregator's messages and refusals leave the site.
        The site passes to the aggregator the value that `SitePrivatizer.release` returned and
        nothing else.
        The site handles attempts in order: it refuses an older attempt and an attempt of another
        run.
        The site makes no attempt that the run's guarantee does not cover. So a coordinator cannot
        have all attempts made at the round with the least noise. With an account, that counts the
        attempts before a restart, too.
        The site releases one vector in each attempt, regardless of the aggregator's requests.
        A second vector would spend privacy that was not planned.
        The site stores the trainer's state before anything of the attempt leaves.
        Every attempt at a round begins with the state that the previous round left.
        Where sites are protected, an update that is not finite counts as zero. So a coordinator
        that chooses the weights learns nothing from a refusal of such an update.
        With an account, the site writes an attempt to the ledger before its training begins.
        It never makes an attempt twice, also not after a restart.
        It charges an attempt after it has checked all that the reply needs: weights, journal, and
        room for the trainer's state.
        With a policy, the site replies to no message of a run that is below one of its floors.

    Attributes:
        shared_model: The network on which the site computes.
        warnings: Warnings for the hospital's own people, which the site never sends.
    """

    def __init__(
        self,
        run_config: RunConfig,
        site: SiteId,
        examples: Examples,
        shared_model: SharedModel,
        *,
        identity: SigningKey | None = None,
        journal: Journal | None = None,
        policy: AdmissionPolicy | None = None,
        account: Account | None = None,
        store: TrainerStateStore | None = None,
        features: Features | None = None,
        fingerprint: bytes | None = None,
        declared: int | None = None,
    ) -> None:
        """Refuse runs that the site does not allow, and prepare its images.

        Args:
            run_config: The run configuration.
            site: Number of the site.
            examples: Data of the site.
            shared_model: The network on which the site computes.
            identity: Signing key of the site, or None without a directory.
            journal: Journal of the records that must survive a restart. If None, one in memory.
            policy: Floors of the site.
            account: Account that is charged for each attempt.
            store: Store in which the trainer's state survives a restart. If None, the state is in
                memory alone.
            features: Folder that keeps features of the images between runs.
            fingerprint: SHA-256 of all data of the account. None takes that of `examples`.
            declared: Number of examples that the site has made public, or 0. Under a guarantee,
                nothing that leaves depends on another number. None makes all numbers public.

        Raises:
            RefusalError: The run is below a floor, does not fit the account's budget, or declares
                fewer examples or patients than the site alone has.
            LedgerError: The account's ledger cannot be used.
            RunError: The stored state is damaged, or cannot be stored in its place. Or the folder
                of features cannot be used.
        """
        import torch

        self._account = account
        self.warnings: tuple[str, ...] = ()
        if policy is not None:
            policy.admit(run_config)
        charged: dict[int, AttemptCost] = {}
        if account is not None:
            charged = account.check_run(run_config.session, run_config.costs())
            if account.budget is not None:
                known = examples.fingerprint if fingerprint is None else fingerprint
                self.warnings = tuple(filter(None, [account.data_changed(known)]))
        self._made = MadeAttempts.of(run_config.planned_attempts(), charged)
        self.warnings += _require_declared(examples, run_config, declared)
        self._run_config = run_config
        self._site = site
        self.shared_model = shared_model
        inputs = preprocess(run_config.model, examples.images, run_config.spec, features)
        self._data = SiteData(
            images=inputs.to(run_config.device),
            labels=torch.from_numpy(examples.labels).to(run_config.device),
            groups=_groups(examples, site, run_config),
            patients=examples.patients,
        )
        trainer = run_config.trainer
        # Asked once, as `isinstance` with a protocol looks at all its methods.
        self._own_model_trainer = trainer if isinstance(trainer, OwnModelTrainer) else None
        self._extra = extra_length(trainer, run_config.workload, shared_model.length)
        self._store = store
        self._journal = journal or MemoryJournal()
        if journal is not None:
            # A simulated site has no files yet.
            self._require_state_room()
        self._trainer_state = (
            TrainerState() if store is None else store.read().to_device(run_config.device)
        )
        self._round = self._trainer_state.round
        self._attempt = self._released = -1
        self._round_plan: RoundPlan | None = None
        site_context = SiteContext(
            site=site,
            secret=run_config.secret(f"aggregation {site}", private=True),
            identity=identity,
            journal=self._journal,
            shared=shared_model.shared,
        )
        self._session = run_config.aggregator.site_session(run_config.sum, site_context)
        require_protocol(run_config.aggregator, "site_session", self._session, SiteSession)

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """Return the reply to one request, which may be a refusal.

        No bytes make the method raise. Only a fault in a plugin's own code does.

        Args:
            broadcast: A `Request`, untrusted.
            own: The aggregator's part for this site alone, untrusted.
        """
        attempt = stage = 0
        try:
            request = self.shared_model.decode_request(broadcast)
            attempt, stage = request.attempt, request.stage
            self.shared_model.take_weights(request)
            self._admit(request)
            ask = SiteRequest(round=request.round, attempt=attempt, broadcast=request.body, own=own)
            body = self._session.handle(ask, lambda: self._release(request))
            is_right = isinstance(body, (bytes, bytearray, memoryview))
            require_result(self._session, "handle", body, is_right, "bytes")
        except RefusalError as refusal:
            return codec.encode(Refusal(attempt, stage, refusal.code, refusal.reason))
        except MessageError as error:
            return codec.encode(Refusal(attempt, stage, RefusalCode.MALFORMED, str(error)))
        return codec.encode(Reply(attempt, stage, body))

    def _admit(self, request: Request) -> None:
        """Refuse a foreign, stale or excessive request, and begin a new attempt."""
        federation_spec = self._run_config.federation_spec
        if request.session != self._run_config.session:
            raise RefusalError(RefusalCode.SESSION, "the request belongs to another run.")
        if request.attempt < self._attempt or request.round < self._round:
            raise RefusalError(RefusalCode.STALE, "the request belongs to an attempt that is over.")
        if request.round >= federation_spec.rounds or request.attempt >= federation_spec.attempts:
            raise RefusalError(RefusalCode.BUDGET, "the study has no such round or attempt.")
        if request.attempt == self._attempt:
            if request.round != self._round:
                raise RefusalError(RefusalCode.STALE, "an attempt cannot move to another round.")
            return
        if request.weights is None:
            raise RefusalError(
                RefusalCode.MISSING_WEIGHTS, "an attempt must begin with the global weights."
            )
        round_plan = planned_round(self._run_config.plan, request.round, request.plan_state)
        self._round, self._attempt, self._round_plan = request.round, request.attempt, round_plan

    def _release(self, request: Request) -> RingVector:
        """Run the round's training, and release the result through the privatizer."""
        if self._released == request.attempt:
            raise RefusalError(
                RefusalCode.OUT_OF_ORDER, "this attempt's vector has been released already."
            )
        self._released = request.attempt
        run_config = self._run_config
        self._require_ready()
        secret = run_config.secret("privacy", private=run_config.plan.guarantee is not None)
        secret = secret.derive(request.round, request.attempt, self._site)
        round_plan = self._round_plan
        assert round_plan is not None, "admission has begun the attempt"
        privatizer = round_plan.for_site(secret, self._data.patients)
        require_protocol(round_plan, "for_site", privatizer, SitePrivatizer)
        privatizer = guard(privatizer, run_config.plan.guarantee, run_config.workload)
        self.shared_model.load_global_weights()
        before = self._trainer_state.state_for(request.round)
        cost = AttemptCost.of(round_plan.mechanism, run_config.plan.guarantee)
        if not self._made.allows(request.attempt, cost):
            raise RefusalError(
                RefusalCode.BUDGET,
                "the study plans for no further attempt with as little noise as in this round.",
            )
        if self._account is not None:
            # Before training: a refusal after it reveals something about the data, so it must be
            # paid for.
            self._account.charge(run_config.session, request.round, request.attempt, cost)
        self._made.add(request.attempt, cost)
        attempt = LocalRound(
            run_config=run_config,
            data=self._data,
            shared_model=self.shared_model,
            secret=secret,
            round=request.round,
        )
        trained = attempt.train(privatizer, before)
        self._require_unchanged_buffers()
        if self._own_model_trainer is not None:
            trained = attempt.with_own(trained, before, self._own_model_trainer)
        self._save_state(TrainerState.of(request.round, before, trained.state))
        whole = self._finite(whole_release(trained, self._extra), request.round)
        released = privatizer.release(whole, trained.weight)
        is_right = isinstance(released, RingVector)
        require_result(privatizer, "release", released, is_right, "a RingVector")
        if len(released.words) != run_config.plan.length:
            raise RefusalError(
                RefusalCode.VECTOR,
                f"its release has {len(released.words)} elements, and {run_config.plan.length} "
                "were agreed on.",
            )
        return released

    def _finite(self, vector: Tensor, round_: int) -> Tensor:
        """Return a site's update, or zeros in its place if a value is NaN or infinite.

        Zeros are within every clip, so the noise covers them as it covers the update. Where single
        examples are protected, a vector was noised before, and a refusal tells nothing more.

        Args:
            vector: Shape (P + E,).
            round_: Number of the round.
        """
        guarantee = self._run_config.plan.guarantee
        if guarantee is None or guarantee.unit != "site" or bool(vector.isfinite().all()):
            return vector
        warning = (
            f"round {round_ + 1}: the site's update holds NaN or infinity, so the site released "
            "zeros with noise in its place; a lower rate may help."
        )
        self.warnings += (warning,)
        return vector.new_zeros(vector.shape)

    @property
    def last_release(self) -> int:
        """Number of the last attempt at which the site made a release, or -1."""
        return self._released

    def own_predictions(self) -> Predictions | None:
        """Return the evaluated network's predictions for the site's own images.

        They are for the site's own staff alone: no noise covers them, so they must not leave.

        Returns:
            The predictions, or None if the last release was no sum of scores.
        """
        run_config = self._run_config
        if run_config.statistic is None or isinstance(run_config.model, RawImages):
            return None
        found = predict(run_config.model, self.shared_model.net, self._data.images, run_config.spec)
        return Predictions(found, self._data.labels.cpu().numpy(), run_config.spec.task)

    @property
    def vector_bytes(self) -> int:
        """Bytes of the vector in the largest reply."""
        return self._run_config.plan.ring.bytes_for(self._run_config.plan.length)

    def _require_ready(self) -> None:
        """Refuse, before the charge, a reply that could not be stored afterwards."""
        self._journal.try_out()
        try:
            self._require_state_room()
        except RunError as error:
            raise RefusalError(RefusalCode.STATE, "the site's state cannot be written.") from error

    def _require_state_room(self) -> None:
        """Require room for twice the trainer's state, as it may grow.

        Raises:
            RunError: There is not enough room.
        """
        size = self._run_config.sizes.site
        if self._store is None or not size:
            return
        try:
            self._store.require_room(2 * size)
        except OSError as error:
            raise RunError(
                f"the trainer keeps {size:,} bytes at the site after each round, and the folder of "
                f"states does not take them: {error.strerror}; see `states` in the site file."
            ) from error

    def _save_state(self, kept: TrainerState) -> None:
        """Store the trainer's state for the next round, durably before anything leaves."""
        if self._store is not None and (kept.at_round_start or kept.at_round_end):
            try:
                self._store.write(kept)
            except OSError as error:
                raise RefusalError(
                    RefusalCode.STATE, "the site's state cannot be written."
                ) from error
        self._trainer_state = kept

    def _require_unchanged_buffers(self) -> None:
        """Refuse buffers that changed under example-level privacy, as no noise covers them."""
        guarantee = self._run_config.plan.guarantee
        if guarantee is None or guarantee.unit == "site":
            return
        if self.shared_model.buffers_changed():
            raise RefusalError(
                RefusalCode.BUFFERS_CHANGED,
                "the model keeps statistics of the data, which no noise covers.",
            )


def _groups(examples: Examples, site: SiteId, run_config: RunConfig) -> dict[str, Tensor]:
    """Return the group of each example by column, with the site itself as one more column."""
    import torch

    device, columns = run_config.device, run_config.spec.groups
    codes = examples.groups
    if codes is None:
        codes = np.full((len(examples), len(columns)), NOT_STATED)
    placed = torch.from_numpy(codes).to(device)
    found = {column.name: placed[:, k] for k, column in enumerate(columns)}
    return {**found, SITE: torch.full((len(examples),), site, device=device)}


def _require_declared(
    examples: Examples, run_config: RunConfig, public: int | None
) -> tuple[str, ...]:
    """Refuse a study that declares less data than this site has, or return warnings of that.

    The data are examples and patients. The sums of such a study would not fit, or are cut off
    where a guarantee holds. There, a refusal would tell a coordinator who invites again and again
    how many there are. So only the number `public` can cause one. The messages name the declared
    number, and not the site's own.
    """
    federation_spec = run_config.federation_spec
    table = "[data]" if run_config.statistic is None else "[evaluation]"
    patients = 0 if examples.patients is None else len(np.unique(examples.patients))
    is_secret = public is not None and run_config.plan.guarantee is not None
    found = []
    for what, own, known, declared in (
        ("examples", len(examples), public or 0, federation_spec.examples),
        ("patients", patients, 0, federation_spec.patients),
    ):
        if declared is None or own <= declared:
            continue
        sentence = (
            f"the study declares {declared:,} {what} over all sites together, and this site "
            f"alone has more; correct {what} under {table}."
        )
        if not is_secret or known > declared:
            raise RefusalError(RefusalCode(what), sentence)
        found.append(sentence)
    return tuple(found)


@frozen
class SimulatedSiteFactory:
    """Factory of a simulated site in any process (see `protocols.SiteFactory`)."""

    run_config: RunConfig
    site: SiteId
    examples: Examples = field(repr=False)
    identity: SigningKey | None = None
    policy: AdmissionPolicy | None = None
    account: Account | None = None
    store: TrainerStateFile | None = None
    features: Features | None = None

    def create(self, share_model_with: SiteHandle | None = None) -> Site:
        """Create the site, sharing the network in memory of `share_model_with`."""
        place = (
            share_model_with.shared_model
            if isinstance(share_model_with, Site)
            else SharedModel(self.run_config)
        )
        return Site(
            self.run_config,
            self.site,
            self.examples,
            place,
            identity=self.identity,
            policy=self.policy,
            account=self.account,
            store=self.store,
            features=self.features,
        )
