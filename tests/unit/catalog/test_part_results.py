"""A part that returns or raises something else than its contract allows is named, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from attrs import frozen
from torch import nn

from cohortium.cli import main
from cohortium.errors import CohortiumError, PluginError, RunError, StudyError
from cohortium.plugin import Examples, RingSum, StageRequests
from cohortium.rounds.wrapped_plan import WrappedPlan, WrappedRound
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_plain import Plain
from tests.support import broken_plugins
from tests.support.federations import QuadrantImages, tiny_federation


def returning(role_class: type, method: str, value: Any) -> Any:
    """A subclass of `role_class` with a method that returns `value`."""

    def replaced(self: Any, *_: Any, **__: Any) -> Any:
        return value

    return frozen(type("Wrong", (role_class,), {"__module__": __name__, method: replaced}))()


WRONG_RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "load": ({"dataset": returning(QuadrantImages, "load", None)}, "Wrong.load .*None.*Splits"),
    "partition": (
        {"partitioner": returning(QuadrantImages, "partition", None)},
        "Wrong.partition .*None.* one array of positions for each site",
    ),
    "positions": (
        {"partitioner": returning(QuadrantImages, "partition", [1, 2, 3, 4, 5, 6])},
        "Wrong.partition .* one array of positions for each site",
    ),
    "workload": ({"trainer": returning(FedAvg, "workload", {})}, "Wrong.workload .*a dict.*Work"),
    "train": ({"trainer": returning(FedAvg, "train", None)}, "Wrong.train .*None.*LocalResult"),
    "optimizer": (
        {"trainer": returning(FedAvg, "make_server_optimizer", None)},
        "Wrong.make_server_optimizer .*None.*a tuple of an optimizer and its schedule",
    ),
    "personalize": (
        {"trainer": returning(FedAvg, "personalize", None)},
        "Wrong.personalize .*None.*torch.nn.Module",
    ),
    "plan": (
        {"privatizer": returning(Gaussian, "plan", None)},
        "Wrong.plan .*None.*a PrivacyPlan",
    ),
    "coordinator": (
        {"aggregator": returning(Plain, "coordinator_session", None)},
        "Wrong.coordinator_session .*None.*a CoordinatorSession",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", WRONG_RESULTS)
def test_wrong_result_is_refused_before_run(which: str) -> None:
    parts, words = WRONG_RESULTS[which]
    with pytest.raises(PluginError, match=words) as found:
        tiny_federation(**parts).prepare()
    assert "\n" not in str(found.value)
    assert __name__ in str(found.value)


@frozen(kw_only=True)
class Changing(FedAvg):
    """Personalizes the global network in place."""

    def personalize(self, net: nn.Module, state: Any) -> nn.Module:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(1.0)
        return net


def test_personalize_changing_network_is_refused() -> None:
    with pytest.raises(StudyError, match="Changing changes the global network in its personalize"):
        tiny_federation(trainer=Changing()).prepare()


@frozen
class Relabelling:
    """A partitioner that changes the labels it is given."""

    def partition(self, examples: Examples, num_sites: int, rng: Any) -> list[Any]:
        examples.labels[:] = 0
        return np.array_split(np.arange(len(examples)), num_sites)


def test_partitioner_cannot_change_examples() -> None:
    with pytest.raises(ValueError, match="read-only"):
        tiny_federation(partitioner=Relabelling()).prepare()


WRONG_PARTITIONS: dict[str, tuple[Any, str]] = {
    "few": ([np.arange(5)], "Wrong made 1 parts for 6 sites; let"),
    "outside": ([np.array([site, 10**6]) for site in range(6)], "Wrong gave positions that are no"),
    "twice": ([np.arange(5)] * 6, "Wrong gave one example to two sites, or twice to one; let"),
}


@pytest.mark.parametrize("which", WRONG_PARTITIONS)
def test_wrong_partition_names_partitioner(which: str) -> None:
    parts, words = WRONG_PARTITIONS[which]
    with pytest.raises(StudyError, match=f"the partitioner {words}"):
        tiny_federation(partitioner=returning(QuadrantImages, "partition", parts)).prepare()


@frozen(kw_only=True)
class Headless(FedAvg):
    """Gives sites a network without its last layer."""

    def personalize(self, net: nn.Module, state: Any) -> nn.Module:
        assert isinstance(net, nn.Sequential)
        return net[:-1]


def test_personal_network_of_other_shape_names_trainer() -> None:
    with pytest.raises(StudyError, match="personal network of the trainer Headless cannot be used"):
        tiny_federation(trainer=Headless()).prepare()


@frozen
class InPlace:
    """A model whose preprocessing changes its argument."""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images.sub_(0.5)

    def build(self, spec: Any, seed: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def test_preprocess_changing_images_is_refused() -> None:
    with pytest.raises(StudyError, match=r"changes the images .*in place of images.sub_"):
        tiny_federation(model=InPlace()).prepare()


def with_session(side: str, **methods: Callable[..., Any]) -> Any:
    """An aggregator, whose session on one `side` has other methods."""

    def session(self: Any, *arguments: Any) -> Any:
        made = getattr(Plain(), side)(*arguments)
        kind = type(made)
        wrong = type("WrongSession", (kind,), {"__module__": __name__, **methods})
        return wrong(made.config)

    return frozen(type("WithSession", (Plain,), {"__module__": __name__, side: session}))()


def ghosts(self: Any) -> RingSum:
    total: RingSum = super(type(self), self).sum()
    return attrs.evolve(total, contributors=(*total.contributors[:-1], 99))


def short(self: Any) -> RingSum:
    total: RingSum = super(type(self), self).sum()
    return attrs.evolve(total, words=total.words[:-1])


WRONG_SUMS: dict[str, Any] = {
    "none": lambda _self: None,
    "ghosts": ghosts,
    "short": short,
}


@pytest.mark.parametrize("which", WRONG_SUMS)
def test_wrong_sum_ends_run_naming_aggregator(which: str) -> None:
    aggregator = with_session("coordinator_session", sum=WRONG_SUMS[which])
    with pytest.raises(RunError, match=r"WrongSession.sum of .* over sites that were asked"):
        tiny_federation(aggregator=aggregator).run()


def test_endless_requests_end_run_naming_aggregator() -> None:
    aggregator = with_session(
        "coordinator_session", next_requests=lambda _self: StageRequests(per_site={0: b""})
    )
    with pytest.raises(RunError, match=r"WrongSession.next_requests of .* no more than 20 request"):
        tiny_federation(aggregator=aggregator).run()


def test_reply_that_is_no_bytes_names_aggregator() -> None:
    aggregator = with_session("site_session", handle=lambda *_: "hello")
    with pytest.raises(PluginError, match=r"WrongSession.handle of .* gave a str, .* for bytes"):
        tiny_federation(aggregator=aggregator).run()


def altered(**methods: Any) -> Any:
    """A privatizer whose plan has other methods; those named `round_…` are of its rounds."""
    hidden = {"__module__": __name__, "wrapped_part": None}
    own = {name: each for name, each in methods.items() if not name.startswith("round_")}
    of_round = {name.removeprefix("round_"): methods[name] for name in methods.keys() - own.keys()}
    round_class = type("WrongRound", (WrappedRound,), hidden | of_round)

    def at_round(self: WrappedPlan, number: int, state: Any) -> Any:
        return round_class(self.plan.at_round(number, state), self.wrap)

    plan_class = type("WrongPlan", (WrappedPlan,), hidden | {"at_round": at_round} | own)

    def plan(self: Any, *arguments: Any) -> Any:
        return plan_class(Gaussian(epsilon=8.0, delta=1e-3).plan(*arguments), lambda site: site)

    return frozen(type("Altered", (), {"__module__": __name__, "plan": plan}))()


def of_site(**methods: Any) -> Callable[..., Any]:
    """`for_site`, whose privatizer has other methods."""

    def for_site(self: WrappedRound, *arguments: Any) -> Any:
        inside = self.plan.for_site(*arguments)

        class WrongSite:
            batches = staticmethod(methods.get("batches", inside.batches))
            set_private_gradient = staticmethod(inside.set_private_gradient)
            release = staticmethod(methods.get("release", inside.release))

        return WrongSite()

    return for_site


WRONG_PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "state": ({"initial_state": (float("nan"),)}, "WrongPlan.initial_state .*finite numbers"),
    "text": ({"round_next_state": lambda *_: ("a",)}, "WrongRound.next_state .*finite numbers"),
    "long": ({"round_next_state": lambda *_: (1.0,) * 1025}, "at most 1,024 finite numbers"),
    "round": ({"at_round": lambda *_: None}, "WrongPlan.at_round .*None.*a RoundPlan"),
    "site": ({"round_for_site": lambda *_: None}, "WrongRound.for_site .*None.*a SitePrivatizer"),
    "mean": ({"round_decode": lambda *_: torch.zeros(3)}, r"WrongRound.decode .* \(3,\)"),
    "free": ({"round_mechanism": None}, "states a guarantee, .* has no mechanism"),
    "vector": (
        {"round_for_site": of_site(release=lambda *_: None)},
        "WrongSite.release .*None.*a RingVector",
    ),
    "silence": (
        {"round_for_site": of_site(batches=lambda _n: None)},
        "WrongSite.batches|'NoneType' object is not iterable",
    ),
}


@pytest.mark.parametrize("which", WRONG_PLANS)
def test_wrong_plan_is_refused_before_run(which: str) -> None:
    methods, words = WRONG_PLANS[which]
    with pytest.raises(CohortiumError, match=words):
        tiny_federation(privatizer=altered(**methods), trainer=FedSGD()).prepare()


WRONG_BATCHES: dict[str, Callable[[int], Any]] = {
    "two": lambda n: [np.arange(n), np.arange(n)],
    "outside": lambda n: [np.arange(n + 1)],
    "reals": lambda n: [np.arange(n) / 2],
    "list": lambda n: [list(range(n))],
}


@pytest.mark.parametrize("which", WRONG_BATCHES)
def test_wrong_batches_name_privatizer(which: str) -> None:
    wrong = altered(round_for_site=of_site(batches=WRONG_BATCHES[which]))
    with pytest.raises(PluginError, match=r"WrongSite.batches of .* batches of positions below"):
        tiny_federation(privatizer=wrong, trainer=FedSGD()).run()


FOREIGN = """
from attrs import frozen
from cohortium.plugin import Offer, hookimpl
from cohortium_fedavg import FedAvg

