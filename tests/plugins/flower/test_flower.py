"""The engine `flower` over a grid without processes: sites found among nodes, messages carried."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import define, field, frozen
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.errors import MessageError, RequestError, StudyError
from cohortium.messages.codec import decode, encode
from cohortium.messages.deployment import IdentifyReply, IdentifyRequest
from cohortium.plugin import Randomness, SiteFactory, SiteHandle
from cohortium.testing.engines import CHECKS
from cohortium_flower import Flower
from cohortium_flower._exchange import ConnectedEngine, FlowerExchange
from cohortium_flower._records import from_record, to_record
from cohortium_flower._run_log import RunLog
from tests.support.federations import tiny_federation

Answer = Callable[[bytes, bytes], bytes | Error | None]
"""What a node replies to the common part and its own; None is silence."""


@define(eq=False)
class Village:
    """A grid whose nodes are functions; replies come in the next look, the last asked first."""

    nodes: dict[int, Answer] = field(factory=dict)
    sent: list[Message] = field(factory=list)
    replies: dict[str, Message] = field(factory=dict)
    names: Any = field(factory=itertools.count)
    alive: set[int] | None = None

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.nodes) if self.alive is None else sorted(self.alive)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            name = f"message {next(self.names)}"
            names.append(name)
            message.metadata.__dict__["_message_id"] = name
            self.sent.append(message)
            broadcast, own = from_record(message.content, "common", "own")
            answer = self.nodes[message.metadata.dst_node_id](broadcast, own)
            if answer is None:
                continue
            content = answer if isinstance(answer, Error) else to_record({"reply": answer})
            self.replies[name] = Message(content, reply_to=message)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = [name for name in message_ids if name in self.replies]
        return [self.replies.pop(name) for name in reversed(found)]


@define(eq=False)
class Clock:
    """Time passes while one sleeps."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower tells the process of an app, and a message asks for."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def at_work(village: Village, directory: KeyDirectory | None = None) -> FlowerExchange:
    clock = Clock()
    engine = ConnectedEngine(Flower(), directory, cast("Grid", village), clock, clock.sleep)
    return engine.connect(None)


def resident(
    site: int, answer: Callable[[bytes, bytes], bytes], key: SigningKey | None = None
) -> Answer:
    """A node behind which a site is."""

    def hears(broadcast: bytes, own: bytes) -> bytes:
        try:
            call = decode(broadcast, IdentifyRequest)
        except MessageError:
            return answer(broadcast, own)
        text = IdentifyReply.statement(call.challenge, site)
        return encode(IdentifyReply(site, b"" if key is None else key.sign(text)))

    return hears


def says(word: bytes) -> Callable[[bytes, bytes], bytes]:
    return lambda broadcast, own: word + broadcast + own


@frozen
class Rehearsed:
    """The engine with its own grid in this process, so that the kit can try it."""

    def connect(self, sites: Mapping[int, SiteFactory] | None) -> FlowerExchange:
        assert sites is not None
        made: dict[int, SiteHandle] = {site: recipe.create() for site, recipe in sites.items()}
        nodes = {1000 - site: resident(site, opened.answer) for site, opened in made.items()}
        return at_work(Village(nodes))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_exchange_keeps_the_contract_of_engines(check: Callable[[Any], str | None]) -> None:
    if "deadline" in check.__name__:
        pytest.skip("sites of the kit take real time; tests below have deadlines on a clock")
    assert check(Rehearsed()) != "not tried"


def test_flower_engine_outside_server_app_is_refused() -> None:
    with pytest.raises(RequestError, match="start or resume the study with `flwr run`"):
        Flower().connect(None)
    with pytest.raises(StudyError, match="cannot simulate"):
        Flower().connect({})


def test_a_site_that_is_silent_has_dropped_out() -> None:
    village = Village({7: resident(0, says(b"a")), 8: resident(1, says(b"b"))})
    exchange = at_work(village)
    each = {0: b"0", 1: b"1"}
    assert dict(exchange.exchange(b"x", each, 60.0)) == {0: b"ax0", 1: b"bx1"}
    village.nodes[8] = lambda _common, _own: None
    before = exchange.engine.clock()
    assert dict(exchange.exchange(b"y", each, 60.0)) == {0: b"ay0"}
    assert 60 <= exchange.engine.clock() - before < 62
    village.nodes[8] = resident(1, says(b"late"))
    assert dict(exchange.exchange(b"z", each, 60.0)) == {0: b"az0", 1: b"latez1"}


def test_lost_flower_node_is_not_awaited() -> None:
    village = Village({7: resident(0, says(b"a")), 8: resident(1, says(b"b"))})
    exchange = at_work(village)
    each = {0: b"0", 1: b"1"}
    assert len(dict(exchange.exchange(b"x", each))) == 2

    def dies(_common: bytes, _own: bytes) -> None:
        village.alive = {7}

    village.nodes[8] = dies
    assert dict(exchange.exchange(b"y", each)) == {0: b"ay0"}
    assert exchange.engine.clock() < 20
    assert dict(exchange.exchange(b"z", each)) == {0: b"az0"}
    # With the key that Flower knows it by, it comes back as the same node; or as another one.
    for node in (8, 9):
        village.nodes[node] = resident(1, says(b"back"))
        village.alive = {7, node}
        assert dict(exchange.exchange(b"z", each)) == {0: b"az0", 1: b"backz1"}


def test_flower_error_is_not_a_reply() -> None:
    village = Village({7: resident(0, says(b"a"))})
    exchange = at_work(village)
    assert dict(exchange.exchange(b"x", {0: b""})) == {0: b"ax"}
    village.nodes[7] = lambda _common, _own: Error(2, "crashed\x1b[31m")
    assert dict(exchange.exchange(b"x", {0: b""})) == {}


