"""A site: a state machine that turns requests into replies and knows no socket, thread or clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium import messages, vector
from cohortium.counting import guarded
from cohortium.errors import MessageError, RefusalError, StudyError
from cohortium.journal import MemoryJournal
from cohortium.randomness import Randomness
from cohortium.spending import Price
from cohortium.vocabulary import (
    Ask,
    Member,
    SumSetting,
    Task,
)
from cohortium.wire import Refusal, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cohortium.account import Account
    from cohortium.data import DataSpec, Examples
    from cohortium.identity import Directory, Identity
    from cohortium.journal import Journal
    from cohortium.policy import SitePolicy
    from cohortium.protocols import (
        Aggregator,
        Model,
        OpenSite,
        PrivacyPlan,
        Trainer,
    )
    from cohortium.randomness import Seeds
    from cohortium.ring import RingVector
    from cohortium.vocabulary import Cohort, SiteId, Work


@frozen(kw_only=True)
class Setting:
    """What every party of a run knows: the composition and its declared numbers.

    Attributes:
        session: 16 bytes that name the run.
        spec: What is public about the data.
        cohort: Who takes part.
        model: Built alike at every party.
        trainer: What each site does.
        work: What the trainer declared.
        plan: What may leave a site.
        aggregator: How releases are summed.
        seeds: The run's public seeds.
        directory: The sites' public keys, as every party has pinned them; None without signatures.
        device: Where torch computes.
    """

    session: bytes
    spec: DataSpec
    cohort: Cohort
    model: Model
    trainer: Trainer
    work: Work
    plan: PrivacyPlan
    aggregator: Aggregator
    seeds: Seeds
    directory: Directory | None = None
    device: str = "cpu"

    def __attrs_post_init__(self) -> None:
        """Refuse a guarantee that counts on an aggregator to hide what this one shows."""
        guarantee = self.plan.guarantee
        if guarantee is None or guarantee.against == "everyone":
            return
        secrecy = self.aggregator.secrecy(self.cohort)
        if secrecy is None:
            raise StudyError(
                "the privatizer's guarantee is against a coordinator that sees sums, and the "
                "aggregator shows it every site's release; use aggregator 'secagg', or a "
                "privatizer with against = 'everyone'."
            )
        if secrecy.contributors < guarantee.honest + guarantee.colluding:
            raise StudyError(
                f"the aggregator opens sums over {secrecy.contributors} sites, and the guarantee "
                f"needs {guarantee.honest} honest ones beside {guarantee.colluding} colluding; "
                "raise min_sites."
            )

    @property
    def sum(self) -> SumSetting:
        """The aggregator's part of it."""
        return SumSetting(
            session=self.session,
            ring=self.plan.ring,
            length=self.plan.length,
            cohort=self.cohort,
            directory=self.directory,
        )

    def network(self) -> nn.Module:
        """The initial network, on the run's device; equal at every party."""
        return self.model.build(self.spec, self.seeds.integer("weights")).to(self.device)

    def secret(self, purpose: str, *, private: bool) -> Randomness:
        """A party's source of secrets for `purpose`.

        Where nothing is protected (`private` is false), or the study asks for seeded noise, it is
        a function of the public seed: that is what makes such a run repeatable.
        """
        if private and not self.cohort.seeded_noise:
            return Randomness.system()
        return Randomness.simulated(self.seeds.root).fork(purpose)


