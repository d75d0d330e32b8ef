"""The errors a caller meets: each says in one line what was expected and what was got.

Everything Serrate raises on purpose is a `SerrateError`. The command line prints the message on one line and
exits with code 2; a traceback from Serrate is a defect.
"""

import difflib
from collections.abc import Iterable


class SerrateError(Exception):
    """Base of every error raised on purpose. Its message is one line that a person can act on."""


class InvalidArgument(SerrateError, ValueError):  # noqa: N818 - reads as the sentence it begins
    """A call's argument is off: `argument`, what was expected, what was got."""

    def __init__(self, argument: str, expected: str, got: object):
        super().__init__(f"{argument}: expected {expected}, got {got}")


class InvalidData(SerrateError, ValueError):  # noqa: N818
    """A file, table or event log cannot be used as it is."""


class InvalidConfig(SerrateError, ValueError):  # noqa: N818
    """A configuration has an unknown key, a wrong type or a value out of range."""


class InvalidRun(SerrateError, ValueError):  # noqa: N818
    """A folder is not a saved run, is damaged, or was written by a format that cannot be read."""


class NotUsable(SerrateError, RuntimeError):  # noqa: N818
    """An implementation that was asked for by name cannot serve this call; the message says why."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
