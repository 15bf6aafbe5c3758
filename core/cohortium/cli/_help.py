"""Layout of the help: commands in groups, with sentences and examples."""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING

from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo

from cohortium.errors import RequestError
from cohortium.renamed import COMMANDS, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    import click


class Grouped(TyperGroup):
    """A group that lists commands under their headings, in order of registration."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look up the command, and refuse an old name.

        Raises:
            RequestError: The name is an old one.
        """
        if args[0] in COMMANDS:
            raise RequestError(
                f"`cohortium {args[0]}` is called `cohortium {COMMANDS[args[0]]}` now."
            )
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands, unsorted."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        longest = max(len(name) for name in self.commands)
        room = formatter.width - 6 - longest
        for name in self.list_commands(ctx):
            command = self.commands[name]
            group = getattr(command, "rich_help_panel", None) or "Commands"
            row = (name.ljust(longest), command.get_short_help_str(room))
            sections.setdefault(group, []).append(row)
        for group, rows in sections.items():
            with formatter.section(group):
                formatter.write_dl(rows)


class Worded(TyperCommand):
    """A command whose arguments are explained, with any version of click.

    From 8.5 on, click drops the help that typer 0.20 gives an argument. In addition, that typer
    escapes brackets for a printer that is not used here.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and refuse the old name of an option.

        Raises:
            RequestError: The name is an old one.
        """
        for arg in args[: args.index("--")] if "--" in args else args:
            old = arg.partition("=")[0]
            if new := OPTIONS.get((ctx.info_name or "", old)):
                raise RequestError(f"{old} is called {new} now.")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help text of each argument and option."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        texts = _arguments(self.callback)
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            if is_argument and parameter.name in texts:
                row = (parameter.make_metavar(ctx), texts[parameter.name])
                sections["Arguments"].append(row)
            elif not is_argument and (record := parameter.get_help_record(ctx)):
                sections["Options"].append((record[0], record[1].replace("\\[", "[")))
        for name, rows in sections.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)


def _arguments(command: Callable[..., object] | None) -> dict[str, str]:
    """Return the help texts of a command's arguments, by name."""
    hints = typing.get_type_hints(command, include_extras=True)
    notes = ((name, note) for name, hint in hints.items() for note in _notes(hint))
    return {name: note.help or "" for name, note in notes if isinstance(note, ArgumentInfo)}


def _notes(hint: object) -> tuple[object, ...]:
    return getattr(hint, "__metadata__", ())


def help_text(command: Callable[..., None]) -> str:
    """Return the docstring of `command` as click shows it.

    Each example stays on a line of its own.
    """
    return (inspect.getdoc(command) or "").replace("\nExamples:\n", "\n\b\nExamples:\n")
