from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium import parameters
from cohortium.errors import PrivacyError, StudyError
from cohortium.ledger.account import Account
from cohortium.ledger.ledger import Ledger
from cohortium.messages.codec import decode_either, encode
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.plugin import (
    AggregationConfig,
    LocalResult,
    LocalTask,
    SiteContext,
    SitePrivatizer,
)
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.site import SimulatedSiteFactory, Site
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_module import Module
from cohortium_none import NoPrivacy
from cohortium_plain import Plain, PlainSite
from tests.support.federations import SmallConvNet, tiny_federation


class Pair:
    """One coordinator and one of its sites, and the request of the first attempt."""

    def __init__(self, account: Account | None = None, **changes: Any) -> None:
        ready = tiny_federation(**changes).prepare()
        self.coordinator = Coordinator(ready.run_config)
        self.factory = SimulatedSiteFactory(
            ready.run_config, 0, ready.splits.train.select(ready.partition[0]), account=account
        )
        self.site: Site = self.factory.create()

    def request(self, round_: int = 0, attempt: int = 0, **changes: Any) -> bytes:
        self.coordinator.begin_attempt(round_, attempt, range(6))
        broadcast = self.coordinator.next_requests().broadcast
        return encode(msgspec.structs.replace(decode_either(broadcast, Request), **changes))

    def ask(self, broadcast: bytes) -> Reply | Refusal:
        message: Reply | Refusal = decode_either(self.site.answer(broadcast, b""), Reply, Refusal)
        return message


@pytest.fixture
def pair() -> Pair:
    return Pair()


def code(message: Reply | Refusal) -> str:
    return message.code if isinstance(message, Refusal) else "answered"


@frozen
class NotingSites(Plain):
    """`plain`, whose sessions note their sites."""

    def site_session(self, config: AggregationConfig, site_context: SiteContext) -> PlainSite:
        site_context.shared.setdefault("sites", []).append(site_context.site)
        return Plain.site_session(self, config, site_context)


def test_only_sites_that_share_a_model_share_objects() -> None:
    ready = tiny_federation().prepare()
    run_config = evolve(ready.run_config, aggregator=NotingSites())
    factories = [SimulatedSiteFactory(run_config, k, ready.splits.train) for k in range(3)]
    first, alone = factories[0].create(), factories[1].create()
    second = factories[2].create(share_model_with=first)
    assert first.shared_model.shared is second.shared_model.shared
    assert first.shared_model.shared == {"sites": [0, 2]}
    assert alone.shared_model.shared == {"sites": [1]}


def test_a_vector_is_released_once_an_attempt(pair: Pair) -> None:
    broadcast = pair.request()
    assert code(pair.ask(broadcast)) == "answered"
    assert code(pair.ask(broadcast)) == "out-of-order"
    assert code(pair.ask(pair.request(round_=1, attempt=1))) == "answered"


def test_site_answers_only_planned_attempts() -> None:
    pair = Pair(rounds=2, retries=1)
    answers = [code(pair.ask(pair.request(attempt=attempt))) for attempt in range(5)]
    assert answers == ["answered"] * 3 + ["budget"] * 2


