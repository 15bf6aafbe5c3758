"""Settings in which several studies differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def study_differences(studies: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the settings that differ: by key, the value in each study.

    Keys are in the form that `--set` takes. A value is empty if the study does not have it. Keys on
    which all studies agree are left out. If studies use different plugins for a part, the plugin's
    name comes first, and its own parameters follow.
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
