"""A run that is broken off goes on as it began, or says why it cannot."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

from cohortium import Federation
from cohortium.errors import (
    CohortiumError,
    RefusalError,
    RequestError,
    RunError,
    StoppedError,
    StudyError,
)
from cohortium.ledger.ledger import Ledger
from cohortium.plugin import (
    DataSpec,
    EngineSession,
    LocalResult,
    LocalTask,
    SiteFactory,
    SiteId,
    SitePrivatizer,
)
from cohortium.roles.events import AttemptFailed, Event, RoundCompleted, RunFailed, RunStarted
from cohortium.runs.checkpoint import Checkpoint, RunFingerprint
from cohortium.runs.run_directory import RunDirectory
from cohortium.storage import tensor_tree
from cohortium.storage.atomic import UNFINISHED
from cohortium.storage.trainer_state import TrainerState, TrainerStateFile
from cohortium_events import Events
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_inline import Inline
from cohortium_secagg import SecAgg
from tests.support.federations import (
    FaultyEngine,
    QuadrantImages,
    RecordingObserver,
    tiny_federation,
)

STATE, JOURNAL = "checkpoint/state.safetensors", "checkpoint/run.log"


class Keeping(FedAvg):
    """Keeps half of what it sent, and adds it the next time."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = super().train(task, privatizer)
        vector = trained.vector + task.state.get("kept", torch.zeros(()))
        return evolve(trained, vector=vector, state={"kept": 0.5 * vector})


