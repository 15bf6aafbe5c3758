"""A deployed run whose coordinator stops continues where it was, and is charged once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from cohortium import EvaluationPlan
from cohortium.deployment.site_config import SiteConfig
from cohortium.errors import RequestError, StudyError
from cohortium.plugin import resume_deployed_study, run_deployed_study
from cohortium.runs.resume_command import resume_command
from cohortium_gaussian import Gaussian
from cohortium_inline import Inline
from cohortium_secagg import SecAgg
from tests.support.command_line import cohortium
from tests.support.corridor import Corridor, serving
from tests.support.rehearsed_site import rehearse

SITES = 3


class CrashError(Exception):
    """The end of the coordinator."""


@define(eq=False)
class CrashingCorridor(Corridor):
    """An engine whose coordinator ends instead of one of its exchanges."""

    left: int

    def exchange(
        self, broadcast: bytes, per_site: Mapping[int, bytes], timeout: object = None
    ) -> Iterator[tuple[int, bytes]]:
        self.left -= 1
        if self.left < 0:
            raise CrashError
        yield from super().exchange(broadcast, per_site, timeout)


def rehearsal(folder: Path, **changes: Any) -> Path:
    """Write a deployment with an active adversary, whose secrets are seeded."""
    terms: dict[str, Any] = {
        "sites": SITES, "min_contributors": 3, "rounds": 3, "retries": 1, "adversary": "active",
        "aggregator": SecAgg(reconstruction_threshold=2), "insecure_seeded_secrets": True,
    }  # fmt: skip
    rehearse(folder, **(terms | changes))
    return folder


def charged(folder: Path, site: int) -> list[int]:
    """Charged attempts on each of a hospital's accounts."""
    config = SiteConfig.read(folder / f"site-{site}" / "site.toml")
    with config.account.ledger.read_transaction() as book:
        return [sum(book.charge_counts(name).values()) for name in config.accounts]


@pytest.mark.parametrize("exchanges", [3, 7, 11])
def test_stopped_deployment_continues_and_is_charged_once(tmp_path: Path, exchanges: int) -> None:
    place, out = rehearsal(tmp_path / "place"), tmp_path / "run"
    with serving(place, SITES) as corridor:
        crashing = CrashingCorridor(corridor.servers, exchanges)
        with pytest.raises(CrashError):
            run_deployed_study(place / "study.toml", lambda _: crashing, out=out)
    with serving(place, SITES) as corridor:  # the hospitals' processes start anew, too
        result = resume_deployed_study(out, lambda _: corridor)
    assert result.rounds == 3
    attempts = [len(event.contributors) for event in result.history]
    assert attempts == [SITES] * 3
    for site in range(SITES):
        (spent,) = charged(place, site)
        assert spent in {3, 4}  # one more if the coordinator had asked for the vectors


def test_interrupted_evaluation_of_a_deployment_continues(tmp_path: Path) -> None:
    place = rehearsal(
        tmp_path / "place", privatizer=Gaussian(epsilon=6.0, delta=1e-3), holdout_fraction=0.4,
        evaluation=EvaluationPlan(epsilon=2.0, parts=("accuracy",), retries=1),
    )  # fmt: skip
    out = tmp_path / "run"
    with serving(place, SITES) as corridor:
        crashing = CrashingCorridor(corridor.servers, 15)
        with pytest.raises(CrashError):
            run_deployed_study(place / "study.toml", lambda _: crashing, out=out)
    with serving(place, SITES) as corridor:
        result = resume_deployed_study(out, lambda _: corridor)
    assert result.measured is not None
    assert result.measured.contributors == SITES
    assert [charged(place, site)[0] for site in range(SITES)] == [3] * SITES


def test_messages_name_the_command_that_continues_a_deployment(tmp_path: Path) -> None:
    place, out = rehearsal(tmp_path / "place"), tmp_path / "a run"
    study = (place / "study.toml").read_text().replace('name = "inline"', 'name = "flower"')
    (place / "study.toml").write_text(study)
    with serving(place, SITES) as corridor:
        crashing = CrashingCorridor(corridor.servers, 7)
        with pytest.raises(CrashError):
            run_deployed_study(place / "study.toml", lambda _: crashing, out=out)
        command = f"`flwr run app study --stream --run-config 'resume=\"{out}\"'`"
        with pytest.raises(RequestError) as caught:
            cohortium("resume", str(out))
        assert (
            f"is of a deployment, whose engine starts the coordinator; continue it with {command}"
            in str(caught.value)
        )
        with pytest.raises(RequestError) as caught:
            run_deployed_study(place / "study.toml", lambda _: corridor, out=out)
        assert f"continue with {command}, or name another folder as `out`." in str(caught.value)
        result = resume_deployed_study(out, lambda _: corridor)
    assert str(result).startswith("3 rounds with 3 sites; ")
    assert str(result).endswith(f"; the record is {out}")
    with pytest.raises(RequestError, match="evaluate its model with `flwr run app study") as caught:
        cohortium("evaluate", str(out), "--epsilon", "1", "--delta", "1e-4")
    assert f'evaluate="{out}" out="NEW-FOLDER"' in str(caught.value)
    with pytest.raises(RequestError, match="is finished; its result is"):
        cohortium("resume", str(out))


def test_signed_deployment_continues_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "signer").write_text("00")
    (tmp_path / "study.toml").write_text('[data]\n[engine]\nname = "flower"\n')
    assert resume_command(tmp_path).endswith(f"""'resume="{tmp_path}" sign-with="KEY"'`""")
    (tmp_path / "study.toml").write_text('[engine]\nname = "inline"\n')
    assert resume_command(tmp_path) == f"`cohortium resume {tmp_path} --sign-with KEY`"
    (tmp_path / "study.toml").write_text("damaged")
    assert resume_command(tmp_path) == f"`cohortium resume {tmp_path} --sign-with KEY`"


def test_simulation_is_not_resumed_as_a_deployment(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("[federation]\nrounds = 1\n")
    with pytest.raises(StudyError, match=r"is a simulation; continue it with `cohortium resume"):
        resume_deployed_study(tmp_path, lambda _: Inline())
