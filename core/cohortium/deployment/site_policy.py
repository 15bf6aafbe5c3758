"""A site's requirements for every study: floors that no coordinator can lower.

The policy also has ceilings, which limit a study's use of the site's machine. They are enforced
before anything of that size is created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, lt

from cohortium.catalog.allow_list import parse_patterns
from cohortium.catalog.discovery import discover
from cohortium.crypto.signing import KeyDirectory
from cohortium.data.memory import available
from cohortium.errors import RefusalError
from cohortium.ledger.cost import ADVERSARY_ORDER, UNITS, Budget, PrivacyScope
from cohortium.privacy.guarantee import MIN_DELTA, ProtectedAgainst, Unit, rounded_up
from cohortium.roles.values import Adversary
from cohortium.statistics.measuring import MeasuringTrainer
from cohortium.statistics.raw_images import RawImages
from cohortium.study.study import MAX_ROUNDS, MAX_SITES

if TYPE_CHECKING:
    from cohortium.catalog.discovery import PluginRecord
    from cohortium.rounds.run_config import RunConfig

ADVERSARIES: tuple[Adversary, ...] = ("honest-but-curious", "active")
"""Adversaries from the weaker to the stronger."""

MAX_PARAMETERS = 1 << 33


def _are_entries(_policy: object, _attribute: object, plugins: tuple[str, ...]) -> None:
    parse_patterns(plugins, where="[policy] allowed_plugins")


@frozen(kw_only=True)
class SitePolicy:
    """The floors of one site, from the `[policy]` of its `site.toml`.

    Demands on privacy have no default, so each site must state them. A floor of 0 demands nothing.

    Attributes:
        epsilon: ε, the most that may be spent of the site's data, by one run or by all.
        delta: δ to which ε refers.
        unit: The smallest unit that must be protected: "example", "patient" or "site".
        against: The adversary, at least: "coordinator", who sees sums, or "everyone".
        adversary: The behaviour that must be assumed of the coordinator.
        min_contributors: Fewest sites in a sum that is opened.
        min_honest_contributors: Fewest of them that do not collude.
        assumed_colluding: Fewest sites that must be assumed to pool their knowledge.
        min_reconstruction_threshold: Fewest shareholders that could open a secret.
        min_cohort_size: Fewest sites that are asked in a round.
        allowed_plugins: Plugins that a study may use, as `allowing` writes them. If empty, all are
            allowed. `COHORTIUM_PLUGIN_ALLOW` prevents other plugins from being loaded at all.
        allowed_local_values: Values for parameters that name code or files of this machine, such as
            "my_package:Net" for model 'module'. If empty, none is allowed.
        allowed_downloads: Names of parts, such as "medmnist", that may fetch their files from the
            network because a study names them. If empty, a study can make this site fetch nothing.
        max_rounds: Most attempts of a run, its retries among them.
        max_sites: Most sites of a federation.
        max_parameters: Most values of a model.
        max_memory: Most memory of a training step in GiB, as estimated beforehand. With 0, it is
            half of the free memory of the machine, or of the service's share of it.
        approve: Whether a member of the staff has to approve each study (see `approvals`).
        insecure_rehearsal: Whether to demand no privacy and keep no budget. Only for data that are
            public or made up.
        directory: The sites' public keys, as this site has pinned them.

    Guarantees:
        Every setting that `admit` accepts meets every floor. It judges values that the site's own
        code derives from the study, never a figure that the coordinator states.
    """

    epsilon: float = field(validator=[gt(0.0), lt(1e6)])
    delta: float = field(validator=[gt(0.0), ge(MIN_DELTA), lt(1.0)])
    unit: Unit = field(validator=in_(UNITS))
    against: ProtectedAgainst = field(validator=in_(ADVERSARY_ORDER))
    adversary: Adversary = field(default="honest-but-curious", validator=in_(ADVERSARIES))
    min_contributors: int = field(default=0, validator=[ge(0), le(MAX_SITES)])
    min_honest_contributors: int = field(default=0, validator=[ge(0), le(MAX_SITES)])
    assumed_colluding: int = field(default=0, validator=[ge(0), le(MAX_SITES)])
    min_reconstruction_threshold: int = field(default=0, validator=[ge(0), le(MAX_SITES)])
    min_cohort_size: int = field(default=0, validator=[ge(0), le(MAX_SITES)])
    allowed_plugins: tuple[str, ...] = field(default=(), validator=_are_entries)
    allowed_local_values: tuple[str, ...] = ()
    allowed_downloads: tuple[str, ...] = ()
    approve: bool = False
    insecure_rehearsal: bool = False
    max_rounds: int = field(default=1000, validator=[ge(1), le(MAX_ROUNDS)])
    max_sites: int = field(default=1000, validator=[ge(1), le(MAX_SITES)])
    max_parameters: int = field(default=100_000_000, validator=[ge(1), le(MAX_PARAMETERS)])
    max_memory: float = field(default=0.0, validator=[ge(0), le(1 << 20)])
    directory: KeyDirectory | None = field(default=None, repr=False)

    @property
    def budget(self) -> Budget | None:
        """Privacy budget of the site's data, or None in a rehearsal."""
        return None if self.insecure_rehearsal else self._budget

    @property
    def _budget(self) -> Budget:
        scope = PrivacyScope(unit=self.unit, against=self.against)
        return Budget(epsilon=self.epsilon, delta=self.delta, scope=scope)

    def admit(self, run_config: RunConfig) -> None:
        """Refuse a run below a floor.

        Raises:
            RefusalError: The run is below a floor. The code is "policy." and the floor. The
                sentence names the study's value and the demand.
            StudyError: The aggregator cannot serve the cohort.
        """
        # Plugins come first, so that code of a plugin that is not allowed cannot affect the other
        # checks.
        self._require_plugins(run_config)
        self.admit_terms(
            sites=run_config.federation_spec.sites, attempts=run_config.federation_spec.attempts
        )
        self._require_privacy(run_config)
        self._require_cohort(run_config)
        self._require_secrecy(run_config)
        self._require_directory(run_config)
        self.admit_parameters(run_config.plan.length)

    def admit_terms(self, *, sites: int, attempts: int) -> None:
        """Refuse too many sites or attempts, before anything is created.

        Raises:
            RefusalError: As for `admit`.
        """
        _require_most("rounds", attempts, self.max_rounds, "the study asks for {} attempts")
        _require_most("sites", sites, self.max_sites, "the study has {} sites")

    def admit_parameters(self, parameters: int) -> None:
        """Refuse a model with too many values, before it is built.

        Raises:
            RefusalError: As for `admit`.
        """
        asked = "the study's model has {} values"
        _require_most("parameters", parameters, self.max_parameters, asked)

    def admit_memory(self, estimate: int) -> None:
        """Refuse training that needs too much memory, before it is tried.

        Raises:
            RefusalError: As for `admit`.
        """
        most = int(self.max_memory * 2**30) or available() // 2
        if estimate > most:
            _refuse(
                "max_memory",
                f"the study's training takes at least {estimate / 2**30:.1f} GiB of memory, more "
                "than this site gives.",
            )

    def allows(self, record: PluginRecord) -> bool:
        """Return whether a study may use a plugin."""
        known = parse_patterns(self.allowed_plugins, where="allowed_plugins")
        own = (record.distribution, record.name, record.version)
        return not known or any(entry.allows(*own) for entry in known)

    def _require_plugins(self, run_config: RunConfig) -> None:
        if not self.allowed_plugins:
            return
        catalog = discover()
        for part in (run_config.model, run_config.trainer, run_config.plan, run_config.aggregator):
            # They are of the core. Admission has checked the plugins that the study names.
            if type(part) in (MeasuringTrainer, RawImages):
                continue
            makers = catalog.plugins_defining(part)
            if not makers or not all(self.allows(record) for record in makers):
                kind = type(part)
                which = " and ".join(r.label for r in makers) or "no plugin"
                _refuse(
                    "allowed_plugins",
                    f"the study uses {kind.__module__}:{kind.__qualname__} of {which}, and this "
                    f"site allows {', '.join(self.allowed_plugins)}.",
                )

    def _require_privacy(self, run_config: RunConfig) -> None:
        if self.insecure_rehearsal:
            return
        guarantee, run = run_config.plan.guarantee, run_config.costs()
        if guarantee is None or any(cost.mechanism is None for cost in run):
            _refuse("epsilon", f"the study promises no privacy; this site allows {self._budget}.")
        if guarantee.simulation:
            _refuse("epsilon", "the study's noise is from a public seed, which protects nothing.")
        if UNITS.index(guarantee.unit) < UNITS.index(self.unit):
            _refuse(
                "unit",
                f"the study hides one {guarantee.unit}; this site hides one {self.unit}.",
            )
        if ADVERSARY_ORDER.index(guarantee.against) < ADVERSARY_ORDER.index(self.against):
            _refuse(
                "against",
                "the study's guarantee is against the coordinator, and this site requires one "
                "against everyone.",
            )
        objection = next(filter(None, map(self._budget.scope.incompatibility, run)), "")
        if objection:
            _refuse("unit", f"{objection}, and this site allows {self._budget}.")
        if not self._budget.holds(run):
            asked = rounded_up(self._budget.scope.epsilon(run, self.delta))
            _refuse(
                "epsilon",
                f"the study's {run_config.federation_spec.attempts:,} attempts come to ε = "
                f"{asked}, and this site allows {self._budget}.",
            )

    def _require_cohort(self, run_config: RunConfig) -> None:
        federation_spec = run_config.federation_spec
        if ADVERSARIES.index(federation_spec.adversary) < ADVERSARIES.index(self.adversary):
            _refuse(
                "adversary",
                f"the study assumes a coordinator that is {federation_spec.adversary}, and this "
                f"site one that is {self.adversary}.",
            )
        if federation_spec.cohort_size < self.min_cohort_size:
            _refuse(
                "min_cohort_size",
                f"the study asks {federation_spec.cohort_size} sites a round, and this site "
                f"requires {self.min_cohort_size}.",
            )
        if federation_spec.max_colluding < self.assumed_colluding:
            _refuse(
                "assumed_colluding",
                f"the study assumes that {federation_spec.max_colluding} sites collude, and this "
                f"site that {self.assumed_colluding} do.",
            )

    def _require_secrecy(self, run_config: RunConfig) -> None:
        demanded = {
            "min_contributors": self.min_contributors,
            "min_honest_contributors": self.min_honest_contributors,
            "min_reconstruction_threshold": self.min_reconstruction_threshold,
        }
        if not any(demanded.values()):
            return
        confidentiality = run_config.aggregator.confidentiality(run_config.federation_spec)
        if confidentiality is None:
            floor, least = next((name, n) for name, n in demanded.items() if n)
            _refuse(
                floor,
                "the study's aggregator shows every release to the coordinator, and this site "
                f"requires {_SECRECY[floor]} of {least}.",
            )
        asked = {
            "min_contributors": confidentiality.min_contributors,
            "min_honest_contributors": confidentiality.min_contributors
            - run_config.federation_spec.max_colluding,
            "min_reconstruction_threshold": confidentiality.reconstruction_threshold,
        }
        for floor, least in demanded.items():
            if asked[floor] < least:
                _refuse(
                    floor,
                    f"the study gives {_SECRECY[floor]} of {asked[floor]}, and this site requires "
                    f"{least}.",
                )

    def _require_directory(self, run_config: RunConfig) -> None:
        theirs, ours = run_config.directory, self.directory
        if theirs is None:
            return
        if ours is None:
            _refuse("directory", "the study relies on signed keys, and this site has pinned none.")
        if theirs.fingerprint != ours.fingerprint:
            _refuse(
                "directory",
                f"the study's directory of keys is {theirs.fingerprint.hex()[:16]}…, and this site "
                f"has pinned {ours.fingerprint.hex()[:16]}….",
            )


_SECRECY = {
    "min_contributors": "a least number of sites in a sum",
    "min_honest_contributors": "a least number of honest sites in a sum",
    "min_reconstruction_threshold": "a threshold",
}


def _require_most(limit: str, asked: int, most: int, sentence: str) -> None:
    if asked > most:
        _refuse(f"max_{limit}", f"{sentence.format(f'{asked:,}')}, and this site allows {most:,}.")


def _refuse(floor: str, sentence: str) -> NoReturn:
    raise RefusalError(f"policy.{floor}", sentence)
