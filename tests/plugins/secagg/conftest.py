"""What the attacks have in common."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.support.malicious_coordinator import MaliciousCoordinator

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=[False, True], ids=["full set-up", "prepared"])
def attackers(request: pytest.FixtureRequest) -> Callable[..., MaliciousCoordinator]:
    """Makes attackers of an attempt, whose keys and shares come first or with the one before."""
    return partial(MaliciousCoordinator, prepared=request.param)
