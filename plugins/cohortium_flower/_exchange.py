"""The engine inside a ServerApp.

It finds the sites among Flower's nodes, and carries messages.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from flwr.app import Message, MessageType

from cohortium.plugin import (
    IdentifyReply,
    IdentifyRequest,
    KeyDirectory,
    MessageError,
    StudyError,
    decode,
    encode,
    escape_control_characters,
)
from cohortium_flower import Flower
from cohortium_flower._records import from_record, to_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flwr.serverapp import Grid

    from cohortium.plugin import Engine, SiteFactory, SiteId

NodeId = int
"""Identifier of a Flower node."""

ROLL_CALL = 60.0
"""Seconds within which a node must say which site it is."""

LIVELINESS = 5.0
"""Seconds between two queries for the nodes that Flower still considers alive."""


@frozen
class ConnectedEngine:
    """The engine of one run, inside its ServerApp."""

    terms: Flower
    directory: KeyDirectory | None
    grid: Grid
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, engine: Engine, directory: str, grid: Grid) -> ConnectedEngine:
        """Build the engine from the study's own engine and directory."""
        terms = engine if isinstance(engine, Flower) else Flower()
        return cls(terms, KeyDirectory.read(Path(directory)) if directory else None, grid)

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> FlowerExchange:
        """Get ready.  The first request finds the sites.

        Raises:
            StudyError: The sites are simulated.
        """
        if sites is not None:
            raise StudyError("the engine 'flower' cannot simulate sites.")
        return FlowerExchange(self)


@define(eq=False)
class FlowerExchange:
    """Exchange of messages with the nodes that are sites.

    Guarantees:
        A node is a site because its own site process says so.  If the study has a directory, the
        site's key has signed that claim for a challenge drawn for this node.  A node whose claim is
        not signed in this way counts as no site.  A number that two nodes claim at once is an
        error, before anything is sent to either.  A node that has a number keeps it while Flower
        considers the node alive.
        A site has one reply to a request, or none.  A reply after the deadline is ignored.  Without
        a deadline, the engine waits for a site while Flower considers its node alive.
    """

    engine: ConnectedEngine
    nodes: dict[SiteId, NodeId] = field(factory=dict)
    _has_waited: bool = False
    _asked: set[NodeId] = field(factory=set)
    _heard: set[NodeId] = field(factory=set)
    # A node that is asked repeatedly is logged once.
    _logged: dict[NodeId, str] = field(factory=dict)

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Send to every connected site, and yield the replies before the deadline."""
        if not per_site:
            return
        self._wait_for_sites(per_site)
        there = {self.nodes[site]: site for site in per_site if site in self.nodes}
        contents = {
            node: {"common": broadcast, "own": per_site[site]} for node, site in there.items()
        }
        for node, reply in self._ask(contents, within=timeout):
            yield there[node], reply

    def close(self) -> None:
        """Forget the nodes.  Flower keeps the connections."""
        self.nodes = {}
        self._asked, self._heard, self._logged = set(), set(), {}
        self._has_waited = False

    def _wait_for_sites(self, wanted: Mapping[SiteId, bytes]) -> None:
        """Find the wanted sites, and wait for them the first time.

        A node is asked once.  Only during this first wait, a node that was silent is asked again.
        Afterwards, only new nodes are asked, and nodes that Flower had lost.  A site may have
        returned, behind its own node or another.
        """
        engine = self.engine
        until = engine.clock() + (0.0 if self._has_waited else engine.terms.connect_timeout)
        self._has_waited = True
        while True:
            alive = {*engine.grid.get_node_ids()}
            self.nodes = {site: node for site, node in self.nodes.items() if node in alive}
            # A node that was lost and has returned must say anew which site it is.
            self._asked &= alive
            self._heard &= alive
            if all(site in self.nodes for site in wanted):
                return
            left = until - engine.clock()
            strangers = alive - (self._heard if left > 0 else self._asked)
            if strangers:
                self._identify(strangers, within=max(left, ROLL_CALL))
            elif left <= 0:
                return
            engine.sleep(engine.terms.poll_interval)

    def _identify(self, nodes: set[NodeId], *, within: float) -> None:
        """Ask nodes which sites they are.

        Raises:
            StudyError: Two nodes claim the same site.
        """
        self._asked |= nodes
        challenges = {node: secrets.token_bytes(32) for node in sorted(nodes)}
        contents = {
            node: {"common": encode(IdentifyRequest(challenge)), "own": b""}
            for node, challenge in challenges.items()
        }
        for node, reply in self._ask(contents, within=within):
            self._heard.add(node)
            site = self._verified_site(node, reply, challenges[node])
            if site is None:
                continue
            if self.nodes.setdefault(site, node) != node:
                raise StudyError(
                    f"the Flower nodes {self.nodes[site]} and {node} both say that they are site "
                    f"{site}; see which hospital has the wrong number, or the other's key."
                )

    def _verified_site(self, node: NodeId, reply: bytes, challenge: bytes) -> SiteId | None:
        """Return the site that a node has proven to be, or None."""
        try:
            present = decode(reply, IdentifyReply, limit=1 << 10)
        except MessageError as error:
            self._log_once(node, f" says nothing of which site it is: {error}")
            return None
        directory, text = self.engine.directory, IdentifyReply.statement(challenge, present.site)
        if directory and not directory.verify(present.site, present.signature, text):
            self._log_once(
                node, f" says that it is site {present.site}, and has not that site's key."
            )
            return None
        return present.site

    def _ask(
        self, contents: Mapping[NodeId, Mapping[str, bytes]], *, within: float | None
    ) -> Iterator[tuple[NodeId, bytes]]:
        """Send each node its parts, and yield the replies in time."""
        grid, clock = self.engine.grid, self.engine.clock
        until = math.inf if within is None else clock() + within
        messages = [
            Message(to_record(parts), node, MessageType.QUERY, ttl=within)
            for node, parts in contents.items()
        ]
        pushed = zip(grid.push_messages(messages), contents, strict=False)
        waiting = {name: node for name, node in pushed if name}
        look = clock() + LIVELINESS
        while waiting and clock() < until:
            for reply in grid.pull_messages([*waiting]):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                answer = None if node is None else self._bytes_of(node, reply)
                if node is not None and answer is not None:
                    yield node, answer
            if clock() >= look:
                alive, look = {*grid.get_node_ids()}, clock() + LIVELINESS
                waiting = {name: node for name, node in waiting.items() if node in alive}
            if waiting:
                self.engine.sleep(self.engine.terms.poll_interval)
        for node in waiting.values():
            self._log_once(node, " has not answered in time.")

    def _bytes_of(self, node: NodeId, reply: Message) -> bytes | None:
        if reply.has_error():
            self._log_once(node, f": {reply.error.reason}")
            return None
        try:
            (answer,) = from_record(reply.content, "reply")
        except MessageError as error:
            self._log_once(node, f": {error}")
            return None
        self._logged.pop(node, None)
        return answer

    def _log_once(self, node: NodeId, what: str) -> None:
        """Log a problem of a node, unless it was logged last."""
        if self._logged.get(node) == what:
            return
        self._logged[node] = what
        logging.getLogger("flwr").warning(
            "cohortium: node %d%s", node, escape_control_characters(what)
        )
