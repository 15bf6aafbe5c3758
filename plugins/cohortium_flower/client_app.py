"""The ClientApp: it forwards messages to the site process, and replies back.

Flower starts it afresh for every message.  It holds no data, no key and no state, and reads
nothing.  The SuperNode's configuration names the site's socket:

    flower-supernode … --node-config 'socket="/run/cohortium/site.sock" user="cohortium"'

The option `socket` is the path of the site's socket.  The option `user` is the operating system's
user that the site runs as (default: the SuperNode's own).  The option `patience` is the number of
seconds to wait for a site that restarts (default 60).
"""

from __future__ import annotations

import logging
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Error, Message
from flwr.clientapp import ClientApp

from cohortium.plugin import CohortiumError, RequestError, call_site
from cohortium_flower._records import from_record, to_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import Context, UserConfigValue

PATIENCE = 60.0
"""Seconds to wait for a site that restarts."""

LONGEST = 3600.0
"""The most seconds that `patience` may be."""

ABSENT = Error(2, "the hospital's site process does not answer; its own log says why.")

app = ClientApp()


@app.query()
def forward(message: Message, context: Context) -> Message:
    """Ask the site process, and reply with its bytes.

    Guarantees:
        Only the site's reply leaves.  A failure of this machine is reported as such, without a path
        or a cause.  These go to the SuperNode's log.
    """
    try:
        broadcast, own = from_record(message.content, "common", "own")
        path, user, patience = _site(context.node_config)
        reply = call_site(path, broadcast, own, user=user, patience=patience)
    except CohortiumError as error:
        logging.getLogger("flwr").warning("cohortium: %s", error)
        return Message(ABSENT, reply_to=message)
    return Message(to_record({"reply": reply}), reply_to=message)


def _site(config: Mapping[str, UserConfigValue]) -> tuple[Path, int, float]:
    """Return the site's socket, its user, and the longest wait."""
    socket, user = config.get("socket"), config.get("user", "")
    if not isinstance(socket, str) or not isinstance(user, str):
        raise RequestError("--node-config must name the site's socket, as in 'socket=\"/…\"'.")
    try:
        number = pwd.getpwnam(user).pw_uid if user else os.getuid()
    except (KeyError, ValueError):
        raise RequestError(f"--node-config: this machine has no user {user!r}.") from None
    patience = config.get("patience", PATIENCE)
    if not isinstance(patience, int | float) or not 0 <= patience <= LONGEST:
        raise RequestError(f"--node-config: patience is a number of seconds, 0 to {LONGEST:.0f}.")
    return Path(socket), number, float(patience)
