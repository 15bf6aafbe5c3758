"""The conformance kit as pytest classes.

Subclass the class of your role, and give it one fixture.
"""

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
        Task,
        Trainer,
    )
    from cohortium.testing.contract import Check


class Conformance:
    """Base of the conformance classes, with one test for every check."""

    role: ClassVar[Role]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrize a test that takes a `check`.  pytest calls this at collection."""
        if "check" in metafunc.fixturenames:
            checks = checks_for(self.role)
            metafunc.parametrize(
                "check", [check for _, check in checks], ids=[name for name, _ in checks]
            )


class DatasetConformance(Conformance):
    """Tests of a data set.  They need a fixture `dataset`."""

    role = "dataset"

    def test_contract(self, dataset: Dataset, check: Check) -> None:
        """Run one check on the data set."""
        check(dataset)


class TaskConformance(Conformance):
    """Tests of a task.  They need a fixture `task`."""

    role = "task"

    def test_contract(self, task: Task, check: Check) -> None:
        """Run one check on the task."""
        check(task)


class PartitionerConformance(Conformance):
    """Tests of a partitioner.  They need a fixture `partitioner`."""

    role = "partitioner"

    def test_contract(self, partitioner: Partitioner, check: Check) -> None:
        """Run one check on the partitioner."""
        check(partitioner)


class ModelConformance(Conformance):
    """Tests of a model.  They need a fixture `model`."""

    role = "model"

    def test_contract(self, model: Model, check: Check) -> None:
        """Run one check on the model."""
        check(model)


class TrainerConformance(Conformance):
    """Tests of a trainer.  They need a fixture `trainer`."""

    role = "trainer"

    def test_contract(self, trainer: Trainer, check: Check) -> None:
        """Run one check on the trainer."""
        check(trainer)


class PrivatizerConformance(Conformance):
    """Tests of a privatizer.  They need a fixture `privatizer`."""

    role = "privatizer"

    def test_contract(self, privatizer: Privatizer, check: Check) -> None:
        """Run one check on the privatizer."""
        check(privatizer)


class AggregatorConformance(Conformance):
    """Tests of an aggregator.  They need a fixture `aggregator`."""

    role = "aggregator"

    def test_contract(self, aggregator: Aggregator, check: Check) -> None:
        """Run one check on the aggregator."""
        check(aggregator)


class EngineConformance(Conformance):
    """Tests of an engine.  They need a fixture `engine`."""

    role = "engine"

    def test_contract(self, engine: Engine, check: Check) -> None:
        """Run one check on the engine."""
        check(engine)


class ObserverConformance(Conformance):
    """Tests of an observer.  They need a fixture `observer`."""

    role = "observer"

    def test_contract(self, observer: Observer, check: Check) -> None:
        """Run one check on the observer."""
        check(observer)
