"""The ServerApp: it runs a study's rounds next to Flower's SuperLink.

A run's configuration names, as paths on that machine:

    flwr run . --run-config 'study="/srv/study/study.toml" out="/srv/study/runs/first"'

With `dry-run=true` it only asks the hospitals whether they would take part.  With
`evaluate="/srv/study/runs/first"` it trains nothing, and evaluates the model of that run.
With `resume="/srv/study/runs/first"` it continues that run, with the study in its folder.
With `sign-with="/srv/study/lead.pem"` this key signs the results.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.serverapp import ServerApp

from cohortium.plugin import (
    CohortiumError,
    RequestError,
    resume_deployed_study,
    run_deployed_study,
)
from cohortium_flower._exchange import ConnectedEngine
from cohortium_flower._run_log import RunLog

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        found = _run(context.run_config, grid)
    except CohortiumError as error:
        raise RuntimeError(f"cohortium: {error}") from None
    if isinstance(found, tuple):
        for warning in found:
            log.warning("%s", warning)
        log.info("cohortium: every site takes part")
    else:
        log.info("cohortium: done; %s", found)


def _run(config: Mapping[str, object], grid: Grid) -> object:
    """Run, check, evaluate or resume a study, as the run's configuration says.

    Returns:
        The result, or the warnings of a dry run, a tuple.

    Raises:
        CohortiumError: The configuration is wrong, or the study could not be run, or failed.
    """

    def engine(federation: Any) -> ConnectedEngine:
        return ConnectedEngine.of(federation.engine, federation.key_directory, grid)

    study, out = config.get("study"), config.get("out", "")
    dry, trained = bool(config.get("dry-run", False)), config.get("evaluate", "")
    stopped, key = config.get("resume", ""), config.get("sign-with", "")
    if not isinstance(trained, str):
        raise RequestError("evaluate must name the folder of a finished run.")
    if not isinstance(stopped, str):
        raise RequestError("resume must name the folder of a stopped run.")
    if not isinstance(key, str):
        raise RequestError("sign-with must name the file of a key.")
    sign_with = Path(key) if key else None
    if stopped:
        if dry or trained:
            raise RequestError("resume continues a run; leave dry-run and evaluate out.")
        return resume_deployed_study(
            Path(stopped), engine, sign_with=sign_with, observers=[RunLog()]
        )
    if not isinstance(study, str) or not isinstance(out, str) or not (out or dry):
        raise RequestError("the run's configuration must name a study file and a folder out.")
    return run_deployed_study(
        Path(study),
        engine,
        out=Path(out),
        check_only=dry,
        evaluates=Path(trained) if trained else None,
        sign_with=sign_with,
        observers=[RunLog()],
    )
