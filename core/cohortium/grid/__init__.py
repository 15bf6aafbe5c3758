"""Grids: one study with several values of some keys, over seeds.

```toml
[grid]
seeds = [1, 2, 3]
"federation.sites" = [5, 10, 20]    # an axis: one key, its values

[grid.privacy.off]                  # an axis of named choices, each of which sets several keys
privatizer.name = "none"

[grid.privacy.on]
privatizer.epsilon = 6.0

[[grid.override]]                      # what a combination sets beyond that
match = { sites = 20, privacy = "on" }
set = { privatizer.clip_norm = 3.5 }

[model]                             # the rest is a study
name = "dpresnet"
```
"""

from __future__ import annotations

from cohortium.grid.cells import Axis, Cell, Choice, Grid, Override
from cohortium.grid.differences import Difference, GroupDifference, GroupDifferences
from cohortium.grid.forecast import CellForecast, forecast_cells, forecast_table
from cohortium.grid.paired import Comparison, compare, contrast
from cohortium.grid.reading import is_grid, read
from cohortium.grid.rows import Row, rows
from cohortium.grid.running import GridRun, GridRunResult, plan, run
from cohortium.grid.summary import figures, markdown, write

__all__ = [
    "Axis",
    "Cell",
    "CellForecast",
    "Choice",
    "Comparison",
    "Difference",
    "Grid",
    "GridRun",
    "GridRunResult",
    "GroupDifference",
    "GroupDifferences",
    "Override",
    "Row",
    "compare",
    "contrast",
    "figures",
    "forecast_cells",
    "forecast_table",
    "is_grid",
    "markdown",
    "plan",
    "read",
    "rows",
    "run",
    "write",
]
