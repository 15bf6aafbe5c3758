"""Tests of a study's claimed guarantee by measurement, for `cohortium audit`.

    audit(federation.prepare()).is_refuted

There are six checks, each for faults that it has the power to find:

- arithmetic over the plan's own numbers
- the mechanism alone, in two worlds, tens of thousands of times
- the clip of the study's own network
- secrets that are functions of public values
- everything that leaves a site and is not covered by the guarantee
- one whole run with canaries

A claim that is not refuted is not proved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.auditing.accounting import audit_accounting
from cohortium.auditing.clip import audit_clip
from cohortium.auditing.findings import Audit, Finding
from cohortium.auditing.mechanism import audit_mechanism
from cohortium.auditing.one_run import audit_run
from cohortium.auditing.transcript import audit_secrets, audit_transcript
from cohortium.errors import PrivacyError
from cohortium.learning.evaluation import torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.runs.prepare import PreparedStudy

__all__ = [
    "Audit",
    "Finding",
    "audit",
    "audit_accounting",
    "audit_clip",
    "audit_mechanism",
    "audit_run",
    "audit_secrets",
    "audit_transcript",
]

RELEASES = 20_000
"""Noised sums in each of two worlds, unless another number is requested."""


def audit(
    prepared: PreparedStudy,
    *,
    releases: int = RELEASES,
    canaries: int = 0,
    tell: Callable[[str, float], None] = lambda _way, _share: None,
) -> Audit:
    """Try every check that could refute a study's claims.

    Args:
        prepared: The study. Its own parts and numbers are tested.
        releases: Noised sums in each of the two worlds of the mechanism.
        canaries: Canaries in the run. 0 selects the most powerful number. The run is then left out
            if no outcome could refute the claim.
        tell: Receives the name of the current check, and the share of it that is done.

    Raises:
        PrivacyError: The study claims nothing.
        RunError: A failure occurred before a check could reach a verdict.
    """
    prepared.require_simulated()
    run_config = prepared.run_config
    guarantee = run_config.plan.guarantee
    if guarantee is None:
        raise PrivacyError(
            "the study's privatizer promises nothing, so there is nothing to audit; choose one "
            "with a guarantee, such as 'gaussian'."
        )
    with torch_threads(prepared.federation.threads or 1):
        findings = (
            audit_accounting(run_config.plan, run_config.federation_spec),
            audit_mechanism(
                prepared.federation.privatizer,
                run_config.workload,
                run_config.federation_spec,
                releases=releases,
                tell=lambda share: tell("mechanism", share),
            ),
            audit_clip(prepared),
            audit_secrets(prepared),
            audit_transcript(prepared),
            audit_run(prepared, canaries=canaries, tell=lambda share: tell("run", share)),
        )
    return Audit(guarantee=guarantee, findings=findings)
