"""Conformance kit: checks that a plugin keeps the contract of its role.

A plugin's author subclasses the class of the role and gives it one fixture:

    import pytest
    from cohortium.testing import ModelConformance
    from mine import Mine

    class TestMine(ModelConformance):
        @pytest.fixture
        def model(self):
            return Mine()

`cohortium check NAME` runs the same checks on an installed plugin.  Each is a plain function in
the module of its role.  None needs pytest.  A check that passes has found no fault.  It is not a
proof.
"""

from __future__ import annotations

from cohortium.testing.classes import (
    AggregatorConformance,
    DatasetConformance,
    EngineConformance,
    ModelConformance,
    ObserverConformance,
    PartitionerConformance,
    PrivatizerConformance,
    TaskConformance,
    TrainerConformance,
)
from cohortium.testing.contract import Check, ConformanceError
from cohortium.testing.suite import CheckResult, checks_for, run_checks

__all__ = [
    "AggregatorConformance",
    "Check",
    "CheckResult",
    "ConformanceError",
    "DatasetConformance",
    "EngineConformance",
    "ModelConformance",
    "ObserverConformance",
    "PartitionerConformance",
    "PrivatizerConformance",
    "TaskConformance",
    "TrainerConformance",
    "checks_for",
    "run_checks",
]
