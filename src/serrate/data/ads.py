"""A synthetic log of ads whose click law is known: how well a model can do at best is known too.

A request shows some ads to a user at one moment. Half of them are drawn from all by popularity (Zipf), half from a
category that the user's segment likes, by popularity within it. An ad is clicked with the probability

    sigmoid(-3 + quality of the ad + affinity of segment and category + .6 · ln(1 + clicks, 15 at most) - .3 · slot)

where clicks are those of the user on the same category in earlier requests: only who reads the history knows them. All
the rest is in the log and the tables or, as the quality is, can be learnt from them, so the law can be reached. A click
is a purchase with a probability that falls with the price. Requests of a user are log-normal in number, long-tailed.

The column `probability` holds the probability of the click: no scores have a larger AUC or a smaller log loss than
these, but for chance.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InvalidArgument
from ..files import write_aside
from .synthetic import SHORTEST, increasing_times, lognormal_lengths, user_blocks

_SEGMENTS = 16
_LIKED = 8  # categories that a segment likes
_TAGS = 500
_BASE, _HISTORY, _SLOT = -3.0, 0.6, -0.3  # of the law
_MOST_CLICKS = 15  # that count
_REQUESTS = 1 << 17  # made at once; their events are a row group
_EVENTS = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("time", pa.int64()), ("action", pa.int8()),
                     ("slot", pa.int8()), ("probability", pa.float32())])
_COUNTRIES = ("AT", "BR", "CA", "DE", "ES", "FR", "IN", "IT", "JP", "KR", "MX", "NL", "PL", "SE", "UK", "US")


def synthesize_ads(folder: Path | str, requests: int, users: int | None = None, *, shown: int = 4, items: int = 100_000,
                   categories: int = 200, seed: int = 0) -> Path:
    """Write a log of `requests` · `shown` impressions into a folder that is there, and tables of its items and users.

    `events.parquet`, the requests of a user together, in order of time: user, item, time (seconds), action (0 shown,
    1 clicked, 2 bought), slot (0 … `shown` - 1), probability (float32). `items.parquet`: id, title, category,
    advertiser, price, tags (text between bars). `users.parquet`: id, segment, country, age (some are null). The same
    arguments give the same files. Memory does not grow with `requests`.

    Args:
        folder: where the files go.
        requests: at least 3 a user.
        users: default one for 50 requests.
        shown: ads of a request, 1 … 100.
        items: at least one a category.
        categories: at least 8.
        seed: at least 0.

    Raises:
        InvalidArgument: a number out of its range.
    """
    folder = Path(folder)
    users = max(requests // 50, 1) if users is None else users
    least_of = {"users": (users, 1), "requests": (requests, SHORTEST * users), "shown": (shown, 1),
                "categories": (categories, _LIKED), "items": (items, categories), "seed": (seed, 0)}
    for name, (value, least) in least_of.items():
        if value < least:
            raise InvalidArgument(name, f"at least {least}", value)
    if shown > 100:
        raise InvalidArgument("shown", "at most 100", shown)
    market = _Market(items, categories, users, seed)
    lengths = lognormal_lengths(requests, users, seed)
    with write_aside(folder / "events.parquet") as partial, pq.ParquetWriter(partial, _EVENTS) as writer:
        for number, (first, last) in enumerate(user_blocks(lengths, _REQUESTS)):
            rng = np.random.default_rng([seed, 3, number])
            writer.write_table(market.impressions(np.arange(first, last), lengths[first:last], shown, rng))
    for name, table in (("items", market.items_table(seed)), ("users", market.users_table(seed))):
        with write_aside(folder / f"{name}.parquet") as partial:
            pq.write_table(table, partial)
    return folder


class _Market:
    """What does not change: which item is in which category and how good it is, who likes what."""

    def __init__(self, items: int, categories: int, users: int, seed: int):
        rng = np.random.default_rng([seed, 0])
        self.items, self.categories = items, categories
        self.quality = rng.normal(0, 0.5, items)
        self.price = np.exp(rng.normal(3, 1, items))
        self.affinity = rng.normal(0, 0.3, (_SEGMENTS, categories))
        self.liked = rng.permuted(np.tile(np.arange(categories), (_SEGMENTS, 1)), axis=1)[:, :_LIKED]
        np.put_along_axis(self.affinity, self.liked, 1.0, axis=1)
        self.segment = rng.integers(_SEGMENTS, size=users)
        self.popularity = np.cumsum(1 / np.arange(1, items + 1))  # item i, from 0, is the i-th in popularity …
        self.within = np.cumsum(1 / np.arange(1, items // categories + 1))  # … of category i mod categories

    def impressions(self, users: np.ndarray, lengths: np.ndarray, shown: int, rng: np.random.Generator) -> pa.Table:
        """Make all requests of some users: one after the other, of all users at once."""
        starts = np.cumsum(lengths) - lengths
        total, slots = int(lengths.sum()), np.arange(shown)
        rows = np.repeat(np.arange(len(users)), lengths)
        item = self._draw(self.segment[users][rows], shown, rng)
        category = item % self.categories
        known = (_BASE + self.quality[item] + self.affinity[self.segment[users][rows][:, None], category]
                 + _SLOT * slots)
        luck, probability = rng.random(item.shape), np.empty(item.shape)
        clicks = np.zeros((len(users), self.categories), dtype=np.int32)
        longest_first = np.argsort(-lengths, kind="stable")
        lasting = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max()), side="left")
        for request, count in enumerate(lasting):  # of the users that have one more
            now = longest_first[:count]
            at = starts[now] + request
            before = clicks[now[:, None], category[at]].clip(max=_MOST_CLICKS)
            probability[at] = 1 / (1 + np.exp(-(known[at] + _HISTORY * np.log1p(before))))
            np.add.at(clicks, (now[:, None], category[at]), luck[at] < probability[at])
        clicked = luck < probability
        bought = clicked & (rng.random(item.shape) < 1 / (1 + np.exp(1 + 0.5 * (np.log(self.price[item]) - 3))))
        # one more second a request: those of a user are at different times
        time = increasing_times(lengths, rng) + np.arange(total) - starts[rows]
        columns = [np.repeat(users[rows] + 1, shown), item.reshape(-1) + 1, np.repeat(time, shown),
                   (clicked.astype(np.int8) + bought).reshape(-1), np.tile(slots.astype(np.int8), total),
                   probability.reshape(-1).astype(np.float32)]
        return pa.table(columns, schema=_EVENTS)

    def _draw(self, segment: np.ndarray, shown: int, rng: np.random.Generator) -> np.ndarray:
        """Items `(requests, shown)`, from 0."""
        shape = (len(segment), shown)
        anything = np.searchsorted(self.popularity, rng.random(shape) * self.popularity[-1])
        rank = np.searchsorted(self.within, rng.random(shape) * self.within[-1])
        category = self.liked[segment[:, None], rng.integers(_LIKED, size=shape)]
        return np.where(rng.random(shape) < 0.5, anything, rank * self.categories + category)

    def items_table(self, seed: int) -> pa.Table:
        """Ids and what the law and a reader know of items; the quality is not among it."""
        rng = np.random.default_rng([seed, 1])
        ids = np.arange(self.items)
        category = ids % self.categories
        tags = rng.integers(_TAGS, size=(self.items, 3))
        several = rng.integers(4, size=self.items)  # none to three
        return pa.table({
            "id": ids + 1, "title": [f"category {part:03d} · ad {item + 1:06d}" for item, part in enumerate(category)],
            "category": [f"category {part:03d}" for part in category],
            "advertiser": rng.integers(1, max(self.items // 20, 1) + 1, size=self.items),
            "price": self.price.round(2).astype(np.float32),
            "tags": ["|".join(f"t{tag}" for tag in row[:count]) for row, count in zip(tags, several, strict=True)]})

    def users_table(self, seed: int) -> pa.Table:
        """Ids and what is known of users: the segment, and what has nothing to do with clicks."""
        rng = np.random.default_rng([seed, 2])
        count = len(self.segment)
        age = rng.integers(16, 80, size=count)
        return pa.table({"id": np.arange(1, count + 1), "segment": [f"s{part:02d}" for part in self.segment],
                         "country": np.array(_COUNTRIES)[rng.integers(len(_COUNTRIES), size=count)].tolist(),
                         "age": pa.array(age, mask=rng.random(count) < 0.05)})
