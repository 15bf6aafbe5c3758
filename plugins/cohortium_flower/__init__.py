"""Real hospitals over Flower: messages travel through its SuperLink and SuperNodes.

Flower carries bytes and starts processes.  The rounds, the privacy and the aggregation are
Cohortium's own and the same as under any engine.  The modules `server_app` and `client_app` hold
the components that a Flower app names.  The page `docs/deploy.md` describes the setup.

Needs the extra: `pip install 'cohortium[flower]'`.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import Engine, Offer, RequestError, StudyError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import EngineSession, SiteFactory, SiteId

COHORTIUM_API = 1


@frozen(kw_only=True)
class Flower:
    """Hospitals that answer through Flower's SuperNodes.

    Attributes:
        connect_timeout: Longest wait for the sites before the run, in seconds.
        poll_interval: Seconds between two polls for replies.
    """

    connect_timeout: float = field(default=120.0, validator=[ge(0), le(1e6)])
    poll_interval: float = field(default=0.5, validator=[ge(1e-3), le(3600)])

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        """Refuse, because Flower starts the coordinator of a deployment.

        Raises:
            StudyError, RequestError: Always.  The sentence says how to start it.
        """
        if sites is not None:
            raise StudyError(
                "the engine 'flower' reaches real hospitals and cannot simulate them; declare "
                "[data] in place of [dataset] and [partitioner], or take the engine 'inline'."
            )
        raise RequestError(
            "the engine 'flower' works inside a Flower ServerApp: start or resume the study with "
            "`flwr run`, as docs/deploy.md says."
        )

    def coordinator_command(
        self, *, resume: str = "", evaluate: str = "", is_signed: bool = False
    ) -> str:
        """Return the `flwr run` of the app in `docs/deploy`, with these values of its settings."""
        settings = {
            "resume": resume,
            "evaluate": evaluate,
            "out": "NEW-FOLDER" if evaluate else "",
            "sign-with": "KEY" if is_signed else "",
        }
        given = " ".join(f'{key}="{value}"' for key, value in settings.items() if value)
        return f"flwr run app study --stream --run-config {shlex.quote(given)}"


@hookimpl
def cohortium_engines() -> list[Offer[Engine]]:
    """Offer `flower`."""
    return [Offer("flower", Flower, "Hospitals, each behind a Flower SuperNode.")]
