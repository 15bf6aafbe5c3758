"""A study's terms, as stored."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import and_, ge, le

from cohortium.roles.values import Adversary

MAX_SITES = 1_000_000


@frozen(kw_only=True)
class Terms:
    """Part of a study's `[federation]` table that reports need.

    `Federation` has all of it.
    """

    sites: int = field(validator=and_(ge(1), le(MAX_SITES)))
    rounds: int = field(validator=ge(1))
    seed: int = 1
    cohort_size: int = field(default=0, validator=and_(ge(0), le(MAX_SITES)))
    min_contributors: int = 1
    retries: int = 0
    adversary: Adversary = "honest-but-curious"
    max_colluding: int = 0
    insecure_seeded_secrets: bool = False

    @property
    def asked(self) -> int:
        """Number of sites that are asked each round."""
        return self.cohort_size or self.sites