COHORTIUM_API = 1


@frozen
class Stubborn:
    def partition(self, examples, num_sites, rng):
        raise IndexError("no such row")


@frozen
class Lacking:
    pass


@frozen(kw_only=True)
class Failing(FedAvg):
    def train(self, task, privatizer):
        raise KeyError("lag")


@hookimpl
def cohortium_partitioners():
    return [Offer("lacking", Lacking, "No method."), Offer("stubborn", Stubborn, "Fails.")]


@hookimpl
def cohortium_trainers():
    return [Offer("failing", Failing, "Fails.")]
"""


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            {"partitioner": "stubborn"},
            r"^Stubborn.partition of the plugin ward \(acme 1.5\) raised IndexError.* \(acme_ward",
        ),
        (
            {"trainer": "failing"},
            r"a site's training, so nothing is charged; Failing.train of .* KeyError: 'lag' \(acme",
        ),
    ],
    ids=["partitioner", "trainer"],
)
def test_error_of_foreign_plugin_is_one_sentence(
    part: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_plugins.put(tmp_path, {"ward": FOREIGN})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=words):
        tiny_federation(**part).prepare()


def test_check_names_line_of_error_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without its trainer, whose checks take long.
    broken_plugins.put(
        tmp_path, {"ward": FOREIGN.replace("@hookimpl\ndef cohortium_trainers", "def unused")}
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        main(["check", "ward"])
    shown = capsys.readouterr().out
    assert (
        "'lacking' cannot be used: its factory makes a part, and Lacking is no partitioner" in shown
    )
    assert re.search(r"✗ .*IndexError: no such row \(acme_ward.py, line \d+\)", shown)
    assert "partitioner 'stubborn' of ward (acme 1.5)" in shown