class Workplace:
    """One resident network, shared by all the sites of a process, which take turns with it."""

    def __init__(self, setting: Setting) -> None:
        """Build the network."""
        import torch

        self.net = setting.network()
        self.length = vector.length(self.net)
        self._buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        self._device = torch.device(setting.device)
        self._latest: tuple[bytes, Request] | None = None
        self._weights: Tensor | None = None
        self._begun: list[Tensor] = []

    def read(self, common: bytes) -> Request:
        """Decode the part of a request that all sites share; once, however many sites there are.

        Raises:
            MessageError: It is not a request, or its weights are not this network's.
        """
        if self._latest is not None and self._latest[0] is common:
            return self._latest[1]
        request = messages.decode(common, Request)
        if request.weights is not None:
            self._weights = self._decoded(request.weights)
        self._latest = (common, request)
        return request

    def _decoded(self, weights: bytes) -> Tensor:
        import torch

        if len(weights) != 4 * self.length:
            raise MessageError(
                f"the model has {self.length} numbers of 4 bytes, but {len(weights)} bytes came."
            )
        array = np.frombuffer(weights, dtype="<f4")
        if not np.isfinite(array).all():
            raise MessageError("the global weights are not all finite.")
        return torch.from_numpy(array.copy()).to(self._device)

    def reset(self) -> Tensor:
        """Put the round's global weights into the network, and return them, shape (P,)."""
        if self._weights is None:
            raise MessageError("an attempt must begin with the global weights.")
        # Counters, and buffers that are not part of the weights, must not wander between sites.
        for name, buffer in self.net.named_buffers():
            buffer.copy_(self._buffers[name])
        vector.load(self.net, self._weights)
        self._begun = [b.clone() for b in self.net.buffers() if b.is_floating_point()]
        self.net.train()
        return self._weights

    def has_moved(self) -> bool:
        """Whether any floating-point buffer has changed since `reset`."""
        now = [b for b in self.net.buffers() if b.is_floating_point()]
        return not all(old.equal(new) for old, new in zip(self._begun, now, strict=True))


def _seed(secret: Randomness, purpose: str) -> int:
    """A seed for torch's generators."""
    return int.from_bytes(secret.token(8, purpose), "big") >> 1