def after(rounds: int) -> Callable[[], bool]:
    """Says stop once `rounds` attempts have been made."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= rounds


def stopped(federation: Federation, folder: Path, rounds: int = 1, **more: Any) -> None:
    with pytest.raises(StoppedError, match=f"stopped after {rounds} of"):
        federation.run(folder, stop=after(rounds), **more)


SEEDED: dict[str, Any] = {"privatizer": Gaussian(unit="site"), "insecure_seeded_secrets": True}

QUICK = ("plain", "seeded", "adaptive")

STUDIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"trainer": FedSGD(schedule="cosine"), "cohort_size": 4},
    "adam": {"trainer": FedAvg(server_optimizer="adamw", server_learning_rate=0.02)},
    "stateful": {"trainer": Keeping(learning_rate=0.1), "cohort_size": 5},
    "secagg": {"aggregator": SecAgg()},
    "active": {"aggregator": SecAgg(), "adversary": "active"},
    "seeded": SEEDED,
    "adaptive": SEEDED | {"privatizer": Gaussian(unit="site", target_unclipped=0.5)},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in ("plain", "seeded", "adaptive") else [pytest.mark.slow]
        )
        for name in STUDIES
    ],
)
def test_resume_reaches_same_bits(tmp_path: Path, name: str) -> None:
    study = tiny_federation(rounds=4, **STUDIES[name])
    whole = study.run()
    folder = tmp_path / "run"
    stopped(study, folder, 1)
    with pytest.raises(StoppedError, match="stopped after 3 of 4"):
        study.resume(folder, stop=after(2))
    result = study.resume(folder)
    assert result.weights_sha256 == whole.weights_sha256
    assert result.scores == whole.scores
    assert [e.contributors for e in result.history] == [e.contributors for e in whole.history]
    assert [e.scores for e in result.history] == [e.scores for e in whole.history]
    assert result.dropouts == whole.dropouts
    with pytest.raises(RequestError, match=r"is finished; its result is .*result\.json"):
        study.resume(folder)


def test_resume_adds_times_and_replays_history(tmp_path: Path) -> None:
    study, folder, recorder = tiny_federation(rounds=3), tmp_path / "run", RecordingObserver()
    stopped(study, folder, 2)
    before = Checkpoint.read(folder / STATE)
    assert before is not None
    result = study.resume(folder, observers=[recorder])
    assert result.seconds.total > before.seconds
    (started,) = recorder.of(RunStarted)
    assert started.history == result.history[:2]
    assert started.rounds == 3


class CrashingEngine:
    """An engine that fails with a bare exception, in the middle of an exchange."""

    def __init__(self, at: int) -> None:
        self.at = at

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        return CrashingSession(Inline().connect(sites), self)


class CrashingSession:
    def __init__(self, inner: EngineSession, engine: CrashingEngine) -> None:
        self.inner, self.engine = inner, engine

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        for letter in self.inner.exchange(broadcast, per_site, timeout):
            self.engine.at -= 1
            if self.engine.at == 0:
                raise KeyboardInterrupt
            yield letter

    def close(self) -> None:
        self.inner.close()


class LossyEngine:
    """An engine that loses the replies of the first sites."""

    def __init__(self, lost: int) -> None:
        self.lost = lost

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        return FaultyEngine(lambda _, k, reply: None if k < self.lost else reply).connect(sites)


class UnavailableEngine:
    """An engine that cannot work here."""

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        raise StudyError("the engine has no licence.")


class UnreachableEngine:
    """An engine whose hospitals are not there."""

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        assert sites is None
        return self

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        yield from ()

    def close(self) -> None: ...


def test_refused_start_leaves_no_run_directory(tmp_path: Path) -> None:
    privatizer = tiny_federation(engine=UnavailableEngine(), privatizer=Gaussian(unit="site"))
    spec = QuadrantImages().load().spec
    deployed = tiny_federation(
        engine=UnreachableEngine(), dataset=None, partitioner=None, data=spec
    )
    for study, words in ((privatizer, "no licence"), (deployed, "6 of 6 sites do not take part")):
        recorder = RecordingObserver()
        with pytest.raises(StudyError, match=words):
            study.run(tmp_path / "runs" / "first", observers=[recorder])
        assert not recorder.events
        assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "at", [7, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 4, 12))]
)
def test_resume_within_round_continues_from_previous_round(tmp_path: Path, at: int) -> None:
    recorder, power = RecordingObserver(), CrashingEngine(at)
    study = tiny_federation(rounds=3, engine=power, **SEEDED)
    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path / "run", observers=[recorder])
    assert recorder.of(RunFailed)
    result = study.resume(tmp_path / "run")
    assert result.weights_sha256 == tiny_federation(rounds=3, **SEEDED).run().weights_sha256
    with Ledger(tmp_path / "run" / "ledger.sqlite").read_transaction() as book:
        assert [sum(book.charge_counts(name).values()) for name in book.names()] == [3] * 6


def test_lost_private_attempt_uses_retry_then_round(tmp_path: Path) -> None:
    power = CrashingEngine(8)
    study = tiny_federation(rounds=3, engine=power, retries=1, privatizer=Gaussian(unit="site"))
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        study.run(folder)
    power.at = 2
    with pytest.raises(KeyboardInterrupt):
        study.resume(folder)
    recorder = RecordingObserver()
    result = study.resume(folder, observers=[recorder])
    assert [event.attempt for event in result.history] == [0, 3]
    assert result.rounds == 2
    warnings = recorder.of(RunStarted)[0].warnings
    assert any("1 attempt was started and not finished" in warning for warning in warnings)
    assert any("the run ends after 2 of its 3 rounds" in warning for warning in warnings)
    spent = result.history[-1].guarantee_so_far
    assert spent is not None
    assert result.guarantee is not None
    assert spent.epsilon <= result.guarantee.epsilon
    with Ledger(folder / "ledger.sqlite").read_transaction() as book:
        assert max(sum(book.charge_counts(name).values()) for name in book.names()) == 4


def test_run_resumed_in_a_round_of_little_noise_costs_no_more(tmp_path: Path) -> None:
    study: Federation = tiny_federation(
        rounds=3,
        trainer=FedSGD(sampling_rate=1.0),
        privatizer=Gaussian(noise_schedule="optimizer"),
        engine=CrashingEngine(8),
    )
    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path / "run")
    recorder = RecordingObserver()
    result = study.resume(tmp_path / "run", observers=[recorder])
    assert result.rounds == 1
    (started,) = recorder.of(RunStarted)
    assert any("and their noise differs: the run ends after 1" in each for each in started.warnings)
    spent, promised = study.prepare().run_config.plan.guarantee_after([0, 1]), result.guarantee
    assert spent is not None
    assert promised is not None
    assert spent.epsilon <= promised.epsilon


def test_a_run_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    power = LossyEngine(lost=4)
    study = tiny_federation(
        engine=power, min_contributors=3, privatizer=Gaussian(unit="site"), retries=2
    )
    recorder = RecordingObserver()
    with pytest.raises(RunError, match="round 1 failed: 2 sites answered"):
        study.run(tmp_path / "run", observers=[recorder])
    assert [event.attempt for event in recorder.of(AttemptFailed)] == [0, 1, 2]
    with Ledger(tmp_path / "run" / "ledger.sqlite").read_transaction() as book:
        assert [sum(book.charge_counts(name).values()) for name in book.names()] == [3] * 6
    power.lost = 0
    result = study.resume(tmp_path / "run")
    assert [event.attempt for event in result.history] == [3]


def other(**changes: Any) -> Any:
    return lambda _, study: evolve(study, **changes)


def damaged(name: str, change: Callable[[bytes], bytes]) -> Any:
    def damage(folder: Path, study: Federation) -> Federation:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return study

    return damage


def gone(*names: str) -> Any:
    def remove(folder: Path, study: Federation) -> Federation:
        for name in names:
            (folder / name).unlink()
        return study

    return remove


@frozen
class Changed(QuadrantImages):
    """The same study, and one pixel is not."""

    def load(self) -> Any:
        splits = super().load()
        splits.train.images[0, 0, 0, 0] ^= 1
        return splits


def changed_data(_: Path, study: Federation) -> Federation:
    # Says the same of itself.
    Changed.__qualname__, Changed.__module__ = "QuadrantImages", QuadrantImages.__module__
    return evolve(study, dataset=Changed())


REFUSED: list[tuple[Any, str]] = [
    (other(seed=2), "the study is not the one with which the run started"),
    (other(rounds=9), "put its study.toml back as it was"),
    (other(privatizer=Gaussian(unit="site", epsilon=7.0)), "the study is not the one"),
    (changed_data, "the training data, or their partition, differ from"),
    (damaged(STATE, lambda data: data[:-1]), "state.safetensors is damaged"),
    (damaged(STATE, lambda data: data[:20]), "state.safetensors is damaged"),
    (damaged(STATE, lambda _: b""), "state.safetensors is damaged"),
    (damaged(STATE, lambda data: data[:-9] + b"\x01" + data[-8:]), "not that which was written"),
    (damaged(JOURNAL, lambda data: data[:30] + b"?" + data[31:]), "journal .* is damaged in line"),
    (
        damaged(JOURNAL, lambda data: b"".join(data.splitlines(keepends=True)[:2])),
        "does not know of round",
    ),
    (damaged(JOURNAL, lambda _: b""), "run.log is gone, though the run had started"),
    (gone(JOURNAL), "run.log is gone, though the run had started"),
    (gone(STATE), "state.safetensors is gone, though the run had started"),
    (gone("study.toml"), "holds no run: there is no study.toml"),
    (gone("ledger.sqlite"), "ledger.sqlite is gone, though attempts are charged"),
    (gone("trainer_state/site-3.safetensors"), "site-3.safetensors is gone, though a site needs"),
    (
        damaged("trainer_state/site-3.safetensors", lambda data: data[:-1]),
        "site-3.safetensors is damaged",
    ),
]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Path]:
    """A study, and the folder of its run, which was stopped after two of three rounds."""
    study = tiny_federation(rounds=3, **SEEDED | {"trainer": Keeping(learning_rate=0.1)})
    folder = tmp_path_factory.mktemp("interrupted") / "good"
    stopped(study, folder, 2)
    return study, folder


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_resume_of_changed_run_is_refused_without_loss(
    interrupted: tuple[Federation, Path], tmp_path: Path, change: Any, words: str
) -> None:
    study, good = interrupted
    shutil.copytree(good, tmp_path / "bad")
    changed = change(tmp_path / "bad", study)
    with pytest.raises(CohortiumError, match=words) as error:
        changed.resume(tmp_path / "bad")
    assert str(error.value).count("\n") == 0
    # Put back as it was, it goes on.
    shutil.rmtree(tmp_path / "bad")
    shutil.copytree(good, tmp_path / "bad")
    assert study.resume(tmp_path / "bad").rounds == 3


def test_another_plan_of_the_same_study_is_refused() -> None:
    origin = RunFingerprint(study="a", data="b", plan="c", versions={"torch": "2", "old": "1"})
    now = evolve(origin, plan="d", versions={"torch": "3", "new": "1"})
    with pytest.raises(StudyError, match=r"plans this study's privacy differently .*torch 3 in pl"):
        origin.require(now)
    assert origin.changes(now) == (
        "new 1 in place of none", "old none in place of 1", "torch 3 in place of 2",
    )  # fmt: skip


def test_run_in_use_by_process_is_refused(tmp_path: Path) -> None:
    study, folder = tiny_federation(), tmp_path / "run"
    stopped(study, folder)
    with (
        RunDirectory.reopen(folder),
        pytest.raises(RequestError, match="another process is driving"),
    ):
        study.resume(folder)
    with RunDirectory.reopen(folder), pytest.raises(RequestError, match="is not finished"):
        study.run(folder)
    assert study.resume(folder).rounds == 2


@pytest.mark.slow
def test_run_folder_accepts_only_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    stopped(tiny_federation(), folder)
    with pytest.raises(
        RequestError, match=r"not finished: continue with `cohortium resume '.*a run'`"
    ):
        tiny_federation().run(folder)
    tiny_federation().resume(folder)
    with pytest.raises(RequestError, match="holds a finished run; give another folder"):
        tiny_federation().run(folder)
    (tmp_path / "empty").mkdir()
    for name, words in (("none", "does not exist"), ("empty", r"there is no study\.toml")):
        with pytest.raises(RequestError, match=words):
            tiny_federation().resume(tmp_path / name)


@pytest.mark.slow
def test_copied_run_directories_resume_independently(tmp_path: Path) -> None:
    study = tiny_federation(rounds=3, **SEEDED)
    stopped(study, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (study.resume(tmp_path / name) for name in ("one", "two"))
    assert one.weights_sha256 == two.weights_sha256


def test_resume_repairs_torn_and_missing_event_lines(tmp_path: Path) -> None:
    study, folder = tiny_federation(rounds=4), tmp_path / "run"
    stopped(study, folder, 3, observers=[Events()])
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # The second round's line was never written, and the third one's in part.
    path.write_bytes(lines[0] + lines[1] + lines[3][:40])
    study.resume(folder, observers=[Events()])
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [e["event"] for e in events] == [
        "RunStarted", "RoundCompleted", "RoundCompleted", "RoundCompleted", "RunStarted",
        "RoundCompleted", "RunCompleted",
    ]  # fmt: skip
    assert [e["round"] for e in events if e["event"] == "RoundCompleted"] == [0, 1, 2, 3]
    assert "history" not in events[4]


def test_resume_removes_only_partial_files(tmp_path: Path) -> None:
    study, folder = tiny_federation(), tmp_path / "run"
    stopped(study, folder)
    (folder / "checkpoint" / f".state.safetensors.abc{UNFINISHED}").write_bytes(b"half")
    (folder / "notes.part").write_text("mine")
    study.resume(folder)
    assert not list(folder.rglob(f".*{UNFINISHED}"))
    assert (folder / "notes.part").read_text() == "mine"


def test_checkpoint_is_durable_before_it_replaces_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"  # noqa: PTH112
        done.append(kind)
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        done.append("replace")
        return replace(path, target)

    study, folder = tiny_federation(), tmp_path / "run"
    stopped(study, folder)
    checkpoint = Checkpoint.read(folder / STATE)
    assert checkpoint is not None
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    checkpoint.write(folder / STATE)
    assert done == ["file", "replace", "folder"]


FOREIGN: dict[str, Callable[[dict[str, Any]], object]] = {
    "weights under other names": lambda s: s["weights"].update(x=s["weights"].pop("0.weight", 0)),
    "weights that are no dict": lambda s: s.update(weights=[1]),
    "no weights": lambda s: s.pop("weights"),
    "optimizer of other keys": lambda s: s["optimizer"]["state"][0].pop("exp_avg"),
    "optimizer of other shapes": lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(3)),
    "optimizer without a rate": lambda s: s["optimizer"]["param_groups"][0].pop("lr"),
    "optimizer of no groups": lambda s: s.update(optimizer={"a": torch.ones(1)}),
    "schedule of another type": lambda s: s["schedule"].update(last_epoch="one"),
    "plan beyond a float": lambda s: s.update(plan=[10**400]),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_checkpoint_of_a_foreign_server_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    study, folder = tiny_federation(trainer=FedSGD(optimizer="Adam")), tmp_path / "run"
    stopped(study, folder)
    checkpoint = Checkpoint.read(folder / STATE)
    assert checkpoint is not None
    server = dict(checkpoint.server)
    change(server)
    evolve(checkpoint, server=server).write(folder / STATE)
    log = (folder / JOURNAL).read_bytes()
    with pytest.raises(RunError, match=r"of another network or server optimizer .*; resume with"):
        study.resume(folder)
    assert (folder / JOURNAL).read_bytes() == log


@pytest.mark.parametrize(
    "change",
    [
        {"session": "zz"}, {"session": None}, {"rounds": -1}, {"rounds": "1"}, {"attempt": 10**40},
        {"seconds": "long"}, {"origin": {}}, {"states": 3}, {"server": [1]}, {"other": 1},
        {"origin": {"study": "", "data": "", "plan": "", "versions": {}, "x": 1}},
    ],
)  # fmt: skip
def test_checkpoint_of_foreign_entries_is_one_sentence(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint = Checkpoint(
        session=bytes(16), rounds=1, attempt=1, seconds=1.0,
        fingerprint=RunFingerprint(study="", data="", plan="", versions={"torch": "2"}),
        server={"weights": {"x": torch.ones(1)}},
    )  # fmt: skip
    checkpoint.write(path)
    assert Checkpoint.read(path) == checkpoint
    content = tensor_tree.read(path)
    for name in change:
        path.write_bytes(tensor_tree.dumps(content | change))
        with pytest.raises(RunError, match=r"is no checkpoint: .*; put the whole folder back"):
            Checkpoint.read(path)
        if name in content:
            path.write_bytes(tensor_tree.dumps({k: v for k, v in content.items() if k != name}))
            with pytest.raises(RunError, match=f"is no checkpoint: .*{name}"):
                Checkpoint.read(path)


def test_trainer_state_is_kept_per_run(tmp_path: Path) -> None:
    path = tmp_path / "states" / "file"
    store, stranger = TrainerStateFile(path, b"a" * 16), TrainerStateFile(path, b"b" * 16)
    assert store.read().round == -1
    kept = TrainerState.of(3, {"x": torch.ones(2)}, {"x": torch.zeros(2)})
    store.write(kept)
    found = store.read()
    assert found.round == 3
    assert torch.equal(found.state_for(3)["x"], torch.ones(2))
    assert torch.equal(found.state_for(4)["x"], torch.zeros(2))
    assert stranger.read().state_for(4) == {}
    with pytest.raises(RefusalError, match="took part in that run with another study"):
        TrainerStateFile(path, b"a" * 16, study="e1").read()


def test_trainer_state_is_not_aliased_to_network() -> None:
    net = torch.nn.Linear(2, 2)
    kept = TrainerState.of(0, {}, {"weight": net.weight})
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(kept.at_round_end["weight"], before)


class Odd(FedAvg):
    def make_server_optimizer(self, parameters: Any, rounds: int) -> Any:
        optimizer, schedule = super().make_server_optimizer(parameters, rounds)
        optimizer.param_groups[0]["odd"] = np.random.default_rng()
        return optimizer, schedule


def test_unserializable_optimizer_is_refused_before_first_round(
    tmp_path: Path,
) -> None:
    recorder = RecordingObserver()
    with pytest.raises(StudyError, match="a Generator is state for the next round, but only"):
        tiny_federation(trainer=Odd()).run(tmp_path / "run", observers=[recorder])
    assert not recorder.of(RunStarted)


@frozen
class Wide:
    """A network that is quick, and not small."""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)

    def build(self, spec: DataSpec, seed: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.nn.Sequential(torch.nn.Linear(64, 1024), torch.nn.Linear(1024, 4))


@pytest.mark.slow
def test_memory_does_not_grow_over_five_hundred_rounds(tmp_path: Path) -> None:
    seen: dict[int, tuple[int, int]] = {}

    class Weigh:
        def start_run(self) -> Callable[[Event], None]:
            return self.listen

        def listen(self, event: Event) -> None:
            if isinstance(event, RoundCompleted) and event.round in (100, 499):
                gc.collect()
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                seen[event.round] = pages * resource.getpagesize(), sys.getallocatedblocks()

    study = tiny_federation(
        dataset=QuadrantImages(examples=32), model=Wide(), trainer=FedSGD(),
        aggregator=SecAgg(reconstruction_threshold=3, num_shares=3), sites=3, rounds=500,
        evaluate_every=0,
    )  # fmt: skip
    study.run(tmp_path / "run", observers=[Events(), Weigh()])
    memory, objects = np.subtract(seen[499], seen[100])
    # 400 vectors would be 100 megabytes, and a round leaves its line in the history.
    assert memory < 20 << 20
    assert objects < 399 * 200
