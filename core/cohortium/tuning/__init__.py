"""A search for a study's settings inside its ε.

```toml
[tune]
score = "sites"                           # or "public": public validation images
"trainer.learning_rate" = [0.01, 0.05]    # axes as in a [grid]
"privatizer.clip_norm" = [7.0, 35.0]

[model]                                   # the rest is a study
name = "descriptor"
```

All candidates are runs of their own.  Their noise and that of the final run are sized before the
first round, so that the composition of everything is within the study's ε.
"""

from __future__ import annotations

from cohortium.tuning.planning import plan_tuning
from cohortium.tuning.prices import Price, TuningPlan
from cohortium.tuning.reading import has_tuning, read
from cohortium.tuning.record import read_plan
from cohortium.tuning.running import tune
from cohortium.tuning.scores import CandidateScore, TuningResult
from cohortium.tuning.settings import Tuning

__all__ = [
    "CandidateScore",
    "Price",
    "Tuning",
    "TuningPlan",
    "TuningResult",
    "has_tuning",
    "plan_tuning",
    "read",
    "read_plan",
    "tune",
]
