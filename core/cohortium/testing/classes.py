"""The kit as pytest classes: subclass the one of your role, and give it one fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cohortium.testing.suite import checks_for

if TYPE_CHECKING:
    from cohortium.roles import Role
    from cohortium.roles.protocols import (
        Aggregator,
        Dataset,
        Engine,
        Model,
        Observer,
        Partitioner,
        Privatizer,
        Trainer,
    )
    from cohortium.testing.contract import Check


class Conformance:
    """Base of the classes below: one test for every check of the role."""

    role: ClassVar[Role]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Called by pytest when it collects a test that takes a `check`."""
        if "check" in metafunc.fixturenames:
            checks = checks_for(self.role)
            metafunc.parametrize(
                "check", [check for _, check in checks], ids=[name for name, _ in checks]
            )


class DatasetConformance(Conformance):
    """Needs a fixture `dataset`."""

    role = "dataset"

    def test_contract(self, dataset: Dataset, check: Check) -> None:
        """Hold it to one check."""
        check(dataset)


class PartitionerConformance(Conformance):
    """Needs a fixture `partitioner`."""

    role = "partitioner"

    def test_contract(self, partitioner: Partitioner, check: Check) -> None:
        """Hold it to one check."""
        check(partitioner)


class ModelConformance(Conformance):
    """Needs a fixture `model`."""

    role = "model"

    def test_contract(self, model: Model, check: Check) -> None:
        """Hold it to one check."""
        check(model)


class TrainerConformance(Conformance):
    """Needs a fixture `trainer`."""

    role = "trainer"

    def test_contract(self, trainer: Trainer, check: Check) -> None:
        """Hold it to one check."""
        check(trainer)


class PrivatizerConformance(Conformance):
    """Needs a fixture `privatizer`."""

    role = "privatizer"

    def test_contract(self, privatizer: Privatizer, check: Check) -> None:
        """Hold it to one check."""
        check(privatizer)


class AggregatorConformance(Conformance):
    """Needs a fixture `aggregator`."""

    role = "aggregator"

    def test_contract(self, aggregator: Aggregator, check: Check) -> None:
        """Hold it to one check."""
        check(aggregator)


class EngineConformance(Conformance):
    """Needs a fixture `engine`."""

    role = "engine"

    def test_contract(self, engine: Engine, check: Check) -> None:
        """Hold it to one check."""
        check(engine)


class ObserverConformance(Conformance):
    """Needs a fixture `observer`."""

    role = "observer"

    def test_contract(self, observer: Observer, check: Check) -> None:
        """Hold it to one check."""
        check(observer)
