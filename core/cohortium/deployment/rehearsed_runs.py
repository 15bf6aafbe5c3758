"""The runs of a rehearsed study, and the site policy that admits them."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from cohortium.deployment.own_images import require_disjoint
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import DataError
from cohortium.ledger.cost import ADVERSARY_ORDER, UNITS, PrivacyScope
from cohortium.privacy.guarantee import rounded_up
from cohortium.runs.evaluate import prepare_evaluation

if TYPE_CHECKING:
    from cohortium.data.examples import Examples
    from cohortium.rounds.run_config import RunConfig
    from cohortium.runs.prepare import PreparedStudy


@frozen(eq=False, slots=False)
class RehearsedRuns:
    """A simulated study and its evaluation, as hospitals would take part in them.

    Attributes:
        trained: The prepared study that trains.
        measured: Its prepared evaluation, or None.
    """

    trained: PreparedStudy
    measured: PreparedStudy | None

    @classmethod
    def of(cls, prepared: PreparedStudy) -> RehearsedRuns:
        """Prepare the evaluation of a simulated study, if it has one."""
        plan = prepared.federation.evaluation
        return cls(
            prepared,
            None if plan is None else prepare_evaluation(prepared.federation, plan, prepared),
        )

    def images(self, site: int) -> dict[str, Examples | None]:
        """Return a site's training images and its test images, of which there may be none."""
        found: dict[str, Examples | None] = {
            "train": self.trained.splits.train.select(self.trained.partition[site]),
            "test": None,
        }
        if self.measured is not None and len(indices := self.measured.partition[site]):
            splits = self.trained.splits
            # With all columns of groups, where those of the evaluation are only its own.
            source = splits.train if self.trained.federation.holdout_fraction else splits.test
            assert source is not None
            found["test"] = source.select(indices)
        return found

    @cached_property
    def is_one_account(self) -> bool:
        """Whether training and test images of a site overlap.

        They do in public data sets that hold an image twice, or several images of a patient. Every
        site then charges both to one account.
        """
        for site in range(len(self.trained.partition)):
            train, test = self.images(site).values()
            if train is None or test is None:
                continue
            try:
                require_disjoint(train, test, compares_patients=True)
            except DataError:
                return True
        return False

    @property
    def _run_configs(self) -> list[RunConfig]:
        return [each.run_config for each in (self.trained, self.measured) if each is not None]

    def privacy(self) -> dict[str, Any]:
        """Return the strongest demands of a policy that admits the runs."""
        runs = self._run_configs
        guarantees = [g for run in runs if (g := run.plan.guarantee) is not None]
        if not guarantees:
            floors = {"epsilon": 1.0, "delta": 1e-5, "unit": "example", "against": "everyone"}
            return {**floors, "insecure_rehearsal": True}
        rehearses = len(guarantees) < len(runs) or any(g.simulation for g in guarantees)
        unit = min((g.unit for g in guarantees), key=UNITS.index)
        against = min((g.against for g in guarantees), key=ADVERSARY_ORDER.index)
        epsilon, delta = guarantees[0].epsilon, guarantees[0].delta
        if len(runs) > 1 and not rehearses:
            scope = PrivacyScope(unit=unit, against=against)
            costs = [run.costs() for run in runs]
            accounts = [sum(costs, Counter())] if self.is_one_account else costs
            epsilon = max(scope.epsilon(account, delta) for account in accounts)
        return {
            # A site would write a bound that holds on every machine.
            "epsilon": float(rounded_up(epsilon)),
            "delta": delta,
            "unit": unit,
            "against": against,
            **({"insecure_rehearsal": True} if rehearses else {}),
        }

    def ceilings(self) -> dict[str, int]:
        """Return limits that admit runs of this size.

        Each limit is the largest of the runs' own numbers and the policy's default.
        """
        runs = self._run_configs
        asked = {
            "max_rounds": max(run.federation_spec.attempts for run in runs),
            "max_sites": self.trained.run_config.federation_spec.sites,
            "max_parameters": max(run.plan.length for run in runs),
        }
        usual: dict[str, Any] = {f.name: f.default for f in attrs.fields(SitePolicy)}
        return {limit: max(number, int(usual[limit])) for limit, number in asked.items()}
