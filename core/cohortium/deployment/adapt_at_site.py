"""A hospital's own images and state, to adapt a model with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cohortium.deployment.participation import ParticipationStore
from cohortium.errors import CohortiumError
from cohortium.messages import codec
from cohortium.messages.deployment import Invitation
from cohortium.study import toml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cohortium.deployment.site_config import SiteConfig

SAME = ("model", "trainer", "federation", "privatizer", "aggregator")
"""Tables that a run's study and the site's invitation to that run have in common."""


def find_state(site_config: SiteConfig, study: Mapping[str, Any]) -> Path | None:
    """Return the file of the trainer's state that the site keeps for a run, or None.

    It is of the run with the same study in which the site was active last.

    Args:
        site_config: The site.
        study: The tables of the run's study.
    """
    folder = site_config.folder / site_config.runs_dir
    if not folder.is_dir():
        return None
    for session, invitation in ParticipationStore(folder).sessions():
        try:
            tables = toml.loads(codec.decode(invitation, Invitation).study, where="the invitation")
        except CohortiumError:
            continue
        path = site_config.state_file(session)
        if all(_is_part_of(tables.get(name), study.get(name)) for name in SAME) and path.is_file():
            return path
    return None


def _is_part_of(sent: Any, whole: Any) -> bool:
    """Return whether a value that the site was sent is that of the whole study.

    A site is not sent every key, such as the coordinator's folders.
    """
    if isinstance(sent, dict) and isinstance(whole, dict):
        return all(key in whole and _is_part_of(value, whole[key]) for key, value in sent.items())
    return bool(sent == whole)
