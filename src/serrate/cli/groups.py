"""How commands are set up: groups whose help reads like a manual page, options that are many as one dataclass."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import typer

Options = TypeVar("Options")


def group(help_text: str, epilog: str | None = None) -> typer.Typer:
    """Return an empty group of commands.

    Help is plain text, so that it can be searched, copied and piped; a paragraph that begins with a backspace
    character (`\\b`), such as the examples of a command, keeps its lines as they are.
    """
    return typer.Typer(help=help_text, epilog=epilog, callback=_help_when_alone, invoke_without_command=True,
                       add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def flat(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Return a decorator: a command that takes a dataclass becomes one with its fields as Typer wants them."""

    def flattened(command: Callable[[Options], None]) -> Callable[..., None]:
        @wraps(command)
        def called(**values: Any) -> None:
            command(options(**values))

        changed = cast(Any, called)
        changed.__signature__ = inspect.signature(options)
        changed.__annotations__ = options.__annotations__
        return called

    return flattened


def _help_when_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
