"""The conformance kit: is a plugin what its role promises?

A plugin's author subclasses the class of the role and gives it one fixture:

    import pytest
    from cohortium.testing import ModelConformance
    from mine import Mine

    class TestMine(ModelConformance):
        @pytest.fixture
        def model(self):
            return Mine()

`cohortium check NAME` holds an installed plugin to the same checks.  Each is a plain function in
the module of its role; none needs pytest.  A check that passes has found nothing: it is no proof.
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
    "TrainerConformance",
    "checks_for",
    "run_checks",
]
