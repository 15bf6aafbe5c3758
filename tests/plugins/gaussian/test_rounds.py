"""What may differ between the rounds of a Gaussian run: the noise, and the clip norm."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cohortium import Federation, reporting
from cohortium.crypto.randomness import Randomness
from cohortium.errors import PrivacyError, RunError
from cohortium.learning.noise_response import ServerTrial, noise_response
from cohortium.ledger.ledger import Ledger
from cohortium.messages import codec
from cohortium.messages.run import Request
from cohortium.plugin import FederationSpec, RefusalError, RingSum, Workload, accounting
from cohortium_events import Events
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_gaussian._clip import RANGE
from cohortium_progress._plain_view import PlainView
from tests.support.federations import FaultyEngine, RecordingObserver, tiny_federation

WHOLE = Workload(output="gradient", steps=1, sampling_rate=1.0)
COHORT = FederationSpec(
    sites=4, cohort_size=4, min_contributors=4, max_colluding=1, examples=4000, rounds=48
)


def planned(federation_spec: FederationSpec = COHORT, **terms: Any) -> Any:
    trainer = FedSGD(sampling_rate=1.0)
    trial = ServerTrial(trainer, federation_spec.rounds)
    return Gaussian(**terms).plan(evolve(WHOLE, find_noise_response=trial), federation_spec, 10)


def noises(plan: Any, rounds: int = COHORT.rounds) -> np.ndarray[Any, np.dtype[np.float64]]:
    at = [plan.at_round(number, plan.initial_state).mechanism for number in range(rounds)]
    return np.array([mechanism.noise_multiplier for mechanism in at])


def test_response_of_momentum_is_that_of_its_recursion() -> None:
    rounds, momentum = 6, 0.9
    found = noise_response(FedSGD(learning_rate=0.5, schedule="constant"), rounds)
    for start in range(rounds):
        moved, velocity, squares = 0.0, 0.0, 0.0
        for now in range(rounds):
            velocity = momentum * velocity + (now == start)
            moved -= 0.5 * velocity
            squares += moved**2
        assert found[start] == pytest.approx(math.sqrt(squares), rel=1e-3)


@pytest.mark.parametrize("trainer", [FedSGD(optimizer="adam", optimizer_options={}), None])
def test_response_of_other_optimizers_is_unknown(trainer: FedSGD | None) -> None:
    assert noise_response(trainer or FedSGD(), 5 if trainer else 5000) == ()


def test_noise_by_round_moves_the_weights_less() -> None:
    response = np.array(noise_response(FedSGD(sampling_rate=1.0), COHORT.rounds))
    equal, sized = (noises(planned(noise_schedule=kind)) for kind in ("constant", "optimizer"))
    moved = [float(np.linalg.norm(response * each)) for each in (equal, sized)]
    # By Cauchy's inequality it can be no less than Σa / √(T Σa²), which is 0.755.
    assert moved[1] / moved[0] == pytest.approx(0.756, abs=0.002)


@given(
    rounds=st.integers(1, 60),
    retries=st.integers(0, 20),
    epsilon=st.floats(0.5, 8.0),
    statistics=st.integers(0, 10),
)
def test_noise_by_round_costs_what_was_asked(
    rounds: int, retries: int, epsilon: float, statistics: int
) -> None:
    trainer = FedSGD(sampling_rate=1.0, statistics_rounds=min(statistics, rounds - 1))
    federation_spec = evolve(COHORT, rounds=rounds, retries=retries)
    workload = evolve(WHOLE, find_noise_response=ServerTrial(trainer, rounds))
    plan = Gaussian(epsilon=epsilon, noise_schedule="optimizer").plan(workload, federation_spec, 3)
    each = noises(plan, rounds)
    cost = float(np.sum(each**-2)) + retries * float(each.min()) ** -2
    (spent,) = accounting.compose(
        [(accounting.GaussianMechanism(noise_multiplier=cost**-0.5), 1)], 1.9e-4
    )
    assert spent.epsilon == pytest.approx(plan.guarantee.epsilon, rel=1e-6)
    assert 0.99 * epsilon < plan.guarantee.epsilon <= epsilon * (1 + 1e-9)
    assert plan.guarantee.noise_multiplier == pytest.approx(each.min())


def test_noise_by_round_needs_whole_batches_and_a_linear_optimizer() -> None:
    trial = ServerTrial(FedSGD(), COHORT.rounds)
    sampled = evolve(WHOLE, sampling_rate=0.5, find_noise_response=trial)
    with pytest.raises(PrivacyError, match=r"set trainer\.sampling_rate to 1"):
        Gaussian(noise_schedule="optimizer").plan(sampled, COHORT, 3)
    with pytest.raises(PrivacyError, match="not linear"):
        Gaussian(noise_schedule="optimizer").plan(WHOLE, COHORT, 3)


def test_adaptive_clip_needs_one_gradient_a_round() -> None:
    local = FedAvg(local_epochs=2).workload(COHORT)
    with pytest.raises(PrivacyError, match="counts the gradients of one batch"):
        Gaussian(target_unclipped=0.5).plan(local, COHORT, 3)


def clipped_rounds(plan: Any, norms: Any, rounds: int) -> list[float]:
    """The clip norms of rounds in which each site's example k has the gradient norm `norms[k]`."""
    net = torch.nn.Linear(plan.parameters, 1, bias=False)
    inputs = torch.zeros(len(norms), plan.parameters)
    inputs[:, 0] = torch.from_numpy(norms)
    state, clips = plan.initial_state, []
    for number in range(rounds):
        here = plan.at_round(number, state)
        total = plan.ring.zeros(plan.length)
        for site in range(4):
            private = here.for_site(Randomness.insecure_from_seed(1).derive(number, site))
            losses = lambda batch: net(inputs[torch.from_numpy(batch)])[:, 0]  # noqa: E731
            private.set_private_gradient(net, losses, np.arange(len(norms)))
            assert net.weight.grad is not None
            total = total + private.release(net.weight.grad.flatten(), 1.0).words
        found = RingSum(plan.ring, total, (0, 1, 2, 3))
        mean = here.decode(found)
        # The clipped mean is the same, whatever the clip norm by which releases are scaled.
        wanted = np.minimum(norms, here.clip).sum() / plan.expected_batch
        noise = here.deviation / plan.expected_batch
        assert float(mean[0]) == pytest.approx(wanted, abs=6 * noise)
        state = here.next_state(found)
        clips.append(state[0])
    return clips


