"""Stochastic length: in training, a long history is read whole now and then, and thinned to a short one otherwise.

Attention costs the square of a length. With `N` the longest history and `alpha` from above 1 to 2, a history of `n`
events is read whole where `n` is at most `N^(alpha/2)`, and of a longer one

    all n events               with probability  N^alpha / n²
    floor(N^(alpha/2)) events  otherwise,

so its expected cost is below `2 N^alpha` whatever `n` is. Only training is thinned: the trained model reads all of it.

Source: section 3.2 of Jiaqi Zhai et al., "Actions Speak Louder than Words", ICML 2024 (arXiv 2402.17152).
"""

import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..jagged import EventBatch, JaggedTensor, offsets_from_lengths
from ..ops.dropout import BITS, mixed

Sampler = Literal["age", "uniform", "newest"]

_STREAM = 1  # tells these draws from the permutations of batches, which have the same seed and epoch


def thinned_length(longest: int, alpha: float) -> int:
    """Return to how many events a history is thinned, `floor(longest^(alpha/2))`: 776 for 4,096 events at 1.6."""
    return math.floor(longest ** (alpha / 2) * (1 + 1e-12))  # 1024^0.8 is 256, and not a little less


def whole_probability(lengths: np.ndarray, longest: int, alpha: float) -> np.ndarray:
    """Return with which probability histories of `lengths` `(M,)` are read whole, float64."""
    long = lengths > thinned_length(longest, alpha)
    return np.where(long, np.minimum(longest**alpha / np.maximum(lengths, 1.0) ** 2, 1.0), 1.0)


class StochasticLength:
    """What the examples of a training are shortened to: other draws each epoch, the same ones when it is run again.

    An example is an input of so many events, each with the event that came next as its target. Thinning leaves out
    inputs; what is asked after those that stay is what it was. The newest always stays.

    Args:
        lengths: `(M,)` integers, the events of each example; none above `longest`.
        longest: `N`, the most events that the model reads.
        alpha: above 1, at most 2, where nothing is thinned.
        seed: at least 0.
        sampler: how the events that stay are drawn, without replacement: "age" by weights `1 - f / Σ f` of the age `f`
            of each event of the row, in time where the batch has times and in places where not; "uniform", each alike;
            "newest" takes the newest.

    Raises:
        InvalidArgument: an argument out of its range.
    """

    def __init__(self, lengths: np.ndarray, longest: int, alpha: float, *, seed: int, sampler: Sampler = "age"):
        if not 1 < alpha <= 2:
            raise InvalidArgument("alpha", "a number above 1, at most 2", alpha)
        if sampler not in get_args(Sampler):
            raise InvalidArgument("sampler", " or ".join(get_args(Sampler)), repr(sampler))
        if seed < 0:
            raise InvalidArgument("seed", "at least 0", seed)
        if lengths.size and not 0 <= lengths.min() <= lengths.max() <= longest:
            raise InvalidArgument("lengths", f"0 … {longest}", f"{lengths.min()} … {lengths.max()}")
        self.seed = seed
        self.sampler = sampler
        self._lengths = lengths
        self._short = thinned_length(longest, alpha)
        self._whole = whole_probability(lengths, longest, alpha)
        self._draw = lru_cache(maxsize=1)(self._draw_epoch)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return how many events of each example are read in `epoch`, `(M,)` int64."""
        return self._draw(epoch)[0]

    def shorten(self, batch: EventBatch, epoch: int, index: np.ndarray | Tensor) -> EventBatch:
        """Return the batch of the examples `index` `(B,)`, whole, on the CPU, as it is read in `epoch`: order kept."""
        at = torch.as_tensor(index)
        lengths, keys = (torch.from_numpy(drawn)[at] for drawn in self._draw(epoch))
        if torch.equal(lengths, batch.lengths.long()):
            return batch
        offsets = offsets_from_lengths(lengths)
        stays = self._stays(batch, lengths, keys)
        longest = int(lengths.max())
        events = {name: JaggedTensor.trusted(batch[name].values[stays], offsets, longest) for name in batch}
        return EventBatch.trusted(events, dict(batch.context))

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Lengths in this epoch and 32 random bits, both `(M,)` int64: what an example draws is its own."""
        random = np.random.default_rng([self.seed, epoch, _STREAM])
        whole = random.random(len(self._lengths)) < self._whole
        lengths = np.where(whole, self._lengths, np.minimum(self._lengths, self._short)).astype(np.int64)
        return lengths, random.integers(BITS + 1, size=len(lengths))

    def _stays(self, batch: EventBatch, lengths: Tensor, keys: Tensor) -> Tensor:
        """Positions `(T',)` of the events that stay, ascending: the newest of each row and those whose turn is first.

        Each event waits for a time with an exponential distribution of its weight as the rate; who comes first is then
        as if events were drawn one after the other by their weights.
        """
        item = batch["item"]
        rows, offsets = item.row_index(), item.offsets.long()
        place = torch.arange(item.num_events) - offsets[rows]
        age = offsets[rows + 1] - offsets[rows] - 1 - place
        if self.sampler == "newest":
            return (age < lengths[rows]).nonzero().squeeze(1)
        uniform = (mixed(keys[rows] ^ mixed(place)) + 0.5) / (BITS + 1)
        turn = -uniform.double().log() / self._weights(batch, rows, age)
        turn[age == 0] = -1.0
        order = torch.from_numpy(np.lexsort((turn.numpy(), rows.numpy())))  # rows stay where they are
        return order[place < lengths[rows]].sort().values

    def _weights(self, batch: EventBatch, rows: Tensor, age: Tensor) -> Tensor:
        """`(T,)` float64: how likely each event is drawn before the others."""
        if self.sampler == "uniform":
            return torch.ones(len(age), dtype=torch.float64)
        if "time" in batch.events:
            time = batch["time"].values
            age = time[batch.offsets.long()[rows + 1] - 1] - time
        sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, rows, age.double())
        return 1 - age / sums[rows].clamp(min=1)  # events of one moment, of age 0, weigh alike
