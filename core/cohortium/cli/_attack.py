"""`cohortium attack`: the curious coordinator's reconstruction of images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli._options import Overrides, Study, federation_of
from cohortium.cli._progress import show_progress
from cohortium.cli._streams import json_text
from cohortium.text import sanitize

WARNING = (
    "cohortium: the page will hold images of the study's data set; keep it where the images may be."
)


class Images(StrEnum):
    """Images that an attack takes."""

    MADE_UP = "made-up"
    STUDY = "study"


def attack(
    study: Study = None,
    *,
    overrides: Overrides = None,
    images: Annotated[
        Images, typer.Option(help="Images of the sites; study: the page holds real ones.")
    ] = Images.MADE_UP,
    steps: Annotated[int, typer.Option(help="Steps of a search.", min=1, max=1_000_000)] = 1000,
    seed: Annotated[
        int, typer.Option(help="Seed of images, noise and search.", min=0, max=2**31 - 1)
    ] = 0,
    out: Annotated[Path, typer.Option(help="The page to write; .png: its pictures alone.")] = Path(
        "attack.html"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Try to reconstruct images from one round, as a curious coordinator.

    Attacks a bare update, the exact sum of all sites, and the release that the study's coordinator
    sees. Writes one page of pictures. Exits with 1 if the attack finds an image in the last one.
    An attack that fails proves nothing.

    Examples:
      cohortium attack study.toml
      cohortium attack --set model.name=cnn --out strips.png
    """
    from cohortium.auditing.attack import attack as play
    from cohortium.reporting.attack_page import check_attack_page, write_attack_page

    check_attack_page(out)
    if images is Images.STUDY:
        typer.echo(WARNING, err=True)
    ready = federation_of(study, overrides, is_quiet=as_json).prepare()
    with show_progress("attack") as tell:
        facts = play(
            ready,
            images="study" if images is Images.STUDY else "made-up",
            steps=steps,
            seed=seed,
            tell=tell,
        )
    write_attack_page(facts, out)
    if as_json:
        typer.echo(json_text(facts.as_json()))
    else:
        for strip in facts.strips:
            typer.echo(sanitize(f"{strip.title}. {strip.sentence}".replace("’", "'")))
        typer.echo(sanitize(f"the page: {out}"))
    if facts.is_open:
        raise typer.Exit(1)
