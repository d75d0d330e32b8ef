"""The errors a caller meets: each says in one line what was expected and what was got.

Everything Serrate raises on purpose is a `SerrateError`. The command line prints the message on one line and
exits with code 2; a traceback from Serrate is a defect.
"""

import difflib
import re
import reprlib
from collections.abc import Iterable


class SerrateError(Exception):
    """Base of every error raised on purpose. Its message is one line that a person can act on."""

    def __str__(self) -> str:
        return _one_line(super().__str__())


class InvalidArgument(SerrateError, ValueError):  # noqa: N818 - reads as the sentence it begins
    """A call's argument is off: `argument`, what was expected, what was got (shortened if it is long)."""

    def __init__(self, argument: str, expected: str, got: object):
        super().__init__(argument, expected, shorten(got))

    def __str__(self) -> str:
        argument, expected, got = self.args
        return _one_line(f"{argument}: expected {expected}, got {got}")


class InvalidData(SerrateError, ValueError):  # noqa: N818
    """A file, table or event log cannot be used as it is."""


class InvalidConfig(SerrateError, ValueError):  # noqa: N818
    """A configuration has an unknown key, a wrong type or a value out of range."""


class InvalidRun(SerrateError, ValueError):  # noqa: N818
    """A folder is not a saved run, is damaged, or was written by a format that cannot be read."""


class NotUsable(SerrateError, RuntimeError):  # noqa: N818
    """An implementation that was asked for by name cannot serve this call; the message says why."""


class NotWritable(SerrateError, OSError):  # noqa: N818
    """A file or folder cannot be written: a full disk, no permission, something else in its place."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shorten(value: object, most: int = 160) -> str:
    """Return the text of `value`, its middle left out when it is longer than `most` characters."""
    # Containers go through reprlib, which never writes out more than a few entries of each level.
    text = _BRIEF.repr(value) if isinstance(value, list | tuple | dict | set) else str(value)
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head):]}"


_BRIEF = reprlib.Repr()
_BRIEF.fillvalue = "…"
_BRIEF.maxstring = _BRIEF.maxother = 80


def _one_line(text: str) -> str:
    """Return `text` with line ends as spaces and what cannot be printed as escapes."""
    joined = " ".join(re.split(r"\s*[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*", text)).strip()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
