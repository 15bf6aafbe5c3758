"""Choice of a study's threshold, neighbourhood and least sum, and their guarantee."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import chain
from math import ceil, floor
from typing import TYPE_CHECKING, NamedTuple

from attrs import frozen

from cohortium.plugin import AggregationGuarantee, StudyError
from cohortium_secagg._bounds import GraphRequirements

if TYPE_CHECKING:
    from cohortium.plugin import FederationSpec
    from cohortium_secagg import SecAgg

THRESHOLD, SHARES = 4, 5
"""Values chosen against an honest-but-curious coordinator, where no dropout is declared."""


@frozen(kw_only=True)
class Sharing(AggregationGuarantee):
    """Guarantee: coordinator and `colluding` sites learn one sum an attempt, or nothing.

    An active coordinator picks the sites of the sum, by pretending that others dropped out.
    Otherwise it is the sum over all contributors.

    Attributes:
        adversary: Model of the coordinator, honest-but-curious or active.
        colluding: Number of sites that may pool their knowledge with the coordinator.
        sites: Number of sites that are asked.
        shares: Number of shareholders of a secret: a site and its neighbours.
        quorum: The least number of contributors among a contributor and its neighbours.
    """

    adversary: str
    colluding: int
    sites: int
    shares: int
    quorum: int

    @property
    def honest(self) -> int:
        """The least number of sites in a sum that do not collude."""
        return self.min_contributors - self.colluding

    def __str__(self) -> str:
        """Return the guarantee as one sentence."""
        chance = (
            ""
            if self.statistical_security_bits is None
            else f", except in one run of 2^{self.statistical_security_bits}"
        )
        who = "sites that it picks" if self.adversary == "active" else "all that contributed"
        return (
            f"{self.reconstruction_threshold} of {min(self.shares, self.sites)} shares: from an "
            f"attempt, an "
            f"{self.adversary} coordinator and {self.colluding} colluding sites learn the sum over "
            f"{who}, at least {self.min_contributors} of {self.sites}, and nothing else{chance}."
        )


def choose_parameters(config: SecAgg, federation_spec: FederationSpec) -> Sharing:
    """Return the parameters that `config` gives in `federation_spec`.

    Raises:
        StudyError: They protect too little, or the cohort cannot meet them.
    """
    if federation_spec.adversary == "active":
        sharing = _active(config, federation_spec)
    elif config.max_dropout_rate:
        sharing = _calculated(config, federation_spec)
    else:
        sharing = _certain(config, federation_spec)
    least = sharing.min_contributors
    _require_cohort(federation_spec, least)
    return sharing


def _certain(config: SecAgg, federation_spec: FederationSpec) -> Sharing:
    """Return a sparse graph's parameters that tolerate any choice of colluding sites."""
    threshold, shares = config.reconstruction_threshold or THRESHOLD, config.num_shares or SHARES
    return _against_any(federation_spec, threshold, shares)


def _active(config: SecAgg, federation_spec: FederationSpec) -> Sharing:
    """Return parameters with which all share with all, and a majority decides."""
    majority = (federation_spec.cohort_size + federation_spec.max_colluding) // 2 + 1
    threshold = config.reconstruction_threshold or majority
    # Where all share with all, an error for a too small cohort must name the cohort's size.
    shares = config.num_shares or max(
        federation_spec.cohort_size, threshold, federation_spec.max_colluding + 2
    )
    why = f"the coordinator is active, {_against(federation_spec)}"
    _require("reconstruction_threshold", threshold, majority, f"{why} (0 chooses it)")
    _require(
        "num_shares",
        shares,
        federation_spec.cohort_size,
        "every site is a shareholder (0 chooses it)",
    )
    sharing = _against_any(federation_spec, threshold, shares)
    if config.max_dropout_rate:
        _require_left(config, federation_spec, sharing.min_contributors)
    return sharing


def _against_any(federation_spec: FederationSpec, threshold: int, shares: int) -> Sharing:
    _require(
        "reconstruction_threshold", threshold, 2, "one shareholder alone must not recover a secret"
    )
    _require(
        "reconstruction_threshold",
        threshold,
        federation_spec.max_colluding + 1,
        _against(federation_spec),
    )
    _require("num_shares", shares, threshold, f"reconstruction_threshold is {threshold}")
    _require("num_shares", shares, federation_spec.max_colluding + 2, _against(federation_spec))
    # With fewer sites around it, all of them except the site itself might collude and know its
    # masks.
    quorum = max(threshold, federation_spec.max_colluding + 2)
    circle = min(shares, federation_spec.cohort_size)
    # A sparse graph must stay connected without the lost sites and without the colluding ones.
    uncut = (
        federation_spec.cohort_size
        if circle == federation_spec.cohort_size
        else circle - 2 - federation_spec.max_colluding
    )
    lost = min(circle - threshold, uncut)
    return _sharing(
        federation_spec, threshold, shares, quorum=quorum, contributors=quorum, lost=lost
    )


