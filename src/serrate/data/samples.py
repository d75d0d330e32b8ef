"""What a ranking model is asked: items at moments of users, which point into histories; nothing is copied.

A *state* is a user at one moment: a row of the histories and how many of its events had happened. Its samples are the
items to score then. With times, what happened at the same time is not known yet: events of one user and one time are
samples of one state, read against the events before that time. Without times each event is a moment of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import InvalidArgument, InvalidData
from .config import SamplesConfig
from .histories import Histories
from .negatives import draw_negatives
from .selection import event_values
from .split import time_of


@dataclass(frozen=True, eq=False)
class Samples:
    """`M` samples of `U` user states, rows of unequal length: those of state `u` are `offsets[u] … offsets[u + 1] - 1`.

    Attributes:
        rows: `(U,)` int64 rows of the histories, ascending.
        ends: `(U,)` int64, how many events of the row had happened.
        offsets: `(U + 1,)` int64, from 0 to `M`.
        items: `(M,)` int64 dense ids, what is to be scored.
        places: `(M,)` int64, where the event lies in the flat fields that a sample was made of; of a negative, that of
            its positive.
        labels: name → `(M,)` float32, what happened.
    """

    rows: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    places: np.ndarray
    labels: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_states(self) -> int:
        """`U`, the user states."""
        return len(self.rows)

    @property
    def owner(self) -> np.ndarray:
        """`(M,)` int64, the state of each sample."""
        return np.repeat(np.arange(self.num_states), np.diff(self.offsets))

    @property
    def users(self) -> np.ndarray:
        """`(M,)` int64, the row of the histories that each sample belongs to: its user."""
        return np.repeat(self.rows, np.diff(self.offsets))

    def select(self, states: "np.ndarray | Sequence[int] | slice") -> "Samples":
        """Return the samples of some states (positions, a slice or a mask), state by state in that order."""
        chosen = np.arange(self.num_states)[states]
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        at = np.repeat(self.offsets[chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Samples(self.rows[chosen], self.ends[chosen], offsets, self.items[at], self.places[at],
                       {name: values[at] for name, values in self.labels.items()})

    def base_rate(self, label: str) -> float:
        """Return the mean of a label."""
        return float(self.labels[label].mean(dtype=np.float64))


@dataclass(frozen=True, eq=False)
class SampleSplit:
    """Training, validation and test samples; what ordered them; sentences on what the split leaks or leaves out.

    `by` is `"time"`: one moment for all users ends training; or `"position"`: a share of each user's events does.
    """

    train: Samples
    validation: Samples
    test: Samples
    by: Literal["time", "position"]
    warnings: tuple[str, ...]


def make_samples(histories: Histories, config: SamplesConfig) -> SampleSplit:
    """Make a sample of every event that has `config.min_history` events before it, and split them in order of time.

    What is told of an event is its labels, or, with `config.negatives`, that it happened, beside items for which it did
    not. Of a log with times, samples before `validation_from` train, those before `test_from` validate, the others
    test; a history always holds all that happened before. Of a log without, the two are shares of each user's events,
    rounded down. The same log and configuration give the same samples, negatives too.

    Raises:
        InvalidData: a label that cannot be read, an empty side, a user who has taken every item.
        InvalidArgument: bounds that are not ascending, or cannot be those of this log.
    """
    offsets, lengths = histories.offsets.numpy(), histories.lengths.numpy()
    rows = np.repeat(np.arange(histories.num_users), lengths)
    places = np.arange(histories.num_events)
    moments = _moments(histories, rows)
    part, items = _parts(histories, config, rows), histories.fields["item"].numpy()
    counts = np.bincount(items[part == 0], minlength=histories.num_items)
    chosen = moments - offsets[rows] >= config.min_history
    rows, places, moments, part = rows[chosen], places[chosen], moments[chosen], part[chosen]
    if config.negatives is None:
        shown = items[places].astype(np.int64)[:, None]
        labels = {name: values[places][:, None]
                  for name, values in event_values(histories, dict(config.labels)).items()}
    else:
        others = draw_negatives(histories, rows, config.negatives, counts)
        shown = np.concatenate([items[places].astype(np.int64)[:, None], others], axis=1)
        truth = np.broadcast_to((np.arange(shown.shape[1]) == 0).astype(np.float32), shown.shape)
        labels = {config.negatives.label: truth}
    made = []
    for number, name in enumerate(("training", "validation", "test")):
        of_part = part == number
        if not of_part.any():
            raise InvalidData(f"samples: the split leaves no {name} sample; move validation_from "
                              f"({config.validation_from}) or test_from ({config.test_from})")
        ends = moments[of_part] - offsets[rows[of_part]]
        made.append(_grouped(rows[of_part], ends, places[of_part], shown[of_part],
                             {label: values[of_part] for label, values in labels.items()}))
    train, validation, test = made
    by = "time" if histories.has_time else "position"
    return SampleSplit(train, validation, test, by, tuple(_warnings(histories, int((~chosen).sum()), train, test)))


def _moments(histories: Histories, rows: np.ndarray) -> np.ndarray:
    """The place `(T,)` of the first event of each event's user and time: what lies before it has happened by then."""
    places = np.arange(histories.num_events)
    if not histories.has_time:
        return places
    times = histories.fields["time"].numpy()
    new = np.ones(len(places), dtype=bool)
    new[1:] = (rows[1:] != rows[:-1]) | (times[1:] != times[:-1])
    return np.maximum.accumulate(np.where(new, places, 0))


