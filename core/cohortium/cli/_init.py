"""`cohortium init`: a commented study from a few answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohortium.errors import CohortiumError, RequestError, RunError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Callable


def init(
    path: Annotated[Path, typer.Argument(help="The new file.")] = Path("study.toml"),
    *,
    data: Annotated[
        str | None,
        typer.Option(help="'phantom', an npz file, or a MedMNIST flag such as bloodmnist."),
    ] = None,
    sites: Annotated[int | None, typer.Option(help="Simulated hospitals.", min=1)] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="'none', or ε of the whole run (1 strong, 6 moderate).")
    ] = None,
    secagg: Annotated[
        bool | None, typer.Option("--secagg/--plain", help="Whether only sums are seen.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take the defaults.")] = False,
) -> None:
    """Write a commented study that runs at once.

    Asks four questions: the data, the sites, the privacy and the aggregation. It skips questions
    that an option answers.

    Examples:
      cohortium init
      cohortium init lungs.toml --data pneumoniamnist --sites 8 --epsilon 3
      cohortium init --data own.npz --epsilon none --plain --yes
    """
    from cohortium.scaffold.study_template import Answers, render_study, validate_dataset_name
    from cohortium.storage.atomic import atomic_create
    from cohortium.storage.writable import check_new_file

    check_new_file(path, remedy="name another file")
    if epsilon is not None:
        _epsilon(epsilon)  # before any question, and before the data are looked for
    answers = Answers(
        data=_answer(
            data,
            "Images ('phantom', an npz file, or a MedMNIST flag)",
            default="phantom",
            yes=yes,
            read=validate_dataset_name,
        ),
        sites=_answer(sites, "Sites", default=10, yes=yes, read=_sites),
        epsilon=_answer(
            epsilon,
            "Privacy ('none', or ε: 1 is strong, 6 moderate)",
            default="6",
            yes=yes,
            read=_epsilon,
        ),
        secagg=_answer(secagg, "Secure aggregation: only sums are seen", default=True, yes=yes),
    )
    text, ready = render_study(answers)
    try:
        atomic_create(path, text.encode())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}.") from error
    typer.echo(f"{path}: {ready.run_config.plan.guarantee or 'no privacy guarantee'}")
    typer.echo(f"run it: cohortium run {path}")


def _answer(
    given: Any, question: str, *, default: Any, yes: bool, read: Callable[[Any], Any] = lambda a: a
) -> Any:
    """Return the option's value, the user's answer, or the default.

    With `yes`, the default is taken without a question. The question is repeated while `read`
    refuses the answer.

    Raises:
        CohortiumError: `read` refuses the option's value, or there is no terminal to ask on.
    """
    if given is not None:
        return read(given)
    if yes:
        return read(default)
    if not sys.stdin.isatty():
        raise RequestError(
            "init asks questions, and there is no terminal to ask them on; give --data, --sites, "
            "--epsilon and --secagg or --plain, or take the defaults with --yes."
        )
    if isinstance(default, bool):
        return typer.confirm(question, default=default)
    while True:
        try:
            return read(typer.prompt(question, default=default, type=type(default)))
        except CohortiumError as error:
            typer.echo(sanitize(f"cohortium: {error}"), err=True)


def _sites(sites: int) -> int:
    if sites < 1:
        raise RequestError(f"--sites {sites}: there must be one at least.")
    return sites


def _epsilon(privacy: str) -> float | None:
    if privacy == "none":
        return None
    try:
        epsilon = float(privacy)
    except ValueError:
        epsilon = 0.0
    if not 0 < epsilon < float("inf"):
        raise RequestError(f"--epsilon {privacy}: give 'none', or ε as a number above 0.")
    return epsilon
