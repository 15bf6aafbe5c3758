"""The engine `ray`, on a cluster of two workers on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from attrs import define, field, frozen

from cohortium.errors import RefusalError, StudyError
from cohortium.plugin import LocalResult, LocalTask, SitePrivatizer
from cohortium.roles.sessions import SiteHandle
from cohortium.study.measurement import EvaluationPlan
from cohortium_fedavg import FedAvg
from cohortium_gaussian import Gaussian
from cohortium_ray import Ray
from cohortium_secagg import SecAgg
from tests.support.federations import FaultyEngine, QuadrantImages, tiny_federation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _cluster(ray_cluster: None) -> Iterator[None]:
    """The workers cannot import this module."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


@frozen(kw_only=True)
class Mortal(FedAvg):
    """Kills the process that it trains in, once, in the middle of round 1."""

    alive: str = ""
    driver: int = field(factory=os.getpid)

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        if task.round == 1 and os.getpid() != self.driver:  # which rehearses the round
            # The workers are here at the same time: one of them gets through.
            with contextlib.suppress(FileNotFoundError):
                Path(self.alive).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().train(task, privatizer)


@pytest.fixture
def mortal(tmp_path: Path) -> Mortal:
    (tmp_path / "alive").touch()
    return Mortal(alive=str(tmp_path / "alive"))


@pytest.mark.parametrize(
    "privatizer",
    [Gaussian(clip_norm=1.0), Gaussian(unit="site", clip_norm=0.1, target_unclipped=0.5)],
    ids=["fixed-clip", "adaptive-clip"],
)
def test_ray_engine_matches_inline_bits(privatizer: Gaussian) -> None:
    terms: dict[str, Any] = {"aggregator": SecAgg(), "insecure_seeded_secrets": True}
    terms |= {"privatizer": privatizer}
    here = tiny_federation(**terms, threads=1).run()
    there = tiny_federation(**terms, threads=1, engine=Ray()).run()
    assert there.weights_sha256 == here.weights_sha256


@pytest.mark.parametrize("every", [0, 1])
def test_evaluation_under_ray_releases_the_sum_of_inline(every: int) -> None:
    terms: dict[str, Any] = {
        "insecure_seeded_secrets": True, "privatizer": Gaussian(epsilon=3.0, clip_norm=1.0),
        "evaluation": EvaluationPlan(every=every, parts=("accuracy",)), "holdout_fraction": 0.4,
        "threads": 1,
    }  # fmt: skip
    sums = []
    for engine in ("inline", Ray()):
        evaluation = tiny_federation(**terms, engine=engine).run().evaluation
        assert evaluation is not None
        sums.append([event.measured for event in evaluation.history])
    assert sums[0] == sums[1]
    assert len(sums[0]) == (2 if every == 1 else 1)


def test_dead_worker_sites_drop_and_return(mortal: Mortal) -> None:
    terms: dict[str, Any] = {"aggregator": SecAgg(3, 6), "rounds": 3, "threads": 1}
    with pytest.warns(RuntimeWarning, match=r"a worker of the engine 'ray' is lost"):
        there = tiny_federation(**terms, trainer=mortal, engine=Ray(workers=2)).run()
    dropped = [event.dropped for event in there.history]
    assert dropped[0] == dropped[2] == ()
    assert dropped[1] in {(0, 2, 4), (1, 3, 5)}

    def lost(exchange: int, site: int, reply: bytes) -> bytes | None:
        vectors, after = 4, 4 + 2  # the second round has no set-up
        return None if vectors <= exchange < after and site in dropped[1] else reply

    # The trainer is mortal no more.
    here = tiny_federation(**terms, trainer=mortal, engine=FaultyEngine(lost)).run()
    assert here.weights_sha256 == there.weights_sha256


def test_dead_worker_release_is_not_repeated(mortal: Mortal, tmp_path: Path) -> None:
    study = tiny_federation(
        aggregator=SecAgg(), privatizer=Gaussian(clip_norm=1.0), trainer=mortal, retries=1,
        threads=1,
        engine=Ray(workers=2),
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="is lost"):
        result = study.run(out=tmp_path / "run")
    assert [event.attempt for event in result.history] == [0, 2]
    assert result.history[1].dropped == ()
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as book:
        charged = book.execute("SELECT attempt, count(*) FROM spend GROUP BY attempt").fetchall()
    # In the attempt that failed, those of the worker that lived, and the one that died of it.
    assert charged == [(0, 6), (1, 4), (2, 6)]


def test_ray_with_two_hundred_sites_matches_inline() -> None:
    study: dict[str, Any] = {"aggregator": SecAgg(), "sites": 200, "rounds": 2, "threads": 1}
    study |= {"dataset": QuadrantImages(examples=800), "evaluate_every": 0}
    here = tiny_federation(**study).run()
    there = tiny_federation(**study, engine=Ray()).run()
    assert there.weights_sha256 == here.weights_sha256
    assert there.dropouts == 0


@define
class Talker:
    """Answers with a mebibyte and more, or says how often it has done so."""

    answers: int = 0

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        if broadcast == b"how often?":
            return bytes([self.answers])
        self.answers += 1
        return bytes(1 << 20)


@frozen
class TalkerRecipe:
    beside: list[SiteHandle] = field(factory=list)

    def create(self, share_model_with: SiteHandle | None = None) -> Talker:
        return Talker()


def test_ray_workers_stop_after_reader_closes() -> None:
    exchange = Ray(workers=2).connect({site: TalkerRecipe() for site in range(40)})
    try:
        everyone = dict.fromkeys(range(40), b"")
        answers = exchange.exchange(b"talk", everyone)
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        # A worker takes one thing after the other, so what it had begun is done.
        answered = sum(reply[0] for _, reply in exchange.exchange(b"how often?", everyone))
        assert 1 <= answered <= 2 + 1
    finally:
        exchange.close()


@frozen
class Reluctant:
    """A site that cannot be made."""

    def create(self, share_model_with: SiteHandle | None = None) -> SiteHandle:
        raise RefusalError("floor", "the site wants none of it.")


def test_site_construction_failure_states_reason() -> None:
    with pytest.raises(RefusalError, match=r"^the site wants none of it\.$"):
        Ray(workers=1).connect({0: Reluctant()})


def test_more_workers_than_there_are_processors_are_refused() -> None:
    with pytest.raises(StudyError, match=r"has 2 processors, and 3 workers of 1 threads need 3"):
        Ray(workers=3).connect({0: Reluctant()})


def test_ray_refuses_deployment() -> None:
    with pytest.raises(StudyError, match="cannot serve hospitals"):
        Ray().connect(None)
