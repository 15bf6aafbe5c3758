"""The study that trained an evaluated model, among those that a site has accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cohortium.errors import CohortiumError
from cohortium.messages import codec
from cohortium.messages.deployment import Invitation
from cohortium.study import toml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.deployment.participation import ParticipationStore

SAME = ("model", "trainer", "aggregator")
"""Tables that a study and its evaluation have in common."""


def trained_study(store: ParticipationStore, session: bytes) -> str:
    """Return the study whose model the run `session` evaluates, as the site has accepted it.

    It is the one with the same model and trainer in which the site was active last.  The size of
    an invitation bounds its own.

    Returns:
        The study, or "" if the site has accepted none.
    """
    evaluation = _tables(store.for_session(session).invitation())
    if evaluation is None:
        return ""
    for invitation in store.invitations():
        tables = _tables(invitation)
        if tables is None or "measurement" in tables:
            continue
        if all(tables.get(name) == evaluation.get(name) for name in SAME):
            return codec.decode(invitation, Invitation).study
    return ""


def _tables(invitation: bytes | None) -> Mapping[str, Any] | None:
    if invitation is None:
        return None
    try:
        return toml.loads(codec.decode(invitation, Invitation).study, where="the invitation")
    except CohortiumError:
        return None