def _calculated(config: SecAgg, federation_spec: FederationSpec) -> Sharing:
    """Return parameters of a sparse random graph, calculated for a random placement.

    They hold against colluding sites, wherever the graph puts them.
    """
    _require(
        "reconstruction_threshold",
        config.reconstruction_threshold or 2,
        2,
        "one shareholder alone must not recover a secret",
    )
    _require_left(
        config,
        federation_spec,
        max(
            federation_spec.max_colluding + 2,
            federation_spec.min_contributors,
            config.reconstruction_threshold,
        ),
    )
    requirements = GraphRequirements(
        sites=federation_spec.cohort_size,
        colluding=federation_spec.max_colluding,
        lost=_lost(config, federation_spec),
        failure_probability=Fraction(1, federation_spec.attempts << config.security_bits),
    )
    fit = _fit(
        requirements,
        min(config.num_shares, federation_spec.cohort_size),
        config.reconstruction_threshold,
    )
    why = f"{_against(federation_spec)} and max_dropout_rate is {config.max_dropout_rate:g}"
    if config.num_shares:
        _require(
            "num_shares", min(config.num_shares, federation_spec.cohort_size), fit.degree + 1, why
        )
    if config.reconstruction_threshold:
        _require(
            "reconstruction_threshold", config.reconstruction_threshold, fit.least_threshold, why
        )
    return _sharing(
        federation_spec,
        fit.threshold,
        fit.degree + 1,
        quorum=fit.threshold,
        contributors=max(fit.threshold, fit.contributors),
        lost=requirements.lost,
        security=config.security_bits,
    )


class ChosenParameters(NamedTuple):
    """A graph that meets its requirements if its threshold reaches the least."""

    degree: int
    least_threshold: int
    threshold: int
    contributors: int


# It is a pure function, and a simulation calls it at every site.
@lru_cache(maxsize=8)
def _fit(requirements: GraphRequirements, shares: int, threshold: int) -> ChosenParameters:
    """Return the least degree that is sufficient, and its thresholds.

    Without a given threshold, it is the greatest that survives the dropouts.  With given `shares`,
    their degree is taken if it is sufficient.  Otherwise it is the least sufficient degree above.
    """
    degrees = requirements.degrees()
    if shares:
        degrees = chain([shares - 1], (degree for degree in degrees if degree >= shares))
    # With all sites as neighbours, every threshold up to the number of remaining sites is
    # sufficient.
    degree, window = next(
        (degree, window)
        for degree in degrees
        if (window := requirements.window(degree)) and threshold <= window.most
    )
    chosen = threshold or window.most
    return ChosenParameters(
        degree, window.least, chosen, requirements.fewest(degree, max(chosen, window.least))
    )


def _require_left(config: SecAgg, federation_spec: FederationSpec, needed: int) -> None:
    """Raise if fewer than `needed` sites remain after all allowed dropouts."""
    _require_cohort(federation_spec, needed)
    if federation_spec.cohort_size - _lost(config, federation_spec) < needed:
        most = (
            floor(
                Fraction(federation_spec.cohort_size - needed, federation_spec.cohort_size) * 10_000
            )
            / 10_000
        )
        raise StudyError(
            f"secagg: max_dropout_rate is {config.max_dropout_rate:g}, but must be at most "
            f"{most:g}: a sum is opened over {needed} or more of {federation_spec.cohort_size} "
            "sites."
        )


def _lost(config: SecAgg, federation_spec: FederationSpec) -> int:
    """Return the most sites that may drop out, rounded up."""
    return ceil(Fraction(str(config.max_dropout_rate)) * federation_spec.cohort_size)


def _require_cohort(federation_spec: FederationSpec, needed: int) -> None:
    """Raise if fewer than `needed` sites are asked, and name the term to change."""
    # A cohort of all sites, which is the default, can only grow with their number.
    is_whole = federation_spec.cohort_size == federation_spec.sites
    name = "federation.sites" if is_whole else "federation.cohort_size"
    why = f"a sum is opened over {needed} or more"
    if federation_spec.adversary == "honest-but-curious" and not federation_spec.max_colluding:
        why += (
            "; or take the aggregator 'plain', under which the coordinator sees each site's release"
        )
    _require(name, federation_spec.cohort_size, needed, why)


def _require(name: str, value: int, least: int, why: str) -> None:
    if value < least:
        raise StudyError(f"secagg: {name} is {value}, but must be at least {least}: {why}.")


def _against(federation_spec: FederationSpec) -> str:
    return f"max_colluding is {federation_spec.max_colluding}"


def _sharing(
    federation_spec: FederationSpec,
    threshold: int,
    shares: int,
    *,
    quorum: int,
    contributors: int,
    lost: int,
    security: int | None = None,
) -> Sharing:
    least = max(contributors, federation_spec.min_contributors)
    return Sharing(
        adversary=federation_spec.adversary,
        colluding=federation_spec.max_colluding,
        sites=federation_spec.cohort_size,
        reconstruction_threshold=threshold,
        shares=shares,
        quorum=quorum,
        min_contributors=least,
        max_dropouts=max(0, min(lost, federation_spec.cohort_size - least)),
        statistical_security_bits=security,
    )
