"""How long rows are, and what padding them would cost."""

from typing import Any

import numpy as np

from ..data import TokenBatches


def histogram(lengths: np.ndarray) -> dict[str, Any]:
    """Return the histogram of `lengths` `(B,)` in powers of two, their mean and the longest, for metrics.json."""
    bins = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = [{"from": 2**b, "to": 2 ** (b + 1) - 1, "users": int(count)} for b, count in enumerate(np.bincount(bins))]
    return {"histogram": counts, "mean": float(lengths.mean()), "longest": int(lengths.max())}


def padding_avoided(batches: TokenBatches, rows: tuple[np.ndarray, ...] | None = None) -> float:
    """Return the share of the cells that padding each batch of epoch 0 to its longest row would add, 0 … 1.

    `rows` are the lengths of what a batch holds of each example, `(M,)` each, padded each to a longest row of its own:
    several histories, candidates. None: those that `batches` count.
    """
    every = (batches.lengths_in(0),) if rows is None else rows
    cells = sum(int(lengths[index].max()) * len(index) for _, index in batches.epoch(0) for lengths in every)
    return 1 - sum(int(lengths.sum()) for lengths in every) / cells if cells else 0.0
