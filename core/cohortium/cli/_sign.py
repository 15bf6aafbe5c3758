"""`cohortium sign`: signatures under the result of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli._options import RunFolder
from cohortium.errors import RefutedError, RequestError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.deployment.site_config import SiteConfig


def sign(
    folder: RunFolder,
    *,
    key: Annotated[
        Path | None, typer.Option(help="Sign as the coordinator, with this key of `keygen`.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="Countersign as the site of this site file.")
    ] = None,
    session: Annotated[
        str, typer.Option(help="First digits of the session, if you know it from the trail.")
    ] = "",
    key_directory: Annotated[
        Path | None, typer.Option(help="The sites' public keys, to compare signatures with.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the signature of another key.")
    ] = False,
) -> None:
    """Sign the result of a run, or show who has signed it.

    A signature covers `result.json`, `study.toml`, `dataset.json` and the digest of the weights. A
    site countersigns only the run that the result names, and only if its own trail has releases in
    it.

    Examples:
      cohortium sign runs/first --key lead.pem
      cohortium sign runs/first --site site.toml
      cohortium sign runs/first --key-directory directory.txt
    """
    from cohortium.crypto.signing import KeyDirectory, SigningKey
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.inference.classifier import Classifier
    from cohortium.runs.run_directory import is_finished, study_path
    from cohortium.runs.signatures import seen_signatures, sign_result

    if key is not None and site is not None:
        raise RequestError("--key signs as the coordinator, and --site as a site; give one.")
    if session and site is None:
        raise RequestError("--session names the run of a site's trail; give --site, too.")
    study_path(folder)
    directory = None if key_directory is None else KeyDirectory.read(key_directory)
    if key is not None:
        # Not before the weights there are seen to be those of the result.
        Classifier.open(folder)
        sign_result(folder, SigningKey.read(key), directory=directory, replace=replace)
    elif site is not None:
        _countersign(folder, SiteConfig.read(site), session, replace=replace)
    seen = seen_signatures(folder, directory)
    for each in seen:
        typer.echo(sanitize(str(each)))
    if not seen:
        told = "this result" if is_finished(folder) else "this run, which has no result yet"
        typer.echo(f"nobody has signed {told}")
    if not all(each.is_valid and each.is_vouched is not False for each in seen):
        raise RefutedError("a signature is not valid for this result.")


def _countersign(folder: Path, site_config: SiteConfig, digits: str, *, replace: bool) -> None:
    from cohortium.deployment.trail_check import released_in
    from cohortium.runs.signatures import require_session, sign_result

    key = site_config.key
    if key is None:
        raise RequestError("the site file names no signing_key, so the site cannot sign.")
    session = require_session(folder, digits)
    sign_result(
        folder,
        key,
        site=site_config.id,
        releases=released_in(site_config.folder / site_config.trail, key.public, session),
        directory=site_config.policy.directory,
        replace=replace,
    )
