"""What `cohortium rehearse` writes is admitted by the hospitals it is written for."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cohortium import Federation
from cohortium.deployment import rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_server import SiteServer
from cohortium.errors import CohortiumError, RequestError
from cohortium.messages.codec import decode_either, encode
from cohortium.messages.deployment import Acceptance, Invitation
from cohortium.messages.run import Refusal
from cohortium.privacy import privacy_loss
from cohortium.privacy.accounting import compose
from cohortium.runs.forecast import forecast
from cohortium.runs.invite import build_invitation
from cohortium.study import toml
from cohortium_dpresnet import DPResNet
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from cohortium_secagg import SecAgg
from cohortium_skellam import Skellam
from tests.support.command_line import cohortium
from tests.support.federations import tiny_federation
from tests.support.round_plans import first_round

PATIENTS = Phantom(examples=320, test=20, validation=0, images_per_patient=4)

SHARED: dict[str, Any] = {
    "aggregator": SecAgg(reconstruction_threshold=2), "sites": 3, "min_contributors": 3,
    "max_colluding": 1,
}  # fmt: skip

STUDIES: dict[str, dict[str, Any]] = {
    # The numbers of the quick start and of the README's paper.toml, which the accountant sees.
    "quick start": {
        "trainer": "fedsgd", "rounds": 60,
        "privatizer": Gaussian(epsilon=6.0, delta=1.9e-4, clip_norm=7.0),
    },
    "paper": {
        "dataset": Phantom(examples=480, validation=0, test=20), "model": DPResNet(width=4),
        "trainer": FedAvg(local_epochs=1, batch_size=32, learning_rate=0.05),
        "privatizer": Gaussian(epsilon=6.0, delta=1.9e-4, clip_norm=7.0),
    },
    "small": {"trainer": "fedsgd", "rounds": 7, "privatizer": Gaussian(epsilon=0.37, delta=1e-6)},
    "tiny": {"trainer": "fedsgd", "rounds": 3, "privatizer": Gaussian(epsilon=1e-3)},
    "large": {"trainer": "fedsgd", "rounds": 3, "privatizer": Gaussian(epsilon=1000.0)},
    "whole": {"trainer": FedSGD(sampling_rate=1.0), "privatizer": Gaussian(delta=1e-5)},
    "replaced": {
        "trainer": FedSGD(sampling_rate=1.0), "privatizer": Gaussian(adjacency="replace-one"),
    },
    "patients": {
        "dataset": PATIENTS, "trainer": "fedsgd", "privatizer": Gaussian(unit="patient"),
    },
    "sites": {"privatizer": Gaussian(unit="site"), "rounds": 5},
    "retries": {"trainer": "fedsgd", "rounds": 9, "retries": 4, "privatizer": Gaussian()},
    "shared": {"trainer": "fedsgd", "privatizer": Gaussian(noise="distributed"), **SHARED},
    "shared sites": {"privatizer": Gaussian(unit="site", noise="distributed"), **SHARED},
    "skellam": {"trainer": "fedsgd", "privatizer": Skellam(), "retries": 2, **SHARED},
    "skellam for everyone": {
        "dataset": PATIENTS, "trainer": "fedsgd",
        "privatizer": Skellam(unit="patient", noise="local"),
    },
}  # fmt: skip


FAST = ("sites", "shared sites", "whole")

STUDY_NAMES = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in STUDIES
]


def answered(file: Path, invitation: Invitation) -> Acceptance | Refusal:
    """What the hospital of a site file says to an invitation."""
    site_config = SiteConfig.read(file)
    with contextlib.closing(site_config.open_journal()) as journal:
        reply = SiteServer(site_config, journal).answer(encode(invitation), b"")
    answer = decode_either(reply, Acceptance, Refusal)
    assert isinstance(answer, Acceptance | Refusal)
    return answer


def test_folder_of_a_rehearsal_is_not_called_a_run(tmp_path: Path) -> None:
    study = tiny_federation(sites=3)
    rehearsal.write_rehearsal(study.prepare(), tmp_path / "dealt", engine="inline")
    with pytest.raises(RequestError, match=r"rehearsal deployment, which is complete: .*--out"):
        study.run(tmp_path / "dealt")


def test_rehearsal_folder_where_a_run_is_needed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "dealt"
    rehearsal.write_rehearsal(tiny_federation(sites=3).prepare(), folder)
    before = sorted(folder.rglob("*"))
    start = f"`cohortium site {folder / 'site-0' / 'site.toml'}`"
    for command, *options in (
        ["resume"], ["evaluate", "--epsilon=1", "--delta=1e-5"], ["report"], ["export", "--out=x"],
    ):  # fmt: skip
        with pytest.raises(CohortiumError) as caught:
            cohortium(command, str(folder), *options)
        told = str(caught.value)
        assert told.startswith(f"{folder} holds a rehearsal deployment and no run; "), command
        assert start in told
        assert caught.value.exit_code == 2
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_rehearsal_sites_accept_rehearsed_study(name: str, tmp_path: Path) -> None:
    simulated = tiny_federation(**{"sites": 3, **STUDIES[name]}).prepare()
    rehearsal.write_rehearsal(simulated, tmp_path / "dealt", engine="inline")
    ready = Federation.read(tmp_path / "dealt" / "study.toml").prepare()
    invitation = build_invitation(ready)
    files = [tmp_path / "dealt" / f"site-{site}" / "site.toml" for site in range(3)]
    assert isinstance(answered(files[1], invitation), Acceptance)
    floors = [toml.read(file, what="a site file")["policy"] for file in files]
    assert floors == [floors[1]] * 3


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_plan_guarantee_and_forecast_epsilon_agree(name: str) -> None:
    run_config = (ready := tiny_federation(**{"sites": 3, **STUDIES[name]}).prepare()).run_config
    plan, attempts = run_config.plan, run_config.federation_spec.attempts
    assert plan.guarantee is not None
    assert first_round(plan).mechanism is not None
    for count in {1, 1 + attempts // 3, attempts}:
        at, strict = plan.guarantee.delta, 1e-5
        spent = plan.guarantee_after(range(count))
        assert spent is not None
        assert spent.epsilon == compose([(first_round(plan).mechanism, count)], at)[0].epsilon
        assert (
            spent.epsilon_at_1e_5
            == compose([(first_round(plan).mechanism, count)], strict)[0].epsilon
        )
    assert plan.guarantee == plan.guarantee_after(range(attempts))
    (outlook,) = forecast(ready)
    assert outlook.guarantee == plan.guarantee
    assert dict(outlook.spent)[run_config.federation_spec.rounds] <= plan.guarantee.epsilon


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Invitation]:
    """A deployment, and the invitation of its coordinator."""
    folder = tmp_path_factory.mktemp("absurd") / "dealt"
    rehearsal.write_rehearsal(
        tiny_federation(
            sites=2, rounds=1, trainer="fedsgd", privatizer=Gaussian(epsilon=0.5)
        ).prepare(),
        folder,
        engine="inline",
    )
    return folder, build_invitation(Federation.read(folder / "study.toml").prepare())


@pytest.mark.parametrize(
    "numbers",
    [
        {"trainer": {"sampling_rate": 1e-9}, "federation": {"rounds": 10**6}},
        {"trainer": {"sampling_rate": 1e-9}, "privatizer": {"epsilon": 1e-9}},
        {"privatizer": {"epsilon": 999_999.0}},
        {"privatizer": {"epsilon": 5e-324}},
        {"privatizer": {"delta": 1e-320}},
        {"privatizer": {"delta": 5e-324, "epsilon": 1e-5}},
        {"privatizer": {"delta": float("nan")}},
        {"privatizer": {"epsilon": float("inf")}},
    ],
)
def test_extreme_privacy_numbers_take_bounded_work(
    numbers: dict[str, dict[str, Any]],
    dealt: tuple[Path, Invitation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, invitation = dealt
    points: list[int] = []
    compose_ = privacy_loss._compose

    def composed(*args: Any) -> Any:
        found = compose_(*args)
        points.append(len(found.chances))
        return found

    monkeypatch.setattr(privacy_loss, "_compose", composed)
    shared = toml.loads(invitation.study, where="test")
    for table, values in numbers.items():
        shared[table] |= values
    text = tomli_w.dumps(shared)
    asked = Invitation(os.urandom(16), text, invitation.directory, invitation.versions)
    answer = answered(folder / "site-1" / "site.toml", asked)
    if isinstance(answer, Refusal):
        assert answer.code in ("study", "policy.epsilon", "policy.max_rounds"), answer
        assert answer.reason.count(". ") == 0
    # A transform takes some milliseconds: forty are well within two seconds.
    assert len(points) <= 2 * 25
    assert sum(points) <= 2 * 25 * 1.1 * privacy_loss.MAX_POINTS
