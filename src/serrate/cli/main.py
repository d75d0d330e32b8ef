"""The commands, and what a person sees when something is wrong: one line, exit code 2, no traceback."""

import errno
import os
import sys

import typer

from ..errors import SerrateError
from . import bench, config, data, doctor, evaluate, index, quickstart, recommend, run, score
from .groups import group

# Typer brings its own copy of click, or uses an installed one: take the classes from what it exports.
_UsageError: type[Exception]
_ClickException: type[Exception]
_UsageError, _ClickException = typer.BadParameter.__mro__[1:3]

_INTERRUPTED = 130  # 128 + SIGINT, as shells say it; some versions of Typer return it, others raise

app = group("Sequence recommenders without padding: from an event log to recommendations.",
            epilog="Start with `serrate quickstart`; `serrate COMMAND --help` shows examples of a command.")
app.command()(quickstart.quickstart)
app.add_typer(data.app, name="data")
app.command()(run.train)
app.command()(evaluate.evaluate)
app.command()(recommend.recommend)
app.command()(score.score)
app.command()(run.report)
app.add_typer(index.app, name="index")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
app.command()(doctor.doctor)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 2 a mistake told in one line on stderr, 130 interrupted."""
    try:
        code = app(arguments, prog_name="serrate", standalone_mode=False) or 0
        return _interrupted() if code == _INTERRUPTED else code
    except SerrateError as error:
        return _fail(str(error))
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "serrate"
        return _fail(f"{_message(error)} (see {command} --help)")
    except _ClickException as error:
        return _fail(_message(error))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except RuntimeError as error:
        if str(error) != "Query interrupted":  # the words of DuckDB when Ctrl-C meets a query
            raise
        return _interrupted()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = " (free some space and run the command again)" if error.errno == errno.ENOSPC else ""
        return _fail(f"{where}{error.strerror or error}{hint}")


def _interrupted() -> int:
    typer.echo("serrate: interrupted", err=True)
    return _INTERRUPTED


def _message(error: BaseException) -> str:
    text = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
    return " ".join(text.split()).rstrip(".")


def _fail(message: str) -> int:
    typer.echo(f"serrate: error: {SerrateError(message)}", err=True)  # which keeps it on one line
    return 2
