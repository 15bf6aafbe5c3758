"""Codes of refusals that only this plugin gives."""

from __future__ import annotations

from enum import StrEnum


class SecAggRefusalCode(StrEnum):
    """Code of a refusal, in addition to those of the core."""

    SIGNATURE = "signature"
    CONSENT = "consent"
    SMALL_ORDER = "small-order"
    SEALED = "sealed"
    NEIGHBOURHOOD = "neighbourhood"
    ATTEMPT = "attempt"
    SURVIVORS = "survivors"
    FLOOR = "floor"
