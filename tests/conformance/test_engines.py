from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from attrs import define, field, frozen

from cohortium.plugin import EngineSession, SiteFactory, SiteHandle, SiteId, StudyError
from cohortium.testing import ConformanceError, engines
from cohortium_inline import Inline

Replies = Iterator[tuple[SiteId, bytes]]
Way = Callable[[Mapping[SiteId, SiteHandle], bytes, Mapping[SiteId, bytes]], Replies]


def punctual(replies: Replies, deadline: float | None) -> Iterator[tuple[tuple[int, bytes], bool]]:
    """Replies, and whether each came in time."""
    began = time.monotonic()
    for reply in replies:
        yield reply, deadline is None or time.monotonic() - began <= deadline
        began = time.monotonic()


@define
class Wired:
    """Open sites, and a way to ask them."""

    sites: Mapping[SiteId, SiteHandle]
    way: Way
    once: bool = False
    patience: str = "keeps"
    closed: bool = False
    late: list[tuple[SiteId, bytes]] = field(factory=list)

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Replies:
        yield from self.late
        self.late = []
        for reply, in_time in punctual(self.way(self.sites, broadcast, per_site), timeout):
            if in_time or self.patience == "waits":
                yield reply
            elif self.patience == "hoards":
                self.late.append(reply)

    def close(self) -> None:
        if self.once and self.closed:
            raise RuntimeError("closed twice.")
        self.closed = True


@frozen
class Engine:
    """A good engine with one thing done otherwise."""

    way: Way
    once: bool = False
    patience: str = "keeps"
    renumber: bool = False
    odd_neighbour: bool = False

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        assert sites is not None
        beside: Any = self if self.odd_neighbour else None
        opened = {k: recipe.create(beside) for k, recipe in sites.items()}
        if self.renumber:
            opened = dict(enumerate(opened.values()))
        return Wired(opened, self.way, once=self.once, patience=self.patience)


@frozen
class DeploymentOnly:
    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        raise StudyError("hospitals build themselves.")


def good(sites: Any, broadcast: bytes, each: Any) -> Replies:
    for site, own in reversed(each.items()):
        yield site, sites[site].answer(broadcast, own)


def crossed(sites: Any, broadcast: bytes, each: Any) -> Replies:
    for site, (_, own) in zip(each, sorted(each.items()), strict=True):
        yield site, sites[site].answer(broadcast, own)


def twice(sites: Any, broadcast: bytes, each: Any) -> Replies:
    for site, reply in good(sites, broadcast, each):
        yield site, reply
        yield site, reply


def retrying(sites: Any, broadcast: bytes, each: Any) -> Replies:
    for site, own in each.items():
        sites[site].answer(broadcast, own)
        yield site, sites[site].answer(broadcast, own)


def textual(sites: Any, broadcast: bytes, each: Any) -> Replies:
    for site, own in each.items():
        yield site, sites[site].answer(broadcast, own.replace(b"\r\n", b"\n"))


def to_everyone(sites: Any, broadcast: bytes, each: Any) -> Replies:
    for site, open_site in sites.items():
        reply = open_site.answer(broadcast, each.get(site, b""))
        if site in each:
            yield site, reply


BAD: list[tuple[Any, Any, str]] = [
    (engines.check_delivers, Engine(crossed), "not what it says to its own request"),
    (engines.check_delivers, Engine(twice), r"replies came from \[0, 0, 3, 3, 4, 4\]"),
    (engines.check_delivers, Engine(retrying), "asked 1 times over the run"),
    (
        engines.check_delivers,
        Engine(good, odd_neighbour=True),
        "shared model was given as a Engine",
    ),
    (engines.check_alters_no_byte, Engine(textual), "send it `broadcast` and its own part as they"),
    (engines.check_asks_no_one_else, Engine(to_everyone), "the reply of site 2"),
    (engines.check_keeps_deadlines, Engine(good, patience="waits"), "although the deadline was"),
    (engines.check_keeps_deadlines, Engine(good, patience="hoards"), "and replies came from"),
    (engines.check_takes_pickled_recipes, Engine(good, renumber=True), "raised KeyError"),
    (engines.check_closes, Engine(good, once=True), "close raised RuntimeError: closed twice"),
]


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_engine_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize("engine", [Inline(), Engine(good)], ids=["inline", "reversed"])
@pytest.mark.parametrize("check", engines.CHECKS)
def test_valid_plugin_passes_check(check: Any, engine: Any) -> None:
    assert check(engine) is None


@pytest.mark.parametrize("check", engines.CHECKS)
def test_deployment_only_engine_skips_checks(check: Any) -> None:
    assert "not" in check(DeploymentOnly())


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(engines.CHECKS)
