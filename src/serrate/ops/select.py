"""The one place where an implementation of an operation is chosen.

An explicit choice succeeds or raises; the automatic one takes the first implementation that can serve the call and
keeps the reason why each one before it cannot.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import InvalidArgument, NotUsable, suggest


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation, and when it can serve.

    Attributes:
        name: what a caller writes in `implementation=`.
        compute: the operation itself.
        unusable: takes the call, returns why it cannot be served, or None when it can.
    """

    name: str
    compute: Callable[..., Any]
    unusable: Callable[[Any], str | None]


class Choice(NamedTuple):
    """The implementation chosen, and why each one ranked before it was passed over."""

    implementation: Implementation
    passed_over: tuple[tuple[str, str], ...] = ()


_operations: dict[str, Sequence[Implementation]] = {}


def register(operation: str, ranked: Sequence[Implementation]) -> None:
    """Declare the implementations of `operation`, best first."""
    _operations[operation] = tuple(ranked)


def implementations(operation: str) -> Sequence[Implementation]:
    """Return the implementations of `operation`, in the order in which the automatic choice tries them."""
    if operation not in _operations:
        known = ", ".join(sorted(_operations))
        raise InvalidArgument("operation", f"one of {known}{suggest(operation, _operations)}", repr(operation))
    return _operations[operation]


def choose(operation: str, call: Any, name: str | None = None) -> Choice:
    """Choose for `call`: by `name` (raises `NotUsable` when it cannot serve), or the first usable one."""
    ranked = implementations(operation)
    if name is not None:
        named = {candidate.name: candidate for candidate in ranked}
        if name not in named:
            expected = f"one of {', '.join(named)}{suggest(name, named)}"
            raise InvalidArgument("implementation", expected, repr(name))
        reason = named[name].unusable(call)
        if reason is not None:
            raise NotUsable(f"implementation {name!r} of {operation} cannot serve this call: {reason}")
        return Choice(named[name])
    passed_over: list[tuple[str, str]] = []
    for candidate in ranked:
        reason = candidate.unusable(call)
        if reason is None:
            return Choice(candidate, tuple(passed_over))
        passed_over.append((candidate.name, reason))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise NotUsable(f"no implementation of {operation} can serve this call ({reasons})")
