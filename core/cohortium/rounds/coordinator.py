"""The coordinator: a state machine that sees only sums.

It has the global weights, and uses no socket, thread or clock. A caller begins an attempt, sends
the result of `next_requests`, and passes each reply to `receive`. When no request is left,
`finish_attempt` moves the weights.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from cohortium import parameters
from cohortium.catalog.part_results import (
    planned_round,
    require_plan_state,
    require_protocol,
    require_result,
)
from cohortium.errors import (
    MessageError,
    RefusalCode,
    RunError,
    StudyError,
    TooFewSitesError,
)
from cohortium.messages import codec
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.ring.ring import RingSum
from cohortium.roles.events import SiteFailed
from cohortium.roles.sessions import MAX_STAGES, CoordinatorSession
from cohortium.roles.values import ReleasedMean, StageRequests
from cohortium.rounds import server_state
from cohortium.text import elide_middle, escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.roles.protocols import Trainer
    from cohortium.roles.values import SiteId
    from cohortium.rounds.run_config import RunConfig


@frozen(kw_only=True)
class AttemptResult:
    """Result of one attempt.

    Attributes:
        contributors: Sites in the sum.
        dropped: Sites that were asked and are not in the sum.
        failures: Reasons of the dropped sites that reported one.
        upload_bytes: The largest number of bytes that one site sent.
        measured: The sum of a statistic's rows.  Empty where the sites train.
    """

    contributors: tuple[SiteId, ...]
    dropped: tuple[SiteId, ...]
    failures: tuple[SiteFailed, ...]
    upload_bytes: int
    measured: tuple[float, ...] = ()


class Coordinator:
    """The study lead's side of a run.

    Guarantees:
        A failed attempt leaves the weights, the server optimizer, the plan's state and the
        trainer's server state as they were.
        A reply that is missing, malformed or a refusal drops its site from the attempt.
        Only a site's first reply to a request counts.
        A later reply, or a reply that belongs to another attempt or stage, changes nothing.
        So a late reply cannot be taken for a due one.
    """

    def __init__(self, run_config: RunConfig) -> None:
        """Build the initial network and the server optimizer.

        Raises:
            StudyError: The aggregator cannot serve this cohort.
        """
        self._run_config = run_config
        self._session = run_config.aggregator.coordinator_session(
            run_config.sum, run_config.secret("coordinator", private=True)
        )
        self.net = run_config.network()
        require_protocol(
            run_config.aggregator, "coordinator_session", self._session, CoordinatorSession
        )
        self.optimizer, self.schedule = _server_optimizer(
            run_config.trainer,
            parameters.trainable(self.net),
            run_config.federation_spec.rounds,
        )
        self._length = parameters.length(self.net)
        self.server_state = server_state.initial_server_state(run_config.trainer, self._length)
        self.plan_state = require_plan_state(
            run_config.plan, "initial_state", run_config.plan.initial_state
        )
        self.round_plan = planned_round(run_config.plan, 0, self.plan_state)
        self._round = self._attempt = self._stage = 0
        self._asked: tuple[SiteId, ...] = ()
        self._failures: dict[SiteId, SiteFailed] = {}
        self._late_replies: dict[SiteId, SiteFailed] = {}
        self._answered: set[SiteId] = set()
        self._uploads: dict[SiteId, int] = {}

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002
        """Begin `attempt` at `round` among `sites`."""
        self._round, self._attempt, self._stage = round, attempt, 0
        self.round_plan = planned_round(self._run_config.plan, round, self.plan_state)
        self._asked, self._failures, self._late_replies = tuple(sites), {}, {}
        self._uploads = dict.fromkeys(sites, 0)
        self._session.begin_attempt(round, attempt, sites)

    def next_requests(self) -> StageRequests:
        """Return the requests to send now.

        The result is empty when the attempt is complete or cannot be completed.

        Raises:
            RunError: The aggregator returns something else, or asks without end.
        """
        asked = self._session.next_requests()
        is_right = isinstance(asked, StageRequests)
        require_result(
            self._session, "next_requests", asked, is_right, "StageRequests", error=RunError
        )
        if not asked:
            return asked
        wanted = f"no more than {MAX_STAGES} requests in an attempt"
        is_right = self._stage < MAX_STAGES
        require_result(self._session, "next_requests", asked, is_right, wanted, error=RunError)
        first = self._stage == 0
        request = Request(
            session=self._run_config.session,
            round=self._round,
            attempt=self._attempt,
            stage=self._stage,
            weights=self._weights() if first else None,
            body=asked.broadcast,
            plan_state=self.plan_state if first else (),
            server_state=server_state.encode_server_state(self.server_state) if first else None,
        )
        self._stage += 1
        self._answered = set()
        return StageRequests(codec.encode(request), asked.per_site, asked.stage)

    def _weights(self) -> memoryview:
        """Return the global weights as they are sent."""
        return parameters.flatten(self.net).cpu().numpy().view(np.uint8).data

    def receive(self, site: SiteId, reply: bytes) -> bool:
        """Process one site's reply, and return whether it was used."""
        if site not in self._uploads or site in self._failures or site in self._answered:
            return False
        self._uploads[site] += len(reply)
        try:
            message: Reply | Refusal = codec.decode_either(reply, Reply, Refusal)
        except MessageError as error:
            self._fail(site, RefusalCode.MALFORMED, str(error))
            return False
        if (message.attempt, message.stage) != (self._attempt, self._stage - 1):
            stray = "its reply belongs to another attempt or stage."
            if isinstance(message, Refusal):
                # A site that cannot decode a request cannot name its attempt either.
                stray = f"{stray} It is a refusal ({message.code}): {message.reason}"
            self._late_replies[site] = self._failure(site, RefusalCode.STALE, stray)
            return False
        self._answered.add(site)
        self._late_replies.pop(site, None)
        if isinstance(message, Refusal):
            self._fail(site, message.code, message.reason)
        else:
            try:
                self._session.receive(site, message.body)
            except MessageError as error:
                self._fail(site, RefusalCode.MALFORMED, str(error))
        return site not in self._failures

    def finish_attempt(self) -> AttemptResult:
        """End the attempt and move the weights, or return the measured sum.

        Raises:
            TooFewSitesError: Too few sites replied. The weights have not moved.
        """
        try:
            total = self._session.sum()
        except TooFewSitesError as error:
            raise TooFewSitesError(f"{error}{self._reasons()}") from error
        self._require_sum(total)
        need = self._run_config.federation_spec.min_contributors
        if len(total.contributors) < need:
            raise TooFewSitesError(
                f"{len(total.contributors)} sites contributed, but min_contributors is {need}."
                f"{self._reasons()}"
            )
        mean, next_state = self._decoded(total), self.round_plan.next_state(total)
        next_state = require_plan_state(self.round_plan, "next_state", next_state)
        measured: tuple[float, ...] = ()
        if self._run_config.statistic is None:
            next_server_state = self._next_server_state(mean, len(total.contributors))
            self._step(mean)
            self.server_state = next_server_state
        else:
            measured = self._sums(mean, len(total.contributors))
        self.plan_state = next_state
        return AttemptResult(
            contributors=total.contributors,
            dropped=tuple(s for s in self._asked if s not in total.contributors),
            failures=self.failures,
            upload_bytes=max(self._uploads.values(), default=0),
            measured=measured,
        )

    def _require_sum(self, total: object) -> None:
        """Refuse a sum that is none of this attempt's sites.

        Raises:
            RunError: The aggregator returned it.
        """
        run_config, asked = self._run_config, set(self._asked)
        is_right = (
            isinstance(total, RingSum)
            and total.ring == run_config.sum.ring
            and total.words.shape == (run_config.sum.length,)
            and len(set(total.contributors)) == len(total.contributors)
            and asked.issuperset(total.contributors)
        )
        wanted = f"a RingSum of {run_config.sum.length:,} elements over sites that were asked"
        require_result(self._session, "sum", total, is_right, wanted, error=RunError)

    def _decoded(self, total: RingSum) -> Tensor:
        """Return the mean that `total` encodes, shape (P + E,)."""
        import torch

        mean: object = self.round_plan.decode(total)
        run_config = self._run_config
        length = (
            self._length
            + server_state.extra_length(run_config.trainer, run_config.workload, self._length)
            if run_config.statistic is None
            else len(run_config.statistic.cells)
        )
        is_right = (
            isinstance(mean, torch.Tensor) and mean.shape == (length,) and mean.is_floating_point()
        )
        wanted = f"a tensor of shape ({length},)"
        require_result(self.round_plan, "decode", mean, is_right, wanted, error=RunError)
        assert isinstance(mean, torch.Tensor)
        return mean

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with `weights` in place of the initial ones.

        Raises:
            StudyError: Frozen parameters differ from those that the sites build.
            RunError: They are of another network.
        """
        import torch

        # Each site builds frozen parameters itself and never receives them.
        for name, piece in self.net.named_parameters():
            given = None if piece.requires_grad else weights.get(name)
            if given is not None and not torch.equal(given, piece.detach().cpu()):
                raise StudyError(
                    f"the weights have another frozen parameter {name} than the network that the "
                    "study makes; give [federation] the seed of the run that trained them."
                )
        try:
            parameters.load_state_dict(self.net, weights)
        except ValueError as error:
            raise RunError(
                f"the weights are of another network than the study makes: {error}."
            ) from error

    def state(self) -> dict[str, Any]:
        """Return the weights, the server optimizer, its schedule, and the states of two plugins.

        These are the plan's state and the trainer's server state.
        """
        return {
            "weights": parameters.state_dict(self.net),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **({"plan": list(self.plan_state)} if self.plan_state else {}),
            **({} if self.server_state is None else {"trainer": self.server_state}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state` returned, in this process or another.

        Raises:
            RunError: The state belongs to another model or another server optimizer.
        """
        try:
            self._try_step(state)
            parameters.load_state_dict(self.net, state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.plan_state = tuple(map(float, state.get("plan", ())))
            if self.server_state is not None:
                self.server_state = _like(self.server_state, state["trainer"])
        except Exception as error:  # an optimizer may raise any for a foreign state
            reason = " ".join(str(error).split()).rstrip(".")
            raise RunError(
                "the checkpoint is of another network or server optimizer than the study makes "
                f"now ({type(error).__name__}: {elide_middle(reason)}); resume with the versions "
                "with which the run started."
            ) from error

    def _try_step(self, state: Mapping[str, Any]) -> None:
        """Raise the error of the next step from a stored state, with a copy of all that moves.

        An optimizer takes any state, and reads it only in its step.
        """
        import torch

        net, rounds = copy.deepcopy(self.net), self._run_config.federation_spec.rounds
        trainable = parameters.trainable(net)
        optimizer, schedule = _server_optimizer(self._run_config.trainer, trainable, rounds)
        optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        schedule.load_state_dict(copy.deepcopy(state["schedule"]))
        for parameter in trainable:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        if schedule.last_epoch < rounds:
            schedule.step()

    @property
    def failures(self) -> tuple[SiteFailed, ...]:
        """Reasons of the sites that failed in this attempt."""
        # A site that sent only late replies has failed as well.
        return tuple((self._late_replies | self._failures).values())

    def _next_server_state(self, mean: Tensor, contributors: int) -> Tensor | None:
        if self.server_state is None:
            return None
        run_config = self._run_config
        whole = mean.detach().cpu()
        released = ReleasedMean(
            vector=whole[: self._length],
            extra=whole[self._length :],
            round=self._round,
            rounds=run_config.federation_spec.rounds,
            steps=run_config.workload.steps,
            share=contributors / run_config.federation_spec.sites,
        )
        return server_state.next_server_state(run_config.trainer, self.server_state, released)

    def _step(self, mean: Tensor) -> None:
        """Apply the server optimizer to the pseudo-gradient, and move the statistics.

        The statistics move by their mean.
        """
        import torch

        mean = mean.to(self._run_config.device)
        is_gradient = self._run_config.workload.output == "gradient"
        position = 0
        for parameter in parameters.trainable(self.net):
            piece = mean[position : position + parameter.numel()].view_as(parameter)
            piece = piece.to(parameter.dtype)
            parameter.grad = piece if is_gradient else -piece
            position += parameter.numel()
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for buffer in parameters.statistics(self.net):
                buffer.add_(mean[position : position + buffer.numel()].view_as(buffer))
                position += buffer.numel()

    def _sums(self, mean: Tensor, contributors: int) -> tuple[float, ...]:
        """Return the sum of a statistic's rows over the contributors' units.

        These are their examples, or one example of each patient where patients are protected.
        """
        per_site = self._run_config.measured_units / self._run_config.federation_spec.sites
        return tuple((mean.double() * (contributors * per_site)).tolist())

    def _fail(self, site: SiteId, code: str, reason: str) -> None:
        self._failures[site] = self._failure(site, code, reason)

    def _failure(self, site: SiteId, code: str, reason: str) -> SiteFailed:
        return SiteFailed(
            round=self._round,
            attempt=self._attempt,
            site=site,
            code=escape_control_characters(str(code)),
            reason=escape_control_characters(reason),
        )

    def _reasons(self) -> str:
        """Return the reasons why sites failed, each once, for an error message."""
        by_reason: dict[str, list[SiteId]] = {}
        for failure in self.failures:
            by_reason.setdefault(failure.reason, []).append(failure.site)
        return "".join(
            f" Site{'s' if len(sites) > 1 else ''} {', '.join(map(str, sites))}: {reason}"
            for reason, sites in by_reason.items()
        )


def _like(own: Tensor, stored: Any) -> Tensor:
    """Return a stored server state, which must have the form of the trainer's own."""
    if (stored.shape, stored.dtype) != (own.shape, own.dtype):
        raise ValueError("the trainer's server state has another form")
    found: Tensor = stored
    return found


def _server_optimizer(
    trainer: Trainer, trainable: Sequence[nn.Parameter], rounds: int
) -> tuple[Optimizer, LRScheduler]:
    """Return the server optimizer of `trainer` and its schedule.

    Raises:
        PluginError: The trainer returns something else.
    """
    found: object = trainer.make_server_optimizer(trainable, rounds)
    is_right = (
        isinstance(found, tuple)
        and len(found) == 2  # noqa: PLR2004 - optimizer and schedule
        and all(hasattr(each, "step") and hasattr(each, "state_dict") for each in found)
    )
    wanted = "a tuple of an optimizer and its schedule"
    require_result(trainer, "make_server_optimizer", found, is_right, wanted)
    assert isinstance(found, tuple)
    optimizer, schedule = found
    return optimizer, schedule
