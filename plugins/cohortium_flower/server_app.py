"""The ServerApp: it runs a study's rounds next to Flower's SuperLink.

A run's configuration names, as paths on that machine:

    flwr run . --run-config 'study="/srv/study/study.toml" out="/srv/study/runs/first"'

With `dry-run=true` it only asks the hospitals whether they would take part.  With
`evaluate="/srv/study/runs/first"` it trains nothing, and evaluates the model of that run.
With `sign-with="/srv/study/lead.pem"` this key signs the results.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.serverapp import ServerApp

from cohortium.plugin import CohortiumError, RequestError, run_deployed_study
from cohortium_flower._exchange import ConnectedEngine

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run's configuration names.

    Raises:
        RuntimeError: The study could not be run, or failed.  The sentence says why.
    """
    log = logging.getLogger("flwr")
    try:
        config = context.run_config
        study, out = config.get("study"), config.get("out", "")
        dry, trained = bool(config.get("dry-run", False)), config.get("evaluate", "")
        if not isinstance(study, str) or not isinstance(out, str) or not (out or dry):
            raise RequestError("the run's configuration must name a study file and a folder out.")
        if not isinstance(trained, str):
            raise RequestError("evaluate must name the folder of a finished run.")
        key = config.get("sign-with", "")
        if not isinstance(key, str):
            raise RequestError("sign-with must name the file of a key.")
        found = run_deployed_study(
            Path(study),
            lambda federation: ConnectedEngine.of(
                federation.engine, federation.key_directory, grid
            ),
            out=Path(out),
            check_only=dry,
            evaluates=Path(trained) if trained else None,
            sign_with=Path(key) if key else None,
        )
    except CohortiumError as error:
        raise RuntimeError(f"cohortium: {error}") from None
    if isinstance(found, tuple):
        for warning in found:
            log.warning("%s", warning)
        log.info("cohortium: every site takes part")
    else:
        log.info("cohortium: done; %s", found)
