"""Faults of parts, each in one sentence with the method, the plugin and a remedy.

A part may return a value of another kind than its contract names. Without a check, the fault shows
far from its cause, in code of Cohortium or of another plugin. So each caller of a part checks the
kind of the result at once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohortium.catalog.allow_list import OWN_DISTRIBUTION
from cohortium.catalog.discovery import discover
from cohortium.data.splits import Splits
from cohortium.errors import CohortiumError, PluginError
from cohortium.messages.run import MAX_PLAN_STATE
from cohortium.roles.sessions import RoundPlan
from cohortium.text import elide_middle, escape_control_characters
from cohortium.third_party import is_out_of_memory, source_location

if TYPE_CHECKING:
    from cohortium.catalog.discovery import PluginRecord
    from cohortium.roles.protocols import Dataset
    from cohortium.roles.sessions import PrivacyPlan
    from cohortium.roles.values import PlanState


def require_result(
    part: object,
    method: str,
    value: object,
    is_right: object,
    wanted: str,
    *,
    error: type[CohortiumError] = PluginError,
) -> None:
    """Refuse a result that the contract of a part does not allow.

    Args:
        part: The part, or the object of it, that has the method.
        method: Name of the method, or of the property.
        value: Its result.
        is_right: Whether the contract allows it.
        wanted: The kind of result that the contract names.
        error: Type of the error. A run that has started ends with a `RunError`.

    Raises:
        CohortiumError: `is_right` is false.
    """
    if is_right:
        return
    while (inside := getattr(part, "wrapped_part", None)) is not None:
        part = inside
    kind = type(part)
    raise error(
        f"{_code(f'{kind.__qualname__}.{method}', kind.__module__)} gave {_described(value)}, and "
        f"the contract asks for {wanted}; {_remedy(kind.__module__)}."
    )


def require_protocol(part: object, method: str, value: object, protocol: type) -> None:
    """Refuse a result that lacks a method of `protocol`.

    No property is read, because it may be costly or fail.

    Raises:
        PluginError: The result lacks one.
    """
    own = getattr(value, "__dict__", {})
    lacking = [
        name
        for name in vars(protocol)
        if not name.startswith("_") and name not in own and not hasattr(type(value), name)
    ]
    named = f"a {protocol.__name__}"
    require_result(
        part,
        method,
        value,
        not lacking,
        f"{named} (with {', '.join(lacking[:3])})" if lacking else named,
    )


def require_plan_state(part: object, method: str, value: Any) -> PlanState:
    """Return `value`, the state of a plan.

    Raises:
        PluginError: It is no tuple of at most `MAX_PLAN_STATE` finite numbers.
    """
    is_right = (
        isinstance(value, tuple)
        and len(value) <= MAX_PLAN_STATE
        and all(isinstance(each, (int, float)) and math.isfinite(each) for each in value)
    )
    wanted = f"a tuple of at most {MAX_PLAN_STATE:,} finite numbers"
    require_result(part, method, value, is_right, wanted)
    state: PlanState = value
    return state


def planned_round(plan: PrivacyPlan, number: int, state: PlanState) -> RoundPlan:
    """Return the plan of the round `number` (see `PrivacyPlan.at_round`).

    Raises:
        RefusalError: The plan has no such state.
        PluginError: The result is no plan of a round.
    """
    found = plan.at_round(number, state)
    require_protocol(plan, "at_round", found, RoundPlan)
    return found


def load_splits(dataset: Dataset) -> Splits:
    """Return the images of `dataset`.

    Raises:
        DataError: They are missing or damaged.
        PluginError: `load` returns another kind of value.
    """
    splits = dataset.load()
    require_result(dataset, "load", splits, isinstance(splits, Splits), "Splits")
    return splits


def describe_plugin_fault(error: BaseException) -> str | None:
    """Return a sentence about the code of a plugin that raised `error`, without full stop.

    The innermost code of a plugin of another distribution comes first, then that of one of
    Cohortium's own: the others are only called by it.

    Args:
        error: The error.

    Returns:
        The sentence, or None if no plugin's code raised it.
    """
    found = discover().frame_in_traceback(error)
    if found is None:
        return None
    frame = found.frame
    text = " ".join(str(error).split()).rstrip(".")
    raised = f"{type(error).__name__}: {text}" if text else type(error).__name__
    raised = elide_middle(escape_control_characters(raised))
    place = source_location(error) or f" ({Path(frame.f_code.co_filename).name}, line {found.line})"
    module = str(frame.f_globals.get("__name__"))
    code = _code(frame.f_code.co_qualname, module)
    return f"{code} raised {raised}{place}; {_remedy(module)}"


def is_foreign_fault(error: BaseException) -> bool:
    """Return whether code of a plugin of another distribution raised `error`."""
    found = discover().frame_in_traceback(error)
    return found is not None and found.record.distribution != OWN_DISTRIBUTION


def raise_as_sentence(error: Exception) -> None:
    """Raise one sentence for an error of a foreign plugin's code.

    Other errors are left to the caller: those are faults of Cohortium, whose traceback is needed.

    Raises:
        PluginError: A plugin of another distribution raised `error`.
    """
    if isinstance(error, CohortiumError) or is_out_of_memory(error) or not is_foreign_fault(error):
        return
    raise PluginError(f"{describe_plugin_fault(error)}.") from error


def _code(qualname: str, module: str) -> str:
    """Return the name of a class or function, with its plugin."""
    record = _record(module)
    name = escape_control_characters(qualname.replace("<locals>.", ""))
    return f"{name} of {module}" if record is None else f"{name} of the plugin {record.label}"


def _remedy(module: str) -> str:
    record = _record(module)
    if record is None:
        return "correct it"
    return f"correct the plugin, which `cohortium check {record.name}` tries"


def _record(module: str) -> PluginRecord | None:
    package = module.partition(".")[0]
    records = discover().records
    return next((each for each in records if each.target.partition(".")[0] == package), None)


def _described(value: object) -> str:
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    sized = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}{sized}"
