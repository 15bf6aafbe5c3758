"""`cohortium site` and `cohortium rehearse`: a site's server and its rehearsal."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli._data import print_facts
from cohortium.cli._options import Overrides, Study, federation_of
from cohortium.errors import DataError, RefutedError, RequestError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.deployment.site_config import SiteConfig

_LOG = logging.getLogger(__name__)

OLDER_COPY = (
    "its trail and its other files contradict each other, as the lines above say; stop the site, "
    "and put the newest files back, or follow docs/incidents.md."
)
"""Advice to a site's staff if some of its files are older copies."""


def site(
    path: Annotated[Path, typer.Argument(help="The hospital's site file.")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Try the hospital's own files, and serve nothing.")
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option(help="The page of --check; default data.html next to the ledger."),
    ] = None,
) -> None:
    """Serve a site.

    Answers the runs that the site's policy allows, on a socket that only this machine reaches.
    With --check it writes a page about the site's images, those of [test] included. The page stays
    on this machine. It alone names the files that cannot be read.

    Examples:
      cohortium site site.toml --check
      cohortium site site.toml
    """
    from cohortium.deployment.core_dumps import forbid_core_dumps
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.deployment.site_server import SiteServer
    from cohortium.deployment.socket_access import AllowedUsers
    from cohortium.deployment.unix_socket import SiteSocketServer

    if page is not None and not check:
        raise RequestError("--page is the page of --check; give both, or neither.")
    forbid_core_dumps()
    site_config = SiteConfig.read(path)
    if check:
        beside = (site_config.folder / site_config.ledger).parent
        _look_at(site_config, beside / "data.html" if page is None else page)
    callers = AllowedUsers.named(site_config.client_user, site_config.group)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to_stderr())
        journal = site_config.open_journal()
        stack.callback(journal.close)
        reception = SiteServer(site_config, journal)
        stack.callback(reception.close)
        agrees = reception.self_check()
        if agrees:
            _LOG.info("site %d: data, keys, ledger and policy are in order", site_config.id)
        elif not check:
            _LOG.warning("site %d: %s", site_config.id, OLDER_COPY)
        if site_config.policy.directory is not None:
            fingerprint = site_config.policy.directory.fingerprint.hex()
            _LOG.info("the pinned directory is %s", fingerprint)
        if check:
            if not agrees:
                raise RefutedError(f"site {site_config.id}: {OLDER_COPY}")
            return
        reception.warm_up()
        door = SiteSocketServer(
            site_config.folder / site_config.socket,
            reception.answer,
            callers.users,
            callers.group,
        )
        with door.open() as listener:
            reception.record_start()
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            _LOG.info("site %d listens at %s", site_config.id, door.path)
            door.serve(listener)


def _look_at(site_config: SiteConfig, page: Path) -> None:
    """Write the page about a site's data, and stop if they cannot be used."""
    from cohortium.deployment.site_look import look_at_site
    from cohortium.reporting.data_page import check_page, write_page

    check_page(page)
    facts = look_at_site(site_config)
    write_page(facts, page)
    print_facts(facts, page, is_private=True)
    if not facts.is_usable:
        raise DataError(
            f"site {site_config.id}: its data cannot be used; correct the faults that {page} lists."
        )


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Write Cohortium's log to the standard error stream, one sentence a line."""
    log, handler = logging.getLogger("cohortium"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_SafeFormatter())
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _SafeFormatter(logging.Formatter):
    """Formatter of a message alone, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return sanitize(super().format(record))


def rehearse(
    study: Study = None,
    *,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
) -> None:
    """Create a rehearsal deployment from a simulated study.

    Writes one folder per site and the deployment's study file.

    Examples:
      cohortium rehearse study.toml --out rehearsal
    """
    from cohortium.deployment.rehearsal import write_rehearsal
    from cohortium.runs.run_directory import require_empty

    require_empty(out)
    ready = federation_of(study, overrides).prepare()
    write_rehearsal(ready, out)
    typer.echo(f"{ready.run_config.federation_spec.sites} hospitals and their study are in {out}")
