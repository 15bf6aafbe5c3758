"""Every part is held to the contract of its role."""

from __future__ import annotations

import pytest
from cohortium_example import (
    Alternating,
    AnyOrder,
    Committed,
    Counting,
    Linear,
    Rounding,
    SignSGD,
    Squares,
)

from cohortium import testing


class TestSquares(testing.DatasetConformance):
    @pytest.fixture
    def dataset(self) -> Squares:
        return Squares(examples=12)


class TestAlternating(testing.PartitionerConformance):
    @pytest.fixture
    def partitioner(self) -> Alternating:
        return Alternating()


@pytest.mark.parametrize("bias", [True, False])
class TestLinear(testing.ModelConformance):
    @pytest.fixture
    def model(self, bias: bool) -> Linear:
        return Linear(bias=bias)


class TestSignSGD(testing.TrainerConformance):
    @pytest.fixture
    def trainer(self) -> SignSGD:
        return SignSGD()


class TestRounding(testing.PrivatizerConformance):
    @pytest.fixture
    def privatizer(self) -> Rounding:
        return Rounding()


class TestCommitted(testing.AggregatorConformance):
    @pytest.fixture
    def aggregator(self) -> Committed:
        return Committed()


class TestAnyOrder(testing.EngineConformance):
    @pytest.fixture
    def engine(self) -> AnyOrder:
        return AnyOrder()


class TestCounting(testing.ObserverConformance):
    @pytest.fixture
    def observer(self) -> Counting:
        return Counting()
