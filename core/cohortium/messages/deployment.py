"""Messages between the coordinator and a hospital before the first round of a deployment."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cohortium.messages.codec import Message
from cohortium.messages.run import Count, Session

Versions = Annotated[dict[str, str], msgspec.Meta(max_length=100)]
"""Versions of Python, of packages, and of the plugins that a study is made of, by name."""


class IdentifyRequest(Message, frozen=True, tag="identify-request"):
    """Before a deployment: to whoever is there, to say which site it is.

    Attributes:
        challenge: Drawn for this one party; a signature of an answer covers it.
    """

    challenge: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class IdentifyReply(Message, frozen=True, tag="identify-reply"):
    """Which site answers a roll call, and its key's signature of that; empty without a key."""

    site: Count
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]

    @staticmethod
    def statement(challenge: bytes, site: int) -> bytes:
        """What is signed, to `challenge`, by the key of `site`."""
        return b"cohortium roll call\x1f" + challenge + site.to_bytes(4, "big")


class Invitation(Message, frozen=True, tag="invitation"):
    """The setting of a run, to every site before the first round.

    It is a study in TOML, not code and not a pickle: its tables are those of `AGREED`, and whoever
    receives it makes the parts, the plan and the setting itself.  What holds on receipt stands in
    `site_server`.

    Attributes:
        session: Names the run; drawn by the coordinator.
        study: The tables [federation], [data], [model], [trainer], [privatizer], [aggregator].
        directory: The sites' public keys as the coordinator has them, in a directory's own form;
            empty without signatures.
        versions: Of what the study is made of at the coordinator.
    """

    session: Session
    study: Annotated[str, msgspec.Meta(max_length=1 << 16)]
    directory: Annotated[str, msgspec.Meta(max_length=1 << 23)]
    versions: Versions


AGREED = ("federation", "data", "model", "trainer", "privatizer", "aggregator")
"""The tables of a study that all parties share; no other is ever sent, or accepted."""


class Acceptance(Message, frozen=True, tag="acceptance"):
    """A site takes part: it has data of the declared kind, and the run is above its floors.

    Attributes:
        session: The run's.
        site: Its number.
        examples: How many training examples the hospital *declares* to have, in its site file: a
            public figure, never counted.  0 declares none.
        versions: Of the same things at the site, as far as they differ.
    """

    session: Session
    site: Count
    examples: Count
    versions: Versions