@pytest.mark.parametrize("noise", ["local", "distributed"])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.9])
def test_clip_follows_the_quantile_of_the_norms(noise: str, target: float) -> None:
    plan = planned(
        noise=noise, clip_norm=0.05, target_unclipped=target, clip_learning_rate=0.5, epsilon=20.0
    )
    norms = np.random.default_rng(2).lognormal(0.0, 1.0, 1000).astype(np.float32)
    clips = clipped_rounds(plan, norms, 48)
    assert clips[0] > 0.05
    settled = np.exp(np.log(clips[-12:]).mean())
    assert settled == pytest.approx(np.quantile(norms, target), rel=0.2)


def test_clip_stays_within_its_range() -> None:
    plan = planned(clip_norm=1.0, target_unclipped=0.5, clip_learning_rate=10.0)
    for size in (1e9, 0.0):
        clips = clipped_rounds(plan, np.full(50, size, np.float32), 4)
        assert all(1 / RANGE <= clip <= RANGE for clip in clips)


def test_site_counts_its_own_update() -> None:
    terms: dict[str, Any] = {"unit": "site", "target_unclipped": 0.5, "epsilon": 1e4}
    plan = Gaussian(clip_norm=1.0, noise="distributed", **terms).plan(WHOLE, COHORT, 20)
    here = plan.at_round(0, (1.0,))
    for size, moved in ((0.1, math.exp(-0.2 * 0.5)), (10.0, math.exp(0.2 * 0.5))):
        vector = torch.full((20,), size / math.sqrt(20))
        words = [here.for_site(Randomness.system()).release(vector, 1.0).words for _ in range(4)]
        total = sum(words[1:], start=words[0])
        (clip,) = here.next_state(RingSum(plan.ring, total, (0, 1, 2, 3)))
        assert clip == pytest.approx(moved, rel=0.05)


ADAPTIVE: dict[str, Any] = {
    "trainer": FedSGD(sampling_rate=1.0, learning_rate=0.3),
    "privatizer": Gaussian(
        clip_norm=0.05, target_unclipped=0.5, noise="distributed", noise_schedule="optimizer"
    ),
    "aggregator": "secagg",
    "min_contributors": 5,
    "max_colluding": 1,
    "rounds": 4,
    "retries": 1,
    "insecure_seeded_secrets": True,
}


def test_a_run_charges_what_it_guarantees(tmp_path: Path) -> None:
    recorder = RecordingObserver()
    study = evolve(tiny_federation(**ADAPTIVE), insecure_seeded_secrets=False, retries=0)
    result = study.run(tmp_path / "run", observers=[recorder])
    assert result.guarantee is not None
    with Ledger(tmp_path / "run" / "ledger.sqlite").read_transaction() as book:
        costs = book.charge_counts(book.names()[0])
    assert len(costs) > 1
    spends = [(cost.mechanism, times) for cost, times in costs.items()]
    (spent,) = accounting.compose(spends, result.guarantee.delta)  # type: ignore[arg-type]
    assert spent.epsilon == pytest.approx(result.guarantee.epsilon)
    assert result.history[-1].guarantee_so_far == result.guarantee


def test_clip_norm_of_each_round_is_seen(tmp_path: Path) -> None:
    recorder = RecordingObserver()
    folder = tmp_path / "run"
    study: Federation = tiny_federation(**ADAPTIVE)
    result = study.run(folder, observers=[recorder, Events()])
    clips = [event.plan_state[0] for event in result.history]
    assert [row["plan_state"] for row in result.history.rows()] == clips
    assert len(set(clips)) > 1
    stored = json.loads((folder / "result.json").read_text())
    assert [row["plan_state"] for row in stored["history"]] == clips
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    completed = [line for line in lines if line["event"] == "RoundCompleted"]
    assert [line["plan_state"] for line in completed] == [[clip] for clip in clips]
    page = reporting.write([folder]).read_text()
    assert "plan state</th>" in page
    assert all(f'<td class="n">{clip:.4g}</td>' in page for clip in clips)
    printed = io.StringIO()
    show = PlainView(Console(file=printed, width=200))
    for event in recorder.events:
        show(event)
    assert all(f"plan state {clip:.4g}" in printed.getvalue() for clip in clips)


