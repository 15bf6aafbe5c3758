"""Messages between coordinator and site in a round.

They enclose those of the aggregator.
"""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec

from cohortium.messages.codec import Message

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""Number of a round, attempt or stage."""

Session = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""Name of a run."""


MAX_PLAN_STATE = 1024
"""Most numbers in the state of a privacy plan."""

Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""A number, neither infinite nor NaN."""

PlanState = Annotated[tuple[Finite, ...], msgspec.Meta(max_length=MAX_PLAN_STATE)]
"""State of a privacy plan."""


class Request(Message, frozen=True, tag="request", omit_defaults=True):
    """Common part of a request, for every site that is asked.

    Attributes:
        session: Session of the run.
        round: Number of the round, from 0.
        attempt: Number of the attempt, from 0 over the run. It grows with every attempt.
        stage: Number of exchanges so far in this attempt.
        weights: Global weights, `float32` little-endian, with an attempt's first request only.
        body: The aggregator's common part.
        plan_state: State of the privacy plan, with an attempt's first request only.
        server_state: Server state of the trainer, `float32` little-endian, with an attempt's first
            request only.
    """

    session: Session
    round: Count
    attempt: Count
    stage: Count
    weights: memoryview | None
    body: bytes
    plan_state: PlanState = ()
    server_state: memoryview | None = None


class Reply(Message, frozen=True, tag="reply"):
    """A site's reply: its attempt and stage, and the aggregator's bytes."""

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
