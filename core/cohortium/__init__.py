"""Privacy-preserving federated learning for medical imaging, built of plugins.

    >>> from cohortium import Federation  # doctest: +SKIP

Every part is a plugin. Importing this package is light: torch and the plugins are loaded when they
are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohortium.catalog.discovery import Catalog, PluginRecord, discover
    from cohortium.errors import CohortiumError
    from cohortium.federation import Federation
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.runs.result import Result
    from cohortium.study.measurement import EvaluationPlan, Measurement, PriorRelease
    from cohortium.study.search import Search
    from cohortium.tuning.running import tune
    from cohortium.tuning.scores import TuningResult
    from cohortium.tuning.settings import Tuning

__version__ = "0.1.0"

__all__ = [
    "Catalog",
    "CohortiumError",
    "EvaluationPlan",
    "Federation",
    "Guarantee",
    "Measurement",
    "PluginRecord",
    "PriorRelease",
    "Result",
    "Search",
    "Tuning",
    "TuningResult",
    "__version__",
    "discover",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use.

    `cohortium --help` needs none of them.
    """
    homes = {
        "Catalog": "catalog.discovery",
        "CohortiumError": "errors",
        "EvaluationPlan": "study.measurement",
        "Federation": "federation",
        "Guarantee": "privacy.guarantee",
        "Measurement": "study.measurement",
        "PluginRecord": "catalog.discovery",
        "PriorRelease": "study.measurement",
        "Result": "runs.result",
        "Search": "study.search",
        "Tuning": "tuning.settings",
        "TuningResult": "tuning.scores",
        "discover": "catalog.discovery",
        "tune": "tuning.running",
    }
    if name not in homes:
        raise AttributeError(f"module 'cohortium' has no attribute {name!r}")
    return getattr(import_module(f"cohortium.{homes[name]}"), name)
