"""Codes of refusals that only this plugin gives."""

from __future__ import annotations

from enum import StrEnum


class AdditiveRefusalCode(StrEnum):
    """Code of a refusal, in addition to those of the core."""

    KEYS = "keys"
    TOO_FEW = "too-few"
    SEALED = "sealed"
    SMALL_ORDER = "small-order"