def _parts(histories: Histories, config: SamplesConfig, rows: np.ndarray) -> np.ndarray:
    """Of each event `(T,)`: 0 where it trains, 1 where it validates, 2 where it tests."""
    bounds = (config.validation_from, config.test_from)
    names = ("validation_from", "test_from")
    if histories.has_time:
        times = histories.fields["time"].numpy()
        cuts = [time_of(bound, name, times, histories.time_unit) for bound, name in zip(bounds, names, strict=True)]
        _check_ascending(cuts)
        return (times >= cuts[0]).astype(np.int8) + (times >= cuts[1])
    for name, share in zip(names, bounds, strict=True):
        if isinstance(share, str) or not 0 < share < 1:
            raise InvalidArgument(name, "a share of each user's events, between 0 and 1, as the log has no times",
                                  repr(share))
    _check_ascending(list(bounds))
    lengths, firsts = histories.lengths.numpy(), histories.offsets.numpy()[rows]
    within = np.arange(len(rows)) - firsts
    cuts = [np.floor(lengths * float(share))[rows] for share in bounds]
    return (within >= cuts[0]).astype(np.int8) + (within >= cuts[1])


def _check_ascending(cuts: list) -> None:
    if cuts[0] >= cuts[1]:
        raise InvalidArgument("validation_from", f"less than test_from ({cuts[1]})", cuts[0])


def _grouped(rows: np.ndarray, ends: np.ndarray, places: np.ndarray, items: np.ndarray,
             labels: dict[str, np.ndarray]) -> Samples:
    """Samples of events `(K,)` with candidates `(K, n)`: neighbours of one row and end are one state."""
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (rows[1:] != rows[:-1]) | (ends[1:] != ends[:-1])
    firsts, each = np.flatnonzero(new), items.shape[1]
    return Samples(rows[firsts], ends[firsts], np.append(firsts, len(rows)) * each, items.reshape(-1),
                   np.repeat(places, each), {name: values.reshape(-1) for name, values in labels.items()})


def _warnings(histories: Histories, left_out: int, train: Samples, test: Samples) -> list[str]:
    told = []
    if not histories.has_time:
        told.append("Samples of a log without times are split by position within each user: training events of other "
                    "users may have happened after test events.")
    if left_out:
        told.append(f"{left_out:,} of {histories.num_events:,} events have too few events before them and are no "
                    "samples; they are in the histories of later ones.")
    users = np.unique(test.rows)
    new = int((~np.isin(users, train.rows)).sum())
    if new:
        told.append(f"{new:,} of {len(users):,} users of the test have no training sample.")
    return told
