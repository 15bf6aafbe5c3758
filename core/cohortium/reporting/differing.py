"""Settings in which several studies differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def study_differences(studies: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """By key, as `--set` would name it, what each study has there; empty where it has nothing.

    Keys on which all agree are left out.  Where a part is another one altogether, its name comes
    first and its own parameters follow.
    """
    flat = [dict(_flat(study)) for study in studies]
    keys = dict.fromkeys(key for study in flat for key in study)
    found = {key: tuple(_shown(study, key) for study in flat) for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(study: Mapping[str, Any], key: str) -> str:
    if key not in study:
        return ""
    value = study[key]
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
