"""Rehearsed hospitals whose servers run in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define

from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_server import SiteServer


@define(eq=False)
class Corridor:
    """An engine to the servers of hospitals in this process."""

    servers: Mapping[int, SiteServer]

    def connect(self, sites: object) -> Any:
        return self

    def exchange(self, broadcast: bytes, per_site: Any, timeout: object = None) -> Any:
        for site, own in per_site.items():
            yield site, self.servers[site].answer(broadcast, own)

    def close(self) -> None: ...


@contextlib.contextmanager
def serving(folder: Path, sites: int = 2) -> Iterator[Corridor]:
    """Serve the hospitals of a rehearsal in `folder`."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for site in range(sites):
            config = SiteConfig.read(folder / f"site-{site}" / "site.toml")
            journal = config.open_journal()
            stack.callback(journal.close)
            servers[site] = SiteServer(config, journal)
        yield Corridor(servers)
