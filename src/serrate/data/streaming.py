"""A synthetic stream whose catalogue grows: what a model must learn while items that nobody has seen keep coming.

Items belong to categories. 40 % of them are there from the start, the others come out one by one, evenly over the
records. A record has up to 5 categories and a taste for them. What comes next follows a Dirichlet process, by which the
richer gets richer: event n, from 0, is new with probability `alpha / (alpha + n)`, in a category by taste, and else
repeats one of the events before it, any: its category, or the very item. A new item is any that is out in its category.

The paper, as we read it, repeats categories. Then no model can hit more than 10 of some 200 equally likely items: .035
(.175 at 50) for one that knows all categories, well below the .0893 (.3170) that it reports. Repeated items can be hit
as often as that, so both are here.

Source: the synthetic data of Jiaqi Zhai et al., "Actions Speak Louder than Words", ICML 2024 (arXiv 2402.17152).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InvalidArgument
from ..files import write_aside

Again = Literal["category", "item"]

_RELEASED = 0.4  # share of the items that is out at the first record
_MOST_CATEGORIES = 5  # of a record
_CONCENTRATION = (1.0, 500.0)  # alpha of the Dirichlet process, drawn evenly for each record
_BLOCK = 1 << 14  # records made at once, and written as one row group
_SCHEMA = pa.schema([("user", pa.int32()), ("item", pa.int32()), ("time", pa.int64())])


def synthesize_stream(path: Path | str, records: int, *, length: int = 128, items: int = 20_000, categories: int = 100,
                      again: Again = "category", seed: int = 0, titles: Path | str | None = None) -> Path:
    """Write a stream of `records` of `length` events each as Parquet (user int32, item int32, time int64).

    Record `r`, from 0, is user `r + 1`, and its event `n` has time `r · length + n`: rows stand in order of time. The
    same arguments give the same stream. Memory does not grow with `records`.

    Args:
        path: the Parquet file to write.
        records: at least 1.
        length: events of a record, at least 1.
        items: enough that 40 % of them are `categories` or more. Ids are 1 … `items` in the order in which they come
            out: before record `r`, the first `(0.4 + 0.6 r / records) · items` are.
        categories: at least 5. Each id is in one of them, any; the first ids are in one each, so that none is empty.
        again: what an event that is not new repeats of an earlier one: its category or its item.
        seed: at least 0.
        titles: where to write the items' categories as Parquet (id, title), if wanted.

    Raises:
        InvalidArgument: a number out of its range.
    """
    least_of = {"records": (records, 1), "length": (length, 1), "categories": (categories, _MOST_CATEGORIES),
                "items": (items, int(np.ceil(categories / _RELEASED))), "seed": (seed, 0)}
    for name, (value, least) in least_of.items():
        if value < least:
            raise InvalidArgument(name, f"at least {least}", value)
    if again not in get_args(Again):
        raise InvalidArgument("again", " or ".join(get_args(Again)), repr(again))
    catalogue = _Catalogue(items, categories, np.random.default_rng([seed, 0]))
    with write_aside(Path(path)) as partial, pq.ParquetWriter(partial, _SCHEMA) as writer:
        for number, block in enumerate(_blocks(records)):
            made = catalogue.draw(block / records, length, again, np.random.default_rng([seed, 1, number]))
            users = np.repeat(block + 1, length)
            times = np.arange(block[0] * length, (block[-1] + 1) * length)
            columns = [users.astype(np.int32), made.reshape(-1).astype(np.int32), times]
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=len(times))
    if titles is not None:
        with write_aside(Path(titles)) as partial:
            pq.write_table(catalogue.titles(), partial)
    return Path(path)


def released(share: np.ndarray, items: int) -> np.ndarray:
    """Return how many of `items` are out when `share` (0 … 1, any shape) of the records are over, int64."""
    return ((_RELEASED + (1 - _RELEASED) * share) * items).astype(np.int64)


class _Catalogue:
    """What does not change: which item is in which category."""

    def __init__(self, items: int, categories: int, rng: np.random.Generator):
        self.items, self.categories = items, categories
        self.category = np.concatenate([rng.permutation(categories), rng.integers(categories, size=items - categories)])
        self.members = np.argsort(self.category, kind="stable")  # ids of the first category ascending, of the next …
        self.keys = self.category[self.members] * items + self.members
        self.starts = np.searchsorted(self.category[self.members], np.arange(categories))

    def draw(self, share: np.ndarray, length: int, again: Again, rng: np.random.Generator) -> np.ndarray:
        """Return the item ids `(R, length)` of R records, before each of which `share` `(R,)` of the stream is over."""
        rows = np.arange(len(share))
        allowed = rng.integers(1, _MOST_CATEGORIES + 1, size=len(share))
        every = np.tile(np.arange(self.categories), (len(share), 1))
        chosen = rng.permuted(every, axis=1)[:, :_MOST_CATEGORIES]
        taste = rng.standard_exponential(chosen.shape) * (np.arange(_MOST_CATEGORIES) < allowed[:, None])
        taste = taste.cumsum(1)
        alpha = rng.uniform(*_CONCENTRATION, size=len(share))
        out = np.searchsorted(self.keys, chosen * self.items + released(share, self.items)[:, None])
        out -= self.starts[chosen]  # items of each category that are out
        category = np.empty((len(share), length), dtype=np.int64)  # its place among those of the record
        made = np.empty_like(category)
        for event in range(length):
            new = rng.random(len(share)) * (alpha + event) < alpha
            earlier = rng.integers(event, size=len(share)) if event else rows * 0
            drawn = (rng.random(len(share)) * taste[:, -1] >= taste.T).sum(0).clip(max=allowed - 1)
            category[:, event] = at = np.where(new, drawn, category[rows, earlier])
            place = (rng.random(len(share)) * out[rows, at]).astype(np.int64)
            made[:, event] = self.members[self.starts[chosen[rows, at]] + place]
            if again == "item":
                made[:, event] = np.where(new, made[:, event], made[rows, earlier])
        return made + 1

    def titles(self) -> pa.Table:
        """Ids and titles, such as `category 07 · item 00012`."""
        names = [f"category {category:02d} · item {item:05d}" for item, category in enumerate(self.category, 1)]
        return pa.table({"id": np.arange(1, self.items + 1), "title": names})


def _blocks(records: int) -> Iterator[np.ndarray]:
    """Cut the numbers of the records into blocks."""
    for first in range(0, records, _BLOCK):
        yield np.arange(first, min(first + _BLOCK, records))
