"""A synthetic log with something to learn: which models it separates, and why, is known by construction.

Items form clusters on a cycle. Each user has one of 16 latent types, and each type prefers 5 items of every
cluster. At each event a user: with probability .2 takes any item by popularity (Zipf) and stays where they are on
the cycle; with probability .1 jumps to a random cluster; else moves to the next one; and takes one of the 5 items
of their type there. So popularity and co-occurrence say little, the item before says much, and only the whole
history tells the type and sees through the noise. Lengths are log-normal, long-tailed; rows are in time order.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InvalidArgument
from ..files import write_aside

_TYPES = 16
_PREFERRED = 5  # items of a cluster that a type takes
_NOISE, _JUMP = 0.2, 0.1
_SPREAD = 1.1  # of the logarithm of the lengths
SHORTEST = 3  # of a user: one event each for training, validation and test
_BLOCK = 1 << 20  # events made at once, and rows of a row group
_MOST_BUCKETS = 256
_START, _SPAN = 1_600_000_000, 2 * 365 * 86_400  # seconds: two years from September 2020
_EVENT = np.dtype([("time", "<i8"), ("user", "<i8"), ("item", "<i8")])


def synthesize(path: Path | str, events: int, users: int | None = None, *, clusters: int = 50,
               items_per_cluster: int = 40, seed: int = 0, titles: Path | str | None = None) -> Path:
    """Write a log of exactly `events` events as Parquet (user, item, time, all int64; time in seconds).

    The same arguments give the same log. Temporary files beside `path` grow with `events`, memory does not.

    Args:
        path: the Parquet file to write.
        events: at least 3 a user.
        users: default one for 50 events.
        clusters: at least 2, on a cycle.
        items_per_cluster: at least 5. Item ids are 1 … clusters × items_per_cluster.
        seed: at least 0.
        titles: where to write the items' titles as Parquet (id, title), if wanted.

    Raises:
        InvalidArgument: a number out of its range.
    """
    path = Path(path)
    users = max(events // 50, 1) if users is None else users
    least_of = {"users": (users, 1), "events": (events, SHORTEST * users), "clusters": (clusters, 2),
                "items_per_cluster": (items_per_cluster, _PREFERRED), "seed": (seed, 0)}
    for name, (value, least) in least_of.items():
        if value < least:
            raise InvalidArgument(name, f"at least {least}", value)
    world = _World(clusters, items_per_cluster, seed)
    with (write_aside(path) as partial,
          tempfile.TemporaryDirectory(prefix=".synthesize-", dir=path.parent) as folder):
        buckets = [Path(folder) / f"{number}" for number in range(min(-(-events // _BLOCK), _MOST_BUCKETS))]
        _scatter(world, lognormal_lengths(events, users, seed), seed, buckets)
        _gather(buckets, partial)
    if titles is not None:
        with write_aside(Path(titles)) as partial:
            pq.write_table(world.titles(), partial)
    return path


class _World:
    """What does not change: who prefers what, and how popular the items are."""

    def __init__(self, clusters: int, items_per_cluster: int, seed: int):
        rng = np.random.default_rng([seed, 0])
        self.clusters, self.items_per_cluster = clusters, items_per_cluster
        choices = np.tile(np.arange(items_per_cluster), (_TYPES, clusters, 1))
        self.preferred = rng.permuted(choices, axis=2)[:, :, :_PREFERRED]
        by_popularity = 1 / np.arange(1, clusters * items_per_cluster + 1)
        self.popularity = np.cumsum(by_popularity / by_popularity.sum())
        self.popular = rng.permutation(clusters * items_per_cluster)

    def titles(self) -> pa.Table:
        """Ids and titles, such as `cluster 07 · item 12`."""
        names = [f"cluster {cluster:02d} · item {item:02d}"
                 for cluster in range(self.clusters) for item in range(self.items_per_cluster)]
        return pa.table({"id": np.arange(1, len(names) + 1), "title": names})


def lognormal_lengths(events: int, users: int, seed: int) -> np.ndarray:
    """Return log-normal lengths `(users,)` int64, at least 3 each, that sum to `events`."""
    raw = np.random.default_rng([seed, 1]).lognormal(0.0, _SPREAD, users)
    spare = events - SHORTEST * users
    ends = np.rint(np.cumsum(raw) * (spare / raw.sum())).astype(np.int64)  # rounded sums keep the total
    ends[-1] = spare
    return SHORTEST + np.diff(ends, prepend=0)


def _scatter(world: _World, lengths: np.ndarray, seed: int, buckets: list[Path]) -> None:
    """Make the events of one block of users after the other; append each to the file of its time."""
    ids = np.random.default_rng([seed, 2]).permutation(len(lengths)) + 1
    for number, (first, last) in enumerate(user_blocks(lengths, _BLOCK)):
        events = _make(world, ids[first:last], lengths[first:last], np.random.default_rng([seed, 3, number]))
        bucket = (events["time"] - _START) * len(buckets) // (_SPAN + 1)
        events = events[np.argsort(bucket, kind="stable")]
        cuts = np.searchsorted(np.sort(bucket), np.arange(len(buckets) + 1))
        for target, start, end in zip(buckets, cuts[:-1], cuts[1:], strict=True):
            with open(target, "ab") as file:
                file.write(events[start:end].data)


def _gather(buckets: list[Path], path: Path) -> None:
    """Sort each stretch of time, one after the other, and write it."""
    schema = pa.schema([(name, pa.int64()) for name in ("user", "item", "time")])
    with pq.ParquetWriter(path, schema) as writer:
        for bucket in buckets:
            events = np.fromfile(bucket, dtype=_EVENT)
            events = events[np.argsort(events["time"], kind="stable")]
            columns = [np.ascontiguousarray(events[name]) for name in schema.names]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_BLOCK)
            bucket.unlink()


def user_blocks(lengths: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cut users, of `lengths` `(users,)` events, into blocks of about `most` events; yield the first and the end."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + most, side="right")), first + 1)
        yield first, last
        first = last


def _make(world: _World, ids: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The events of some users, end to end, with no loop over them."""
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths  # where each user's events begin
    rows = np.repeat(np.arange(len(lengths)), lengths)
    kind = rng.random(total)
    noise, jump = kind < _NOISE, (kind >= _NOISE) & (kind < _NOISE + _JUMP)
    jump[starts], noise[starts] = True, False  # a user begins somewhere
    steps = np.cumsum(~noise)
    jumped_at = np.maximum.accumulate(np.where(jump, np.arange(total), 0))
    landed = rng.integers(world.clusters, size=total)
    cluster = (landed[jumped_at] + steps - steps[jumped_at]) % world.clusters
    taste = rng.integers(_TYPES, size=len(lengths))[rows]
    item = (cluster * world.items_per_cluster
            + world.preferred[taste, cluster, rng.integers(_PREFERRED, size=total)])
    item[noise] = world.popular[np.searchsorted(world.popularity, rng.random(int(noise.sum())))]
    made = np.empty(total, dtype=_EVENT)
    made["time"], made["user"], made["item"] = increasing_times(lengths, rng), ids[rows], item + 1
    return made


def increasing_times(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the times of users end to end, int64 in seconds: each is active in an interval of their own, at random.

    `lengths` `(users,)` are at least 1 each. A user's times never fall; two may be equal.
    """
    starts, rows = np.cumsum(lengths) - lengths, np.repeat(np.arange(len(lengths)), lengths)
    begin = rng.random(len(lengths))
    width = (1 - begin) * rng.random(len(lengths))
    waited = np.cumsum(rng.standard_exponential(len(rows)))
    waited -= np.concatenate([[0.0], waited])[starts][rows]  # since the begin of each user
    whole = waited[starts + lengths - 1] + rng.standard_exponential(len(lengths))
    return _START + ((begin[rows] + width[rows] * (waited / whole[rows])) * _SPAN).astype(np.int64)
