"""Which part of each history trains, validates and tests: examples that point into histories."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from ..errors import InvalidArgument, InvalidData
from .config import SplitConfig
from .histories import Histories


@dataclass(frozen=True, eq=False)
class Examples:
    """`M` examples: the history is the first `ends` events of row `rows`, the truth those up to `truth_ends`.

    Attributes:
        rows: `(M,)` int64 rows of the histories.
        ends: `(M,)` int64.
        truth_ends: `(M,)` int64, equal to `ends` where there is nothing to predict (training).
    """

    rows: np.ndarray
    ends: np.ndarray
    truth_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: "np.ndarray | Sequence[int] | slice") -> "Examples":
        """Return the examples at `index` (positions, a slice or a mask)."""
        return Examples(self.rows[index], self.ends[index], self.truth_ends[index])


@dataclass(frozen=True, eq=False)
class Split:
    """Training, validation and test examples, and sentences on where the split leaks the future."""

    train: Examples
    validation: Examples
    test: Examples
    warnings: tuple[str, ...]


def split(histories: Histories, config: SplitConfig) -> Split:
    """Divide `histories` as `config` says.

    Leave-last-two-out: of a user with n ≥ 3 events the last is for test, the one before for validation and
    the first n - 2 for training; users with fewer train only.

    Held-out users: the first `validation_from` of the users (a share, in the order of their ids) train on all their
    events, those up to `test_from` validate, the others test: the last event of each, predicted from those before it.
    Of users with one event nothing is predicted.

    Temporal: events before `validation_from` train, those before `test_from` validate, the others test. With
    target "each" every event of a window that has events before it is an example, predicted from all of them;
    "first" keeps the first such example of each user; "all" predicts all events of the window from the events
    before it. Users without an event before are dropped and counted in `warnings`.

    Raises:
        InvalidData: a temporal split of a log without times, or an empty side.
        InvalidArgument: `validation_from` or `test_from` cannot be a time of this log (or a share of the users), or are
            not ascending.
    """
    if config.kind == "temporal":
        return _temporal(histories, config)
    if config.kind == "held-out-users":
        return _held_out_users(histories, config)
    return _leave_last_two_out(histories)


def _leave_last_two_out(histories: Histories) -> Split:
    lengths = histories.lengths.numpy()
    rows = np.arange(len(lengths))
    ends = np.where(lengths >= 3, lengths - 2, lengths)
    held, last = rows[lengths >= 3], lengths[lengths >= 3]
    if not len(held):
        raise InvalidData("split: leave-last-two-out needs a user with 3 events or more, got none")
    test = Examples(held, last - 1, last)
    train = Examples(rows, ends, ends)
    warnings = _leak(histories, train, test, "Leave-last-two-out")
    if len(held) < len(rows):
        warnings.append(f"{len(rows) - len(held):,} of {len(rows):,} users have fewer than 3 events: "
                        f"they train and are not evaluated.")
    return Split(train, Examples(held, last - 2, last - 1), test, tuple(warnings))


def _held_out_users(histories: Histories, config: SplitConfig) -> Split:
    lengths = histories.lengths.numpy()
    shares = (config.validation_from, config.test_from)
    for name, share in zip(("validation_from", "test_from"), shares, strict=True):
        if isinstance(share, str) or not 0 < share < 1:
            raise InvalidArgument(name, "a share of the users, between 0 and 1", repr(share))
    first, second = (round(float(share) * len(lengths)) for share in shares)
    if first > second:
        raise InvalidArgument("validation_from", f"a share up to test_from ({shares[1]})", shares[0])
    train, validation, test = np.split(np.arange(len(lengths)), [first, second])
    validation, test = validation[lengths[validation] > 1], test[lengths[test] > 1]
    for name, rows in (("training", train), ("validation", validation), ("test", test)):
        if not len(rows):
            raise InvalidData(f"split: held-out users leave no {name} example; move validation_from ({shares[0]}) "
                              f"or test_from ({shares[1]})")
    learnt = Examples(train, lengths[train], lengths[train])
    held, tested = (Examples(rows, lengths[rows] - 1, lengths[rows]) for rows in (validation, test))
    return Split(learnt, held, tested, tuple(_leak(histories, learnt, tested, "A split by users")))


def _leak(histories: Histories, train: Examples, test: Examples, name: str) -> list[str]:
    """Say how many test targets happened before the newest training event of another user."""
    if not histories.has_time:
        return [f"{name} on a log without times: whether training events of other users happened "
                "after the test targets cannot be checked."]
    times, offsets = histories.fields["time"].numpy(), histories.offsets.numpy()
    newest = times[offsets[train.rows] + train.ends - 1]  # rows are in time order, and every user here has an event
    order = np.argsort(newest, kind="stable")
    of_others = np.full(histories.num_users, newest[order[-1]])
    of_others[train.rows[order[-1]]] = newest[order[-2]] if len(order) > 1 else np.iinfo(np.int64).min
    targets = times[offsets[test.rows] + test.ends]
    leaked = int((targets < of_others[test.rows]).sum())
    if not leaked:
        return []
    return [f"{name} leaks the future: {leaked:,} of {len(test):,} test targets "
            f"({leaked / len(test):.1%}) happened before the newest training event of other users; "
            f"a temporal split does not."]


def _temporal(histories: Histories, config: SplitConfig) -> Split:
    if not histories.has_time:
        raise InvalidData("split: a temporal split needs times, and this log has none (columns.time)")
    times, offsets = histories.fields["time"].numpy(), histories.offsets.numpy()
    cuts = [time_of(getattr(config, name), name, times, histories.time_unit)
            for name in ("validation_from", "test_from")]
    if cuts[0] >= cuts[1]:
        raise InvalidArgument("validation_from", f"a time before test_from ({cuts[1]})", cuts[0])
    # events of each row before a cut; rows are in time order, and none is empty
    before = [np.add.reduceat(times < cut, offsets[:-1], dtype=np.int64) for cut in cuts]
    lengths = histories.lengths.numpy()
    rows = np.flatnonzero(before[0] > 0)
    train = Examples(rows, before[0][rows], before[0][rows])
    validation = _window(before[0], before[1], config.target)
    test = _window(before[1], lengths, config.target)
    for name, examples in (("training", train), ("validation", validation), ("test", test)):
        if not len(examples):
            raise InvalidData(f"split: the temporal split leaves no {name} example; move validation_from "
                              f"({cuts[0]}) or test_from ({cuts[1]})")
    warnings = [*_dropped("validation", before[0], before[1], validation, config.target),
                *_dropped("test", before[1], lengths, test, config.target)]
    return Split(train, validation, test, tuple(warnings))


def _window(first: np.ndarray, last: np.ndarray, target: str) -> Examples:
    """Examples whose truth lies in events `first … last` of each row, each with at least one event before."""
    if target == "all":
        rows = np.flatnonzero((first > 0) & (last > first))
        return Examples(rows, first[rows], last[rows])
    start = np.maximum(first, 1)  # the first event of a user has no history
    count = np.maximum(last - start, 0)
    if target == "first":
        count = np.minimum(count, 1)
    rows = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    ends = start[rows] + within
    return Examples(rows, ends, ends + 1)


def _dropped(name: str, first: np.ndarray, last: np.ndarray, examples: Examples, target: str) -> list[str]:
    """Say how many events of a window have no event before them, and how many users are dropped for it."""
    new = (first == 0) & (last > 0)
    if not new.any():
        return []
    events = int(last[new].sum()) if target == "all" else int(new.sum())
    active = last > first
    dropped = int(active.sum()) - len(np.unique(examples.rows))
    return [f"Temporal split, {name}: {events:,} of {int((last - first).sum()):,} events have no earlier event "
            f"of their user to be predicted from and are not predicted; {dropped:,} of {int(active.sum()):,} "
            f"users are dropped for it."]


def time_of(value: float | int | str, name: str, times: np.ndarray, unit: str | None) -> int:
    """Return the time a configured cut stands for: a quantile of all events, a date, or a time as it is."""
    if isinstance(value, str):
        if unit != "microseconds":
            raise InvalidArgument(name, "a number, as the times of this log are integers", repr(value))
        date = datetime.fromisoformat(value)
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() * 1_000_000)
    if 0 < value < 1:
        place = int(value * len(times))
        return int(np.partition(times, place)[place])
    return int(value)
