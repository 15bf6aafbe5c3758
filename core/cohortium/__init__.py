"""Privacy-preserving federated learning for medical imaging, in which every part is a plugin.

    >>> from cohortium import Federation  # doctest: +SKIP

Importing this package is light: torch and the plugins are loaded when they are first used.
"""

from __future__ import annotations

from cohortium.catalog.discovery import Catalog, PluginRecord, discover
from cohortium.errors import CohortiumError
from cohortium.federation import Federation
from cohortium.privacy.guarantee import Guarantee
from cohortium.runs.result import Result

__version__ = "0.1.0"

__all__ = [
    "Catalog",
    "CohortiumError",
    "Federation",
    "Guarantee",
    "PluginRecord",
    "Result",
    "__version__",
    "discover",
]