def test_repeated_node_failure_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    village = Village({7: resident(0, says(b"a")), 8: lambda _common, _own: Error(2, "no\x1b[31m")})
    exchange = at_work(village)
    assert dict(exchange.exchange(b"x", {0: b"", 1: b""})) == {0: b"ax"}
    assert len(village.sent) > 5
    village.nodes[7] = lambda _common, _own: Error(2, "crashed")
    assert dict(exchange.exchange(b"y", {0: b""})) == {}
    told = [record.getMessage() for record in caplog.records]
    assert told == ["cohortium: node 8: no\\x1b[31m", "cohortium: node 7: crashed"]


def test_two_nodes_claiming_one_site_are_refused() -> None:
    village = Village(
        {7: resident(0, says(b"a")), 8: resident(0, says(b"b")), 9: resident(1, says(b""))}
    )
    with pytest.raises(StudyError, match="nodes 8 and 7 both say that they are site 0"):
        list(at_work(village).exchange(b"x", {0: b"", 1: b""}))
    assert not any(b"x" in from_record(m.content, "common", "own") for m in village.sent)


def test_later_node_cannot_replace_connected_site() -> None:
    village = Village({7: resident(0, says(b"a")), 8: resident(1, says(b"b"))})
    exchange = at_work(village)
    each = {0: b"", 1: b""}
    assert len(dict(exchange.exchange(b"x", each))) == 2
    village.nodes[9] = resident(0, says(b"impostor"))
    assert dict(exchange.exchange(b"y", each)) == {0: b"ay", 1: b"by"}


def test_key_directory_identifies_site_nodes() -> None:
    keys = [SigningKey.generate(Randomness.insecure_from_seed(1).derive(n)) for n in range(2)]
    directory = KeyDirectory(tuple(key.public for key in keys))
    stranger = SigningKey.generate(Randomness.insecure_from_seed(2))
    village = Village(
        {
            5: resident(0, says(b"impostor")),
            6: resident(0, says(b"impostor"), stranger),
            7: resident(0, says(b"impostor"), keys[1]),
            8: resident(0, says(b"a"), keys[0]),
            9: resident(1, says(b"b"), keys[1]),
        }
    )
    each = {0: b"", 1: b""}
    assert dict(at_work(village, directory).exchange(b"x", each)) == {0: b"ax", 1: b"bx"}


def test_identify_reply_cannot_be_replayed() -> None:
    key = SigningKey.generate(Randomness.insecure_from_seed(1))
    directory = KeyDirectory((key.public,))
    heard: list[bytes] = []
    honest = resident(0, says(b"a"), key)

    def overheard(broadcast: bytes, own: bytes) -> bytes:
        heard.append(cast("bytes", honest(broadcast, own)))
        return heard[-1]

    assert dict(at_work(Village({1: overheard}), directory).exchange(b"x", {0: b""}))
    village = Village({2: lambda _common, _own: heard[0]})
    assert dict(at_work(village, directory).exchange(b"x", {0: b""})) == {}


def test_unidentifiable_nodes_are_ignored() -> None:
    village = Village(
        {
            1: lambda _common, _own: b"garbage",
            2: lambda _common, _own: None,
            3: lambda _common, _own: Error(2, "no"),
            4: resident(0, says(b"a")),
        }
    )
    exchange = at_work(village)
    assert dict(exchange.exchange(b"x", {0: b"", 1: b""})) == {0: b"ax"}
    assert exchange.nodes == {0: 4}


def test_equal_parts_are_sent_once() -> None:
    one, other = to_record({"common": b"w", "own": b"1"}), to_record({"common": b"w", "own": b"2"})
    assert one["common"].object_id == other["common"].object_id
    assert one["own"].object_id != other["own"].object_id


@pytest.mark.parametrize(
    "content",
    [
        to_record({"common": b""}),
        to_record({"common": b"", "own": b"", "more": b""}),
        RecordDict(),
    ],
)
def test_malformed_record_is_refused(content: RecordDict) -> None:
    with pytest.raises(MessageError):
        from_record(content, "common", "own")


def test_client_app_forwards_without_machine_details(tmp_path: Path) -> None:
    import os
    import socket
    import threading

    from cohortium.deployment.unix_socket import SiteSocketServer
    from cohortium_flower.client_app import app

    context = Context(1, 2, {"socket": str(tmp_path / "s"), "patience": 0.0}, RecordDict(), {})
    message = Message(to_record({"common": b"c", "own": b"o"}), 2, "query")
    message.metadata.__dict__["_message_id"] = "m"
    door = SiteSocketServer(tmp_path / "s", lambda broadcast, own: broadcast + own, {os.getuid()})
    with door.open() as listener:
        thread = threading.Thread(target=door.serve, args=(listener,))
        thread.start()
        reply = app(message=message, context=context)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert from_record(reply.content, "reply") == [b"co"]
    for config in (context.node_config, {}, {"socket": "s", "user": "no such user"}):
        absent = Context(1, 2, dict(config), RecordDict(), {})
        failed = app(message=message, context=absent)
        assert (
            failed.error.reason
            == "the hospital's site process does not answer; its own log says why."
        )


def test_log_has_a_line_for_each_round(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever streams the log of a run sees that it moves."""
    tiny_federation(rounds=2).run(observers=[RunLog()])
    lines = [line for line in caplog.messages if line.startswith("cohortium: ")]
    assert re.fullmatch(r"cohortium: \d+ sites, 2 rounds; .+", lines[0])
    assert [line.split(",")[0] for line in lines[1:]] == [
        f"cohortium: round {number}/2: {lines[0].split()[1]} sites in the sum" for number in (1, 2)
    ]