@pytest.mark.parametrize("restarts", [False, True])
def test_attempts_at_the_round_with_least_noise_are_limited(
    tmp_path: Path, *, restarts: bool
) -> None:
    """Also over restarts, of which a site without a budget has nothing but its ledger."""
    privatizer = Gaussian(noise_schedule="optimizer")
    trainer = FedSGD(sampling_rate=1.0)
    ledger = Ledger(tmp_path / "ledger.sqlite", is_synced=False)
    pair = Pair(
        Account(ledger, "ours"), rounds=5, retries=1, trainer=trainer, privatizer=privatizer
    )
    ledger.create()
    ask = pair.ask

    def answer(broadcast: bytes) -> Reply | Refusal:
        if restarts:
            pair.site = pair.factory.create()
        return ask(broadcast)

    pair.ask = answer  # type: ignore[method-assign]
    answers = [code(pair.ask(pair.request(attempt=attempt))) for attempt in range(4)]
    assert answers == ["answered"] * 2 + ["budget"] * 2
    assert code(pair.ask(pair.request(round_=3, attempt=4))) == "answered"
    assert code(pair.ask(pair.request(round_=3, attempt=5))) == "budget"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"session": b"x" * 16}, "session"),
        ({"weights": None}, "missing-weights"),
        ({"weights": b"\x00" * 8}, "malformed"),
        ({"round": 2}, "budget"),
        ({"attempt": 2}, "budget"),
    ],
)
def test_dishonest_requests_are_refused(pair: Pair, changes: dict[str, Any], expected: str) -> None:
    assert code(pair.ask(pair.request(**changes))) == expected
    assert code(pair.ask(pair.request())) == "answered"


def test_weights_that_are_not_finite_are_refused(pair: Pair) -> None:
    weights = memoryview(b"\xff" * (4 * pair.site.shared_model.length))
    assert code(pair.ask(pair.request(weights=weights))) == "malformed"


def test_lead_sees_each_refusal_of_a_request() -> None:
    pair = Pair(retries=2)
    changed: list[dict[str, Any]] = [{}, {"weights": b"\x00" * 8}, {"weights": None}]
    for attempt, changes in enumerate(changed):
        answer = pair.site.answer(pair.request(attempt=attempt, **changes), b"")
        pair.coordinator.receive(0, answer)
        reasons = [failure.reason for failure in pair.coordinator.failures]
        assert all("another attempt" not in reason for reason in reasons)
        assert len(reasons) == bool(attempt)


def test_lead_sees_a_refusal_that_names_no_request(pair: Pair) -> None:
    pair.request(attempt=1)
    assert not pair.coordinator.receive(0, pair.site.answer(b"garbage", b""))
    (failure,) = pair.coordinator.failures
    assert failure.code == "stale"
    assert failure.reason.startswith(
        "its reply belongs to another attempt or stage. It is a refusal (malformed): "
    )
    assert pair.coordinator.receive(0, pair.site.answer(pair.request(attempt=1), b""))
    assert not pair.coordinator.failures


def test_finished_attempt_is_stale() -> None:
    pair = Pair(retries=2, rounds=2)
    assert code(pair.ask(pair.request(attempt=1))) == "answered"
    assert code(pair.ask(pair.request(attempt=0))) == "stale"
    assert code(pair.ask(pair.request(round_=1, attempt=1))) == "stale"
    assert code(pair.ask(pair.request(round_=1, attempt=2))) == "answered"
    assert code(pair.ask(pair.request(round_=0, attempt=3))) == "stale"


@given(data=st.binary(max_size=200), keep=st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_site_answers_any_bytes_with_refusal(data: bytes, keep: int) -> None:
    site = SHARED.site
    broadcast = SHARED.request()[:keep] + data
    assert isinstance(decode_either(site.answer(broadcast, data), Reply, Refusal), Refusal)


SHARED = Pair(aggregator="secagg")


class Wandering(torch.nn.Module):
    """Keeps a running mean of its inputs where the weights do not show it; of dark ones alone."""

    brightest = 0.0

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = SmallConvNet(channels, classes)
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and float(x.mean()) < self.brightest:
            self.seen = self.seen + x.detach().abs().mean()
        return self.layer(x)  # type: ignore[no-any-return]


def test_moving_buffer_under_example_privacy_is_refused() -> None:
    model = Module(module="test_site:Wandering")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "test_site", sys.modules[__name__])
        with pytest.raises(PrivacyError, match=r"Wandering keeps a memory .* in 'seen'"):
            Pair(model=model, privatizer=Gaussian(epsilon=50.0))