class Site:
    """One hospital's side of a run.

    Guarantees:
        What leaves is the aggregator's messages and refusals.  The aggregator is given what
        `SitePrivacy.release` returned and nothing else.
        An attempt is answered in order: an older one, or one of another run, is refused.
        A vector is released once an attempt, whatever the aggregator asks: a second one would
        spend privacy that was not planned.
        With an account, an attempt stands in the ledger before its training begins, and is never
        made twice, also not after a restart.
        With a policy, no message is answered of a run that is below one of its floors.

    Attributes:
        workplace: Where it computes.
        warnings: What the hospital's own people should be told; never sent.
    """

    def __init__(
        self,
        setting: Setting,
        site: SiteId,
        examples: Examples,
        workplace: Workplace,
        *,
        identity: Identity | None = None,
        journal: Journal | None = None,
        policy: SitePolicy | None = None,
        account: Account | None = None,
    ) -> None:
        """Refuse what the site does not allow, and prepare its images.

        Args:
            setting: What every party knows.
            site: Its number.
            examples: Its data.
            workplace: Where it computes.
            identity: Signs for it; None without a directory.
            journal: What it must not forget over a restart; one in memory if None.
            policy: Its floors.
            account: What is charged for each attempt.

        Raises:
            RefusalError: The run is below a floor, or does not fit the account's budget.
            LedgerError: The account's ledger cannot be used.
        """
        import torch

        self._account, self._price = account, Price.of(setting.plan)
        self.warnings: tuple[str, ...] = ()
        if policy is not None:
            policy.admit(setting)
        if account is not None:
            account.admit(setting.session, self._price, setting.cohort.attempts)
            if account.budget is not None:
                self.warnings = tuple(filter(None, [account.drift(examples.fingerprint)]))
        self._setting = setting
        self._site = site
        self.workplace = workplace
        images = torch.from_numpy(examples.images).float().div_(255)
        self._images = setting.model.prepare(images).to(setting.device)
        self._labels = torch.from_numpy(examples.labels).to(setting.device)
        self._patients = examples.patients
        self._state: Mapping[str, Tensor] = {}
        self._pending: Mapping[str, Tensor] = {}
        self._attempt = self._round = self._released = -1
        member = Member(
            site=site,
            secret=setting.secret(f"aggregation {site}", private=True),
            identity=identity,
            journal=journal or MemoryJournal(),
        )
        self._session = setting.aggregator.site(setting.sum, member)

    def answer(self, common: bytes, own: bytes) -> bytes:
        """The reply to one request; a refusal, too, is a message.

        Whatever the bytes are, it does not raise: only a fault in a plugin's own code does.

        Args:
            common: A `Request`, untrusted.
            own: The aggregator's part for this site alone, untrusted.
        """
        attempt = stage = 0
        try:
            request = self.workplace.read(common)
            attempt, stage = request.attempt, request.stage
            self._admit(request)
            ask = Ask(round=request.round, attempt=attempt, common=request.body, own=own)
            body = self._session.answer(ask, lambda: self._release(request))
        except RefusalError as refusal:
            return messages.encode(Refusal(attempt, stage, refusal.code, refusal.reason))
        except MessageError as error:
            return messages.encode(Refusal(attempt, stage, "malformed", str(error)))
        return messages.encode(Reply(attempt, stage, body))

    def _admit(self, request: Request) -> None:
        """Refuse what is of another run, over, or out of bounds; begin an attempt that is new."""
        cohort = self._setting.cohort
        if request.session != self._setting.session:
            raise RefusalError("session", "the request belongs to another run.")
        if request.attempt < self._attempt or request.round < self._round:
            raise RefusalError("stale", "the request belongs to an attempt that is over.")
        if request.round >= cohort.rounds or request.attempt >= cohort.attempts:
            raise RefusalError("budget", "the study has no such round or attempt.")
        if request.attempt == self._attempt:
            if request.round != self._round:
                raise RefusalError("stale", "an attempt cannot move to another round.")
            return
        if request.weights is None:
            raise RefusalError("weights", "an attempt must begin with the global weights.")
        if request.round > self._round:
            self._state = self._pending
        self._round, self._attempt = request.round, request.attempt

    def _release(self, request: Request) -> RingVector:
        """Train for the round, and release the result through the privatizer."""
        import torch

        if self._released == request.attempt:
            raise RefusalError("order", "this attempt's vector has been released already.")
        self._released = request.attempt
        setting = self._setting
        if self._account is not None:
            # Before training: a refusal after it tells something of the data, and is paid for.
            self._account.charge(setting.session, request.round, request.attempt, self._price)
        secret = setting.secret("privacy", private=setting.plan.guarantee is not None)
        secret = secret.fork(request.round, request.attempt, self._site)
        private = setting.plan.site(secret, self._patients)
        private = guarded(private, setting.plan.guarantee, setting.work)
        # As secret as the batches: an example's flips depend on who else was drawn before it, so
        # whoever knew the draws would see more of one example than its clipped gradient.
        generator = torch.Generator().manual_seed(_seed(secret, "augmentation"))
        self.workplace.reset()
        task = Task(
            net=self.workplace.net,
            images=self._images,
            labels=self._labels,
            classes=len(setting.spec.classes),
            round=request.round,
            rounds=setting.cohort.rounds,
            work=setting.work,
            generator=generator,
            state=self._state,
        )
        with torch.random.fork_rng(devices=[]):
            # Layers such as Dropout draw from torch's global generator.  Without an accelerator
            # torch.manual_seed would keep, for each kind there is, a call to make should one come.
            seeded = setting.device == "cpu"
            seed = torch.default_generator.manual_seed if seeded else torch.manual_seed
            seed(_seed(secret, "layers"))
            trained = setting.trainer.train(task, private)
        self._require_still()
        self._pending = trained.state
        return private.release(trained.vector, trained.weight)

    def _require_still(self) -> None:
        """Refuse buffers that moved under example-level privacy: no noise covers them."""
        guarantee = self._setting.plan.guarantee
        if guarantee is None or guarantee.unit == "site":
            return
        if self.workplace.has_moved():
            raise RefusalError(
                "statistics", "the model keeps statistics of the data, which no noise covers."
            )


@frozen
class Recipe:
    """How to make a simulated site in any process; see `protocols.SiteRecipe`."""

    setting: Setting
    site: SiteId
    examples: Examples = field(repr=False)
    identity: Identity | None = None
    policy: SitePolicy | None = None
    account: Account | None = None

    def open(self, beside: OpenSite | None = None) -> Site:
        """Make the site, sharing the resident network of `beside`."""
        place = beside.workplace if isinstance(beside, Site) else Workplace(self.setting)
        return Site(
            self.setting,
            self.site,
            self.examples,
            place,
            identity=self.identity,
            policy=self.policy,
            account=self.account,
        )
