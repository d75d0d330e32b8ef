"""How a group of commands is set up: help that reads like a manual page, also when no command is named."""

import typer


def group(help_text: str, epilog: str | None = None) -> typer.Typer:
    """Return an empty group of commands.

    Help is plain text, so that it can be searched, copied and piped; a paragraph that begins with a backspace
    character (`\\b`), such as the examples of a command, keeps its lines as they are.
    """
    return typer.Typer(help=help_text, epilog=epilog, callback=_help_when_alone, invoke_without_command=True,
                       add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _help_when_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
