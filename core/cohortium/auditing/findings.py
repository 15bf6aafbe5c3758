"""What an audit found: values that say what was tried, what was seen, and what could be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

if TYPE_CHECKING:
    from cohortium.privacy.guarantee import Guarantee

ALPHA = 1e-3
"""One minus the confidence at which each way refutes."""


@frozen(kw_only=True)
class Finding:
    """What one way of auditing came to.

    Attributes:
        check: Its name.
        procedure: What was done.
        observation: What came out.
        detection_limit: What this way could have shown, and what it cannot.
        is_refuted: Whether the claim is false, at 99.9 % confidence where chance is involved.
        bound: The empirical lower bound on ε, where one is measured.
        max_detectable_epsilon: The largest that `bound` could have come to.
        claim: The ε that `bound` stands against.
    """

    check: str
    procedure: str
    observation: str
    detection_limit: str
    is_refuted: bool
    bound: float | None = None
    max_detectable_epsilon: float | None = None
    claim: float | None = None

    def __str__(self) -> str:
        """A paragraph for people."""
        verdict = "REFUTED" if self.is_refuted else "not refuted"
        parts = {
            "procedure": self.procedure,
            "observation": self.observation,
            "detection limit": self.detection_limit,
        }
        return "\n".join([f"{self.check}: {verdict}", *(f"  {k}: {v}" for k, v in parts.items())])


@frozen(kw_only=True)
class Audit:
    """All that an audit of one study found.

    Attributes:
        guarantee: What the study claims.
        findings: One for each way.
    """

    guarantee: Guarantee
    findings: tuple[Finding, ...]

    @property
    def is_refuted(self) -> bool:
        """Whether any way refutes the claim."""
        return any(finding.is_refuted for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The audit as plain values."""
        return {
            "guarantee": attrs.asdict(self.guarantee),
            "refuted": self.is_refuted,
            "confidence": 1 - ALPHA,
            "findings": [attrs.asdict(finding) for finding in self.findings],
        }
