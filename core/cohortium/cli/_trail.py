"""`cohortium trail`: the decisions and answers of a site, and a check of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.errors import RecordError, RefutedError, RequestError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.crypto.signing import KeyDirectory
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.deployment.trail_check import CheckedTrail
    from cohortium.deployment.trail_entries import SignedHead


def trail(
    path: Annotated[Path, typer.Argument(help="A site file, or a trail of another hospital.")],
    *,
    check: Annotated[bool, typer.Option("--check", help="Print the outcome alone.")] = False,
    head: Annotated[bool, typer.Option("--head", help="Print the trail's head alone.")] = False,
    contains: Annotated[
        str, typer.Option(help="A head of this trail that was noted before.", metavar="HEAD")
    ] = "",
    note: Annotated[
        str, typer.Option(help="Note the head of another hospital's trail here.", metavar="HEAD")
    ] = "",
    key_directory: Annotated[
        Path | None, typer.Option(help="The sites' public keys; default the site file's.")
    ] = None,
    last: Annotated[int, typer.Option(help="Entries that are printed.", min=0)] = 20,
) -> None:
    """Check a site's trail, and print its last entries.

    Every line is checked: an altered, removed or moved line is found. Only the loss of the last
    lines needs a head that was noted before. So hospitals exchange their heads. With a site file
    the trail is also compared with the site's own ledger, answers and approvals.

    Examples:
      cohortium trail site.toml --check
      cohortium trail site.toml --head
      cohortium trail site.toml --contains "site 0 line 17 sha256 5f…"
      cohortium trail their-audit.jsonl --key-directory directory.txt
    """
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.deployment.trail_check import check_trail
    from cohortium.deployment.trail_comparison import missing_entries
    from cohortium.deployment.trail_entries import SignedHead

    site_config = SiteConfig.read(path) if path.suffix == ".toml" else None
    if site_config is None and note:
        raise RequestError("--note writes to a site's own trail; give the site file.")
    file = path if site_config is None else site_config.folder / site_config.trail
    wanted = SignedHead.parse(contains) if contains else None
    directory = _directory(site_config, key_directory)

    def checked() -> CheckedTrail:
        return check_trail(
            file,
            _trusted(site_config, file, directory),
            contains=wanted,
            replaced=_replaced(site_config, file, directory),
        )

    found = checked()
    if note:
        assert site_config is not None
        _note(site_config, SignedHead.parse(note), directory)
        found = checked()
    if site_config is not None:
        for sentence in missing_entries(site_config):
            raise RefutedError(f"the trail {file}: {sentence}")
    if head:
        typer.echo(str(found.head))
        return
    if not check:
        _print_entries(file, last)
    _print_outcome(found, wanted, is_vouched=site_config is not None or key_directory is not None)


def _directory(site_config: SiteConfig | None, path: Path | None) -> KeyDirectory | None:
    """Return the sites' public keys: those of the option, or else those of the site file."""
    from cohortium.crypto.signing import KeyDirectory

    if path is not None:
        return KeyDirectory.read(path)
    return None if site_config is None else site_config.policy.directory


def _replaced(
    site_config: SiteConfig | None, file: Path, directory: KeyDirectory | None
) -> tuple[bytes, ...] | None:
    """Return the earlier public keys of a trail's site, or None without a directory."""
    from cohortium.deployment.trail_check import check_trail

    if directory is None:
        return None
    site = check_trail(file).head.site if site_config is None else site_config.id
    return tuple(key for holder, key in directory.revoked if holder == site)


def _trusted(
    site_config: SiteConfig | None, file: Path, directory: KeyDirectory | None
) -> tuple[bytes, ...] | None:
    """Return the present public keys of a trail's site, or None if nobody vouches for one."""
    from cohortium.deployment.trail_check import check_trail

    if site_config is not None:
        key = site_config.key
        return () if key is None else (key.public,)
    if directory is None:
        return None
    site = check_trail(file).head.site
    present = directory.keys[site] if site < len(directory.keys) else None
    if present is None:
        raise RecordError(f"the directory has no key of site {site}.")
    return (present,)


def _note(site_config: SiteConfig, noted: SignedHead, directory: KeyDirectory | None) -> None:
    """Write the head of another site's trail to this one, if the other site has signed it."""
    from cohortium.deployment.trail_check import is_signed_by

    if noted.site == site_config.id:
        raise RequestError(f"that is the head of this site's own trail, of site {noted.site}.")
    if directory is not None:
        key = directory.keys[noted.site] if noted.site < len(directory.keys) else None
        if key is None or not is_signed_by(noted, (key,)):
            raise RefutedError(f"site {noted.site} has not signed that head.")
    own = site_config.open_trail()
    try:
        own.noted(noted)
    finally:
        own.close()


def _print_entries(file: Path, last: int) -> None:
    from cohortium.deployment.trail_check import last_entries

    for number, sentence in last_entries(file, last):
        typer.echo(sanitize(f"{number:>6}  {sentence}"))


def _print_outcome(found: CheckedTrail, wanted: SignedHead | None, *, is_vouched: bool) -> None:
    number = found.head.head.number
    by = f"signed by {found.keys[-1][:16]}…" if found.keys[-1] else "unsigned"
    typer.echo(f"site {found.head.site}: {number:,} lines, {by}, none altered")
    if not found.keys[-1]:
        typer.echo(
            "an unsigned trail can be rewritten as a whole; name a signing_key and a new trail",
            err=True,
        )
    elif not is_vouched:
        typer.echo("nobody vouches for that key; give --key-directory", err=True)
    if found.is_torn:
        typer.echo(
            "one more line is not whole: a crash has interrupted its writing, and its answer did "
            "not leave, or somebody has removed its end",
            err=True,
        )
    for line, key in zip(found.changes, found.keys[1:], strict=True):
        typer.echo(f"another key signs from line {line} on: {key[:16]}…", err=True)
    for line in found.set_back[:5]:
        typer.echo(f"the clock was set back before line {line}", err=True)
    if wanted is not None:
        typer.echo(f"it contains the head that was noted, line {wanted.head.number}")
    typer.echo(sanitize(str(found.head)))
