"""The contract of an `Engine`: it delivers bytes and replies unchanged.

Bytes reach the right site, and the bytes of the site come back.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from typing import TYPE_CHECKING

from attrs import define, frozen

from cohortium.errors import StudyError
from cohortium.testing.contract import Check, ConformanceError, ensure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cohortium.roles.protocols import Engine
    from cohortium.roles.sessions import EngineSession, SiteHandle
    from cohortium.roles.values import SiteId

SITES = 5
"""Number of sites on which an engine is tried."""

DEADLINE = 0.1
"""Seconds that a site has in the check of deadlines."""

SLOW_SECONDS = 5 * DEADLINE
"""Seconds that a late site takes."""

AWKWARD = (b"", bytes(range(256)), b"\x00" * 3, b"\r\n\xff", bytes(1 << 20))
"""Messages that a careless channel would change."""


@define
class EchoSite:
    """Site that reports its number, its count of requests, and each request."""

    site: SiteId
    is_beside_a_site: bool
    asked: int = 0

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """Return the whole request, with digests that separate its parts."""
        self.asked += 1
        return echo(self.site, self.asked, broadcast, own)


@frozen
class EchoSiteFactory:
    """Factory of an `EchoSite`, in any process."""

    site: SiteId

    def create(self, share_model_with: SiteHandle | None = None) -> EchoSite:
        """Make the site.

        It refuses to share a model with an object that is not a site.
        """
        if share_model_with is not None and not isinstance(share_model_with, EchoSite):
            raise ConformanceError(
                f"the shared model was given as a {type(share_model_with).__name__}; give an "
                "open site of the same process, or None."
            )
        return EchoSite(self.site, share_model_with is not None)


@define
class SlowSite(EchoSite):
    """An `EchoSite` that replies slowly to the first request."""

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        """Return the reply of an `EchoSite`, too late."""
        if not self.asked:
            time.sleep(SLOW_SECONDS)
        return EchoSite.answer(self, broadcast, own)


@frozen
class SlowSiteFactory(EchoSiteFactory):
    """Factory of a `SlowSite`, in any process."""

    def create(self, share_model_with: SiteHandle | None = None) -> SlowSite:
        """Make the site, and accept any `share_model_with`."""
        return SlowSite(self.site, share_model_with is not None)


def echo(site: SiteId, asked: int, broadcast: bytes, own: bytes) -> bytes:
    """Return the reply of an `EchoSite` to its request number `asked`."""
    digest = hashlib.sha256(broadcast).digest() + hashlib.sha256(own).digest()
    return bytes([site, asked]) + digest + broadcast + own


def check_delivers(engine: Engine) -> str | None:
    """Each request reaches its own site, and each reply comes once.

    The engine yields it with its site.
    """
    exchange = _opened(engine, range(SITES))
    if exchange is None:
        return "serves no simulated sites, so that nothing was tried"
    try:
        each = {site: f"for {site}".encode() for site in (3, 0, 4)}
        _ensure_echoes(exchange, b"to all", each, asked=1)
        _ensure_echoes(exchange, b"again", each, asked=2)
    finally:
        exchange.close()
    return None


def check_alters_no_byte(engine: Engine) -> str | None:
    """Messages arrive as they were sent, even empty and large ones."""
    exchange = _opened(engine, range(SITES))
    if exchange is None:
        return "not tried"
    try:
        for number, broadcast in enumerate(AWKWARD):
            _ensure_echoes(exchange, broadcast, dict(enumerate(AWKWARD)), asked=number + 1)
    finally:
        exchange.close()
    return None


def check_asks_no_one_else(engine: Engine) -> str | None:
    """A site that is not in the exchange is not asked."""
    exchange = _opened(engine, range(SITES))
    if exchange is None:
        return "not tried"
    try:
        _ensure_echoes(exchange, b"", {1: b"you"}, asked=1)
        _ensure_echoes(exchange, b"", {2: b"and you"}, asked=1)
        ensure(
            not list(exchange.exchange(b"nobody", {})),
            "an exchange with no site yielded replies; ask those in `each` and no one else.",
        )
    finally:
        exchange.close()
    return None


def check_keeps_deadlines(engine: Engine) -> str | None:
    """A reply after the deadline is never yielded.

    The site is not lost.
    """
    late = 1
    recipes = {site: EchoSiteFactory(site) for site in range(SITES)} | {late: SlowSiteFactory(late)}
    try:
        exchange = engine.connect(recipes)
    except StudyError:
        return "not tried"
    each = {site: f"for {site}".encode() for site in recipes}
    try:
        # The machine's speed decides how many of the others reply in time.
        found = {site for site, _ in exchange.exchange(b"in a hurry", each, DEADLINE)}
        ensure(
            late not in found,
            f"site {late} took {SLOW_SECONDS} s over its answer, and the reply was yielded "
            "although the "
            f"deadline was {DEADLINE} s; leave out later replies.",
        )
        _ensure_echoes(exchange, b"at leisure", each, asked=2, unless_lost=1)
    finally:
        exchange.close()
    return None


def check_takes_pickled_recipes(engine: Engine) -> str | None:
    """Site factories work after pickling, with any site numbers."""
    sites = (7, 2)
    recipes: dict[SiteId, EchoSiteFactory] = pickle.loads(  # noqa: S301 - what was just dumped
        pickle.dumps({site: EchoSiteFactory(site) for site in sites})
    )
    try:
        exchange = engine.connect(recipes)
    except StudyError:
        return "not tried"
    try:
        _ensure_echoes(exchange, b"hello", dict.fromkeys(sites, b"you"), asked=1)
    finally:
        exchange.close()
    return None


def check_closes(engine: Engine) -> str | None:
    """`close` may come twice or during an exchange.

    The engine can connect again.
    """
    for _ in range(2):
        exchange = _opened(engine, range(SITES))
        if exchange is None:
            return "not tried"
        _ensure_echoes(exchange, b"", {0: b"whole"}, asked=1)
        next(iter(exchange.exchange(b"", dict.fromkeys(range(SITES), b"half"))), None)
        try:
            exchange.close()
            exchange.close()
        except Exception as error:
            raise ConformanceError(
                f"close raised {type(error).__name__}: {error}; it is called after any outcome, so "
                "let it work at any time."
            ) from error
    return None


CHECKS: tuple[Check, ...] = (
    check_delivers,
    check_alters_no_byte,
    check_asks_no_one_else,
    check_keeps_deadlines,
    check_takes_pickled_recipes,
    check_closes,
)
"""Every check of an engine."""


def _opened(engine: Engine, sites: Iterable[SiteId]) -> EngineSession | None:
    """Connect the engine, or return None if it takes no simulated sites."""
    try:
        return engine.connect({site: EchoSiteFactory(site) for site in sites})
    except StudyError:
        return None


def _ensure_echoes(
    exchange: EngineSession,
    broadcast: bytes,
    each: Mapping[SiteId, bytes],
    *,
    asked: int,
    unless_lost: int = 0,
) -> None:
    """Make an exchange, and require the right replies.

    Args:
        exchange: The connected engine.
        broadcast: The part for all sites.
        each: The part for each site.
        asked: Number of requests that every site has received by then.
        unless_lost: Number of these requests that the engine may have given up before the site saw
            them.
    """
    try:
        replies = list(exchange.exchange(broadcast, each))
    except Exception as error:
        raise ConformanceError(
            f"an exchange with sites {sorted(each)} raised {type(error).__name__}: {error}; a site "
            "keeps the number under which its recipe was given."
        ) from error
    who = [site for site, _ in replies]
    ensure(
        sorted(who) == sorted(each),
        f"sites {sorted(each)} were asked, and replies came from {sorted(who)}; yield one reply "
        "for each site that answers.",
    )
    for site, reply in replies:
        counts = range(asked - unless_lost, asked + 1)
        ensure(
            reply in [echo(site, count, broadcast, each[site]) for count in counts],
            f"the reply of site {site} is not what it says to its own request, "
            f"asked {asked} times over the run; open each site once, send it `broadcast` and its "
            f"own "
            "part as they are, and yield its reply untouched.",
        )
