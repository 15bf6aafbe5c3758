"""What leaves a site beside what the guarantee covers: planted scalars are found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen

from cohortium.auditing import audit_run, audit_secrets, audit_transcript
from cohortium.cli import main
from cohortium.errors import RunError
from cohortium.messages.codec import decode, encode
from cohortium.messages.run import Reply
from cohortium.plugin import KeyStream, LocalResult, LocalTask, Message, Randomness, SitePrivatizer
from cohortium.rounds.run_config import RunConfig
from cohortium.rounds.site import Site
from cohortium.runs.prepare import PreparedStudy
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.faulty_privatizers import Broken, Weighs, with_noise
from tests.support.federations import QuadrantImages, tiny_federation

EVERYONE = Gaussian(epsilon=50.0)
WHOLE = FedSGD(sampling_rate=1.0)


def prepared(**changes: Any) -> PreparedStudy:
    parts: dict[str, Any] = {
        "dataset": QuadrantImages(examples=60),
        "trainer": WHOLE,
        "privatizer": EVERYONE,
        "min_contributors": 4,
        "max_colluding": 1,
        "sites": 4,
        "seed": 3,
    }
    return tiny_federation(**(parts | changes)).prepare()


class Told(Message, frozen=True, tag="told"):
    attempt: int
    stage: int
    body: bytes
    loss: float
    examples: int


def tell(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make every site add a scalar to its replies."""
    honest = Site.answer

    def answer(self: Site, broadcast: bytes, own: bytes) -> bytes:
        reply = decode(honest(self, broadcast, own), Reply)
        loss = float(self._data.images.mean()) if what == "loss" else 0.0
        count = len(self._data.labels) if what == "examples" else 0
        return encode(Told(reply.attempt, reply.stage, reply.body, loss, count))

    monkeypatch.setattr(Site, "answer", answer)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("loss", "with one example replaced, told.loss of the reply of site 0 in round 1, stage 1"),
        ("examples", "with one example left out, told.examples of the reply of site 0"),
    ],
)
def test_added_scalar_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    study = prepared()
    tell(monkeypatch, what)
    finding = audit_transcript(study)
    assert finding.is_refuted
    assert words in finding.observation


@frozen(kw_only=True)
class Boasts(FedAvg):
    """Adds its loss to the update, past the privatizer."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = super().train(task, privatizer)
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(task.net(task.images), task.labels)
        trained.vector[0] += loss
        return trained


def test_a_scalar_that_a_trainer_adds_is_found() -> None:
    study = prepared(trainer=Boasts(local_steps=1, batch_size=16))
    finding = audit_transcript(study)
    assert finding.is_refuted
    assert "reply.body of the reply of site 0" in finding.observation


def test_release_scaled_by_weight_is_detected() -> None:
    study = prepared(privatizer=Broken(EVERYONE, Weighs))
    finding = audit_transcript(study)
    assert finding.is_refuted
    assert "left out" in finding.observation
    assert "replaced" not in finding.observation


def test_secrets_derived_from_public_values_are_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = prepared(trainer=FedSGD(sampling_rate=0.5), privatizer=Gaussian(unit="site"))
    assert not audit_secrets(study).is_refuted

    def public(self: RunConfig, purpose: str, *, private: bool) -> Randomness:
        return Randomness.insecure_from_seed(self.seeds.root).derive(purpose)

    monkeypatch.setattr(RunConfig, "secret", public)
    assert "noise came out the same" in audit_secrets(study).observation


def test_secrets_audit_names_simulation() -> None:
    finding = audit_secrets(prepared(insecure_seeded_secrets=True))
    assert not finding.is_refuted
    assert "a simulation" in finding.observation


def test_transcript_audit_without_replies_raises_error(monkeypatch: pytest.MonkeyPatch) -> None:
    study = prepared()
    monkeypatch.setattr(Site, "answer", lambda self, broadcast, own: b"")
    with pytest.raises(RunError, match="cannot be audited"):
        audit_transcript(study)


SMALL: dict[str, dict[str, Any]] = {
    "everyone": {"privatizer": Gaussian(epsilon=0.5, delta=1e-5)},
    "coordinator": {
        "privatizer": Gaussian(epsilon=0.5, delta=1e-5, noise="distributed"),
        "aggregator": "secagg",
    },
    "update": {
        "privatizer": Gaussian(epsilon=0.5, delta=1e-5),
        "trainer": FedAvg(local_steps=2, batch_size=1000, learning_rate=0.01),
    },
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "everyone" else [pytest.mark.slow]) for name in SMALL],
)
def test_audit_detects_missing_noise_and_passes_honest(name: str) -> None:
    terms = SMALL[name]
    honest = prepared(**terms)
    rng = np.random.default_rng(3)
    finding = audit_run(honest, canaries=100, rng=rng)
    assert not finding.is_refuted, finding
    silent = Broken(terms["privatizer"], with_noise(0.0))
    finding = audit_run(prepared(**(terms | {"privatizer": silent})), canaries=100, rng=rng)
    assert finding.is_refuted, finding
    assert finding.bound is not None
    assert finding.max_detectable_epsilon is not None
    assert 0.5 < finding.bound <= finding.max_detectable_epsilon


def test_run_audit_without_power_is_skipped() -> None:
    finding = audit_run(prepared(privatizer=Gaussian(epsilon=6.0)))
    assert finding.procedure.startswith("nothing")
    assert "no more than 5.3, in any case" in finding.detection_limit
    sites = audit_run(prepared(privatizer=Gaussian(unit="site", epsilon=0.1)))
    assert "its canaries would be the sites" in sites.procedure


STUDY = [
    "--set", "dataset.examples=120", "--set", "federation.sites=4", "--set", "federation.rounds=2",
    "--set", "privatizer.unit=site", "--samples", "1000",
]  # fmt: skip


def exit_code(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", *STUDY, *arguments])
    return stop.value.code


@pytest.mark.slow
def test_audit_command_reports_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "audit.json"
    assert exit_code("--json", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert json.loads(out.read_text("utf-8")) == found
    assert found["refuted"] is False
    assert found["guarantee"]["unit"] == "site"
    assert [finding["check"] for finding in found["findings"]] == [
        "accounting", "mechanism", "clip", "secrets", "transcript", "run",
    ]  # fmt: skip
    assert exit_code("--out", str(out)) == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setattr(KeyStream, "normal", lambda self, size: np.zeros(size))
    assert exit_code() == 1
    printed = capsys.readouterr().out
    assert printed.startswith("claimed: ε = 6 at δ")
    assert "mechanism: REFUTED" in printed


def test_audit_without_guarantee_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--set", "privatizer.name=none", "--set", "dataset.examples=120"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("cohortium: the study's privatizer promises nothing")
    assert error.count("\n") == 1
