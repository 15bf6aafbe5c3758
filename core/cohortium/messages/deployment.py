"""Messages between coordinator and hospital before a deployment's first round."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cohortium.messages.codec import Message
from cohortium.messages.run import Count, Session

_Word = Annotated[str, msgspec.Meta(max_length=200)]

Versions = Annotated[dict[_Word, _Word], msgspec.Meta(max_length=100)]
"""Versions of Python, packages and a study's plugins, by name."""


class IdentifyRequest(Message, frozen=True, tag="identify-request"):
    """Request to an unidentified party to identify its site, before a deployment.

    Attributes:
        challenge: Random bytes for this one party, which the signature of the reply covers.
    """

    challenge: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class IdentifyReply(Message, frozen=True, tag="identify-reply"):
    """Number of the replying site, and its key's signature.

    Without a key, the signature is empty.
    """

    site: Count
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]

    @staticmethod
    def statement(challenge: bytes, site: int) -> bytes:
        """Return the text that the key of `site` signs for `challenge`."""
        return b"cohortium roll call\x1f" + challenge + site.to_bytes(4, "big")


class Invitation(Message, frozen=True, tag="invitation"):
    """Study of a run, to every site before the first round.

    It is a study in TOML, not code and not a pickle. Its tables are those of `AGREED`, and perhaps
    those of `OPTIONAL`. The receiver builds the parts, the plan and the run configuration itself.
    `site_server` describes the guarantees on receipt.

    Attributes:
        session: Name of the run, drawn by the coordinator.
        study: The tables [federation], [data], [model], [trainer], [privatizer], [aggregator], and
            [measurement] if the sites measure instead of training.
        directory: The coordinator's copy of the sites' public keys, in a directory's own form.
            Empty without signatures.
        versions: The coordinator's versions of the study's packages and plugins.
    """

    session: Session
    study: Annotated[str, msgspec.Meta(max_length=1 << 16)]
    directory: Annotated[str, msgspec.Meta(max_length=1 << 23)]
    versions: Versions


AGREED = ("federation", "data", "model", "trainer", "privatizer", "aggregator")
"""Tables of a study that all parties share.

Except for those of `OPTIONAL`, no other table is ever sent, or accepted.
"""

OPTIONAL = ("measurement",)
"""Tables that the parties of some studies share, too."""


class Acceptance(Message, frozen=True, tag="acceptance"):
    """Consent of a site to a run.

    The site's data are of the declared kind, and the run meets each floor of its policy.

    Attributes:
        session: Session of the run.
        site: Number of the site.
        examples: Number of examples that the hospital *declares* in its site file. They are those
            of the run: training images, or test images. It is a public figure, never counted. 0
            declares none.
        versions: The site's versions of the same things, as far as they differ.
    """

    session: Session
    site: Count
    examples: Count
    versions: Versions
