"""Findings of an audit: the procedures, the observations, and the detection limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

if TYPE_CHECKING:
    from cohortium.privacy.guarantee import Guarantee

ALPHA = 1e-3
"""One minus the confidence at which each check refutes."""


@frozen(kw_only=True)
class Finding:
    """Result of one check.

    Attributes:
        check: Its name.
        procedure: The steps that were done.
        observation: The outcome.
        detection_limit: Faults that this check could have shown, and faults that it cannot show.
        is_refuted: Whether the claim is false, at 99.9 % confidence where chance is involved.
        bound: The empirical lower bound on ε, where one is measured.
        max_detectable_epsilon: The largest possible value of `bound`.
        claim: The ε with which `bound` is compared.
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
        """Return a paragraph for people."""
        verdict = "REFUTED" if self.is_refuted else "not refuted"
        parts = {
            "procedure": self.procedure,
            "observation": self.observation,
            "detection limit": self.detection_limit,
        }
        return "\n".join([f"{self.check}: {verdict}", *(f"  {k}: {v}" for k, v in parts.items())])


@frozen(kw_only=True)
class Audit:
    """All findings of an audit of one study.

    Attributes:
        guarantee: The guarantee that the study claims.
        findings: One for each check.
    """

    guarantee: Guarantee
    findings: tuple[Finding, ...]

    @property
    def is_refuted(self) -> bool:
        """Whether any check refutes the claim."""
        return any(finding.is_refuted for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the audit as plain values."""
        return {
            "guarantee": attrs.asdict(self.guarantee),
            "refuted": self.is_refuted,
            "confidence": 1 - ALPHA,
            "findings": [attrs.asdict(finding) for finding in self.findings],
        }
