"""Items that a user did not take, drawn without a loop over users."""

import numpy as np

from ..errors import InvalidData
from .config import NegativesConfig
from .histories import Histories

_ROUNDS = 30  # of drawing again what was refused; then what is left is drawn from all that may be


def draw_negatives(histories: Histories, rows: np.ndarray, config: NegativesConfig, counts: np.ndarray) -> np.ndarray:
    """Return dense items `(M, config.count)` int64 that are nowhere in the histories of `rows` `(M,)`.

    Each is drawn alone, so that one may come twice. The same arguments give the same items.

    Args:
        histories: all of whose events count, those to come too.
        rows: whose negatives, one row for each positive.
        config: how many and by what.
        counts: `(num_items,)`, the training events of each item; read where they are drawn by popularity.

    Raises:
        InvalidData: a user who has taken every item.
    """
    size = histories.num_items
    taken = _pairs(histories)
    _check_free(histories, taken, rows)
    rng = np.random.default_rng(config.seed)
    bounds = np.cumsum(counts + 1 if config.by == "popularity" else np.ones(size, dtype=np.int64))
    owners = np.repeat(rows, config.count)
    drawn = np.empty(len(owners), dtype=np.int64)
    open_ = np.arange(len(owners))
    for _ in range(_ROUNDS):
        drawn[open_] = np.searchsorted(bounds, rng.integers(bounds[-1], size=len(open_)), side="right")
        open_ = open_[_holds(taken, owners[open_] * size + drawn[open_])]
        if not len(open_):
            break
    weights = np.diff(bounds, prepend=0)
    for place in open_.tolist():  # few: users who have taken nearly all that is likely
        free = np.flatnonzero(~_holds(taken, owners[place] * size + np.arange(size)))
        ends = np.cumsum(weights[free])
        drawn[place] = free[np.searchsorted(ends, rng.integers(ends[-1]), side="right")]
    return drawn.reshape(len(rows), config.count)


def _pairs(histories: Histories) -> np.ndarray:
    """All pairs of a user and an item of theirs, each once, as ascending numbers `row * num_items + item`."""
    rows = np.repeat(np.arange(histories.num_users), histories.lengths.numpy())
    return np.unique(rows * histories.num_items + histories.fields["item"].numpy())


def _holds(pairs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each of `wanted` is among the ascending `pairs`."""
    return pairs[np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)] == wanted


def _check_free(histories: Histories, taken: np.ndarray, rows: np.ndarray) -> None:
    full = np.bincount(taken // histories.num_items, minlength=histories.num_users) == histories.num_items
    if full[rows].any():
        raise InvalidData(f"negatives: {int(full.sum())} users have taken all {histories.num_items} items, so that no "
                          "negative is left for them")
