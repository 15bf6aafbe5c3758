"""`cohortium site` and `cohortium rehearse`: a site's server, and a rehearsal of it."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli._options import Settings, Study, federation_of
from cohortium.text import told


def site(
    path: Annotated[Path, typer.Argument(help="The hospital's site file.")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Try the hospital's own files, and serve nothing.")
    ] = False,
) -> None:
    """Serve a hospital.

    Answers the runs that its policy allows, on a socket that only this machine reaches.

    Examples:
      cohortium site site.toml --check
      cohortium site site.toml
    """
    from cohortium.deployment.site_config import Hospital
    from cohortium.deployment.site_server import Reception
    from cohortium.deployment.socket_access import Callers
    from cohortium.deployment.unix_socket import Door

    hospital = Hospital.read(path)
    callers = Callers.named(hospital.client_user, hospital.group)
    with contextlib.ExitStack() as stack:
        journal = hospital.open_journal()
        stack.callback(journal.close)
        reception = Reception(hospital, journal, tell=_tell)
        stack.callback(reception.close)
        reception.try_out()
        _tell(f"site {hospital.id}: data, keys, ledger and policy are in order")
        if hospital.policy.directory is not None:
            _tell(f"the pinned directory is {hospital.policy.directory.fingerprint.hex()}")
        if check:
            return
        reception.warm_up()
        door = Door(
            hospital.folder / hospital.socket,
            reception.answer,
            callers.users,
            callers.group,
            tell=_tell,
        )
        with door.open() as listener:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            _tell(f"site {hospital.id} listens at {door.path}")
            door.serve(listener)


def _tell(sentence: str) -> None:
    typer.echo(told(sentence), err=True)


def rehearse(
    study: Study = None,
    *,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
) -> None:
    """Deal a study's data to hospitals on paper.

    Writes a folder for each, and the study of their deployment, to rehearse it.

    Examples:
      cohortium rehearse study.toml --out rehearsal
    """
    from cohortium.deployment.rehearsal import deal as write
    from cohortium.runs.run_directory import require_new

    require_new(out)
    ready = federation_of(study, settings).prepare()
    write(ready, out)
    typer.echo(f"{ready.setting.cohort.sites} hospitals and their study are in {out}")
