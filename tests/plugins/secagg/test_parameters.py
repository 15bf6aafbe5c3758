"""What a study may ask for, and how the plugin is found."""

from __future__ import annotations

import pytest

from cohortium.plugin import (
    AggregationConfig,
    Aggregator,
    FederationSpec,
    Randomness,
    Ring,
    SiteContext,
    StudyError,
)
from cohortium_secagg import SecAgg, cohortium_aggregators


@pytest.mark.parametrize(
    ("aggregator", "federation_spec", "sentence"),
    [
        (
            SecAgg(reconstruction_threshold=1),
            {},
            "reconstruction_threshold is 1, but must be at least 2",
        ),
        (SecAgg(reconstruction_threshold=6), {}, "num_shares is 5, but must be at least 6"),
        (
            SecAgg(),
            {"sites": 3, "cohort_size": 3},
            r"federation\.sites is 3, but must be at least 4: .*'plain'.* sees each site's release",
        ),
        (SecAgg(), {"max_colluding": 4}, "reconstruction_threshold is 4, but must be at least 5"),
        (
            SecAgg(),
            {"max_colluding": 3, "cohort_size": 4},
            r"federation\.cohort_size is 4, but must be at least 5",
        ),
        (SecAgg(num_shares=4), {"max_colluding": 3}, "num_shares is 4, but must be at least 5"),
        (SecAgg(), {"min_contributors": 11}, r"federation\.sites is 10, but must be at least 11"),
    ],
)
def test_weak_parameters_are_refused_at_both_parties(
    aggregator: SecAgg, federation_spec: dict[str, object], sentence: str
) -> None:
    numbers: dict[str, object] = {
        "sites": 10,
        "cohort_size": 10,
        "examples": 100,
        "rounds": 1,
        **federation_spec,
    }
    config = AggregationConfig(
        session=bytes(16),
        ring=Ring(8),
        length=1,
        federation_spec=FederationSpec(**numbers),  # type: ignore[arg-type]
    )
    with pytest.raises(StudyError, match=sentence):
        aggregator.coordinator_session(config, Randomness.insecure_from_seed(1))
    with pytest.raises(StudyError, match=sentence):
        aggregator.site_session(
            config, SiteContext(site=0, secret=Randomness.insecure_from_seed(1))
        )


def test_secagg_is_offered_by_name() -> None:
    (offer,) = cohortium_aggregators()
    assert offer.name == "secagg"
    assert offer.factory() == SecAgg()
    assert isinstance(offer.factory(), Aggregator)