def test_history_of_a_fixed_clip_has_no_state() -> None:
    assert "plan_state" not in tiny_federation(rounds=1).run().history.rows()[0]


def changed_state(request: bytes, state: tuple[float, ...]) -> bytes:
    message = codec.decode(request, Request)
    return codec.encode(
        Request(
            session=message.session,
            round=message.round,
            attempt=message.attempt,
            stage=message.stage,
            weights=message.weights,
            body=message.body,
            plan_state=state,
        )
    )


@pytest.mark.parametrize("state", [(), (1e9,), (0.05, 0.05), (0.0,)])
def test_site_refuses_a_clip_that_the_study_does_not_have(state: tuple[float, ...]) -> None:
    prepared = tiny_federation(**ADAPTIVE).prepare()
    site = prepared.site_factory(0).create()
    engine = FaultyEngine(lambda _count, _site, reply: reply)
    evolve(tiny_federation(**ADAPTIVE), engine=engine, rounds=1).run()
    broadcast, own = engine.log[0]
    honest = codec.decode(broadcast, Request)
    assert honest.plan_state == (0.05,)
    again = evolve(prepared, run_config=evolve(prepared.run_config, session=honest.session))
    site = again.site_factory(0).create()
    reply = site.answer(changed_state(broadcast, state), own[0])
    assert b"clip norm" in reply
    # Nothing of the attempt was begun, so the honest request is answered.
    assert b"clip norm" not in site.answer(broadcast, own[0])


def test_a_fixed_clip_takes_no_other() -> None:
    plan = planned()
    assert plan.initial_state == ()
    with pytest.raises(RefusalError, match="clip norm is fixed"):
        plan.at_round(0, (2.0,))


def test_failed_round_leaves_the_clip_as_it_was() -> None:
    lost = FaultyEngine(lambda count, site, reply: None if count == 2 and site < 3 else reply)
    study: Federation = tiny_federation(**(ADAPTIVE | {"engine": lost}))
    with contextlib.suppress(RunError):  # an attempt that fails at its end has spent the retry
        study.run()
    states = [codec.decode(request, Request) for request, _ in lost.log]
    first = [each for each in states if each.weights is not None]
    by_round: dict[int, set[tuple[float, ...]]] = {}
    for each in first:
        by_round.setdefault(each.round, set()).add(each.plan_state)
    assert len(first) > len(by_round)
    assert all(len(clips) == 1 for clips in by_round.values())


def trained(privatizer: Gaussian, trainer: FedSGD | FedAvg) -> torch.Tensor:
    """The weights after two rounds with seeded noise, shape (P,)."""
    study = tiny_federation(
        privatizer=privatizer, trainer=trainer, aggregator="additive", rounds=2,
        min_contributors=6, max_colluding=1, insecure_seeded_secrets=True,
    )  # fmt: skip
    result = study.run()
    return torch.cat([value.flatten() for value in result.weights.values()])


@pytest.mark.parametrize("target", [0.0, 0.5])
@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_rescaled_run_is_the_same_for_every_clip(target: float, noise: Any) -> None:
    # Every gradient is far above both clips, so a clipped sum is a multiple of the clip.
    small = Gaussian(
        epsilon=50.0, delta=1e-3, clip_norm=1e-6, noise=noise, target_unclipped=target,
        rescale_to_unit_norm=True,
    )  # fmt: skip
    trainer = FedSGD(sampling_rate=1.0, learning_rate=0.1)
    wanted = trained(small, trainer)
    torch.testing.assert_close(trained(evolve(small, clip_norm=2e-6), trainer), wanted)
    plain = evolve(small, rescale_to_unit_norm=False)
    if not target:
        found = trained(plain, evolve(trainer, learning_rate=1e5))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_rescaled_steps_of_a_site_are_the_same_for_every_clip() -> None:
    small = Gaussian(epsilon=50.0, delta=1e-3, clip_norm=1e-6, rescale_to_unit_norm=True)
    trainer = FedAvg(local_steps=2, batch_size=8, learning_rate=0.1)
    wanted = trained(small, trainer)
    torch.testing.assert_close(trained(evolve(small, clip_norm=2e-6), trainer), wanted)
    initial = trained(evolve(small, rescale_to_unit_norm=False), trainer)
    assert (wanted - initial).norm() > 0.01  # a clip of 1e-6 alone leaves the weights in place


def test_rescaling_is_for_gradients() -> None:
    with pytest.raises(PrivacyError, match="set the server optimizer's rate instead"):
        planned(unit="site", rescale_to_unit_norm=True)
