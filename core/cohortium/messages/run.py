"""Messages between the coordinator and a site in a round, around those of the aggregator."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cohortium.messages.codec import Message

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""A round, attempt or stage."""

Session = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""Names a run."""


class Request(Message, frozen=True, tag="request"):
    """To every site that is asked: the part they have in common.

    Attributes:
        session: The run.
        round: From 0.
        attempt: From 0, over the run; grows with every attempt.
        stage: Exchanges so far in this attempt.
        weights: Global weights, `float32` little-endian, with an attempt's first request only.
        body: The aggregator's common part.
    """

    session: Session
    round: Count
    attempt: Count
    stage: Count
    weights: memoryview | None
    body: bytes


class Reply(Message, frozen=True, tag="reply"):
    """A site's answer: where it belongs, and the aggregator's bytes."""

    attempt: Count
    stage: Count
    body: bytes


class Refusal(Message, frozen=True, tag="refusal"):
    """A site's refusal: a code for programs and one sentence for people.

    It names a condition of the request or of this site's update, never a value of the data.
    """

    attempt: Count
    stage: Count
    code: Annotated[str, msgspec.Meta(max_length=64)]
    reason: Annotated[str, msgspec.Meta(max_length=1000)]