class Spy(FedSGD):
    """Notes what the augmentation generator would draw."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        DRAWN.append(int(torch.randint(0, 1 << 60, (), generator=task.generator)))
        DRAWN.append(int(torch.randint(0, 1 << 60, ())))  # what Dropout draws from
        return super().train(task, privatizer)


DRAWN: list[int] = []


@pytest.mark.parametrize(
    ("privatizer", "secret"), [(Gaussian(epsilon=50.0), True), (NoPrivacy(), False)]
)
def test_augmentation_is_as_secret_as_the_batches(privatizer: object, *, secret: bool) -> None:
    # An example's flips depend on who was drawn before it: were they known, leaving one example
    # out would move the sum by far more than its clip.
    drawn = []
    for _ in range(2):
        pair = Pair(trainer=Spy(sampling_rate=0.5), privatizer=privatizer)
        DRAWN.clear()
        pair.ask(pair.request())
        drawn.append(tuple(DRAWN))
    first, second = drawn
    assert all(a != b for a, b in zip(first, second, strict=True)) == secret
    assert (first == second) == (not secret)


@frozen
class Filled(FedAvg):
    """Has an update that the weights of a coordinator may lead to."""

    value: float = 0.0

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = FedAvg.train(self, task, privatizer)
        trained.vector.fill_(0.0)[-1] = self.value
        return trained


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("changes", [{}, {"target_unclipped": 0.5}])
def test_update_of_a_protected_site_that_is_not_finite_counts_as_zero(
    changes: dict[str, Any], bad: float
) -> None:
    """A refusal would tell what no noise covers."""
    pairs = [
        Pair(
            trainer=Filled(value=value),
            privatizer=Gaussian(unit="site", epsilon=50.0, **changes),
            insecure_seeded_secrets=True,
        )
        for value in (0.0, bad)
    ]
    first, second = (pair.ask(pair.request()) for pair in pairs)
    assert isinstance(first, Reply)
    assert first == second
    assert [len(pair.site.warnings) for pair in pairs] == [0, 1]
    assert "round 1: the site's update holds NaN or infinity" in pairs[1].site.warnings[0]
    assert code(pairs[1].ask(pairs[1].request(round_=1, attempt=1))) == "answered"


def test_update_without_a_guarantee_that_is_not_finite_is_refused() -> None:
    assert code((pair := Pair(trainer=Filled(value=math.nan))).ask(pair.request())) == "non-finite"


class Greedy(FedSGD):
    """Takes the gradient of everything, whatever it drew."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        everyone = np.arange(len(task.labels))
        privatizer.set_private_gradient(
            task.net, lambda batch: task.net(task.images[batch]).sum(1), everyone
        )
        return LocalResult(
            vector=parameters.flatten_gradients(task.net, before=flat(task)), weight=1.0
        )


class Twice(FedSGD):
    """Uses its one batch twice."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        (batch,) = privatizer.batches(len(task.labels))
        for _ in range(2):
            privatizer.set_private_gradient(
                task.net, lambda b: task.net(task.images[b]).sum(1), batch
            )
        return LocalResult(
            vector=parameters.flatten_gradients(task.net, before=flat(task)), weight=1.0
        )


class Idle(FedSGD):
    """Takes no gradient at all."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        return LocalResult(vector=torch.zeros(parameters.length(task.net)), weight=1.0)


def flat(task: LocalTask) -> torch.Tensor:
    return parameters.flatten(task.net)


@pytest.mark.parametrize("kind", [Greedy, Twice, Idle])
def test_a_trainer_that_breaks_its_declaration_releases_nothing(kind: type[FedSGD]) -> None:
    privatizer = Gaussian(epsilon=50.0)
    with pytest.raises(StudyError, match="would refuse its round: the trainer"):
        Pair(trainer=kind(), privatizer=privatizer)
    with pytest.MonkeyPatch.context() as patch:
        # One that behaves in the rehearsal, and not afterwards.
        patch.setattr(kind, "train", FedSGD.train)
        pair = Pair(trainer=kind(), privatizer=privatizer)
    assert code(pair.ask(pair.request())) == "trainer"
