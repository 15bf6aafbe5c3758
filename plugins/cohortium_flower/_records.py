"""Conversion of Cohortium's bytes to Flower's records and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, RecordDict

from cohortium.plugin import MessageError

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "bytes"


def to_record(parts: Mapping[str, bytes]) -> RecordDict:
    """Build a record for each part.

    Flower stores equal records once, for any number of nodes that receive them.
    """
    return RecordDict({name: ConfigRecord({KEY: part}) for name, part in parts.items()})


def from_record(content: RecordDict, *names: str) -> list[bytes]:
    """Return the parts called `names`.

    Raises:
        MessageError: There are other parts, or one is missing or not bytes.
    """
    records = content.config_records
    if {*content} != {*names} or {*records} != {*names}:
        raise MessageError(f"a Flower message holds other records than {' and '.join(names)}.")
    parts = [records[name].get(KEY) for name in names]
    if any(len(records[name]) != 1 for name in names):
        raise MessageError("a record of a Flower message holds more than bytes.")
    found = [part for part in parts if isinstance(part, bytes)]
    if len(found) != len(names):
        raise MessageError("a record of a Flower message holds no bytes.")
    return found
