"""From examples to batches: packing by a budget of events, gathering without a loop over rows."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..jagged import EventBatch, JaggedTensor, offsets_from_lengths
from .histories import Histories
from .split import Examples
from .times import asked_times, seconds


class TokenBatches:
    """Batches of at most so many events, the same for the same (seed, epoch), resumable at any batch.

    An epoch is a permutation of the examples (their own order without `shuffle`), cut greedily: a batch takes
    examples until the next one would exceed `tokens_per_batch`; a longer example is a batch of its own.
    Every example is in exactly one batch of an epoch. With `shuffle` the rows of a batch stand in order of length.

    Args:
        lengths: `(M,)` integers, the events that each example puts into a batch (after truncation).
        tokens_per_batch: the budget, at least 1.
        seed: seed of the permutations, at least 0.
        shuffle: whether to permute; False keeps the order of the examples.
        drawn: the lengths `(M,)` of an epoch, where they differ from epoch to epoch; `lengths` are the most then.

    Raises:
        InvalidArgument: lengths of another shape or negative, a budget below 1, a negative seed.
    """

    def __init__(self, lengths: np.ndarray | Tensor, tokens_per_batch: int, seed: int, shuffle: bool = True,
                 drawn: Callable[[int], np.ndarray] | None = None):
        self.lengths = np.asarray(lengths)
        if self.lengths.ndim != 1 or (self.lengths.size and self.lengths.min() < 0):
            raise InvalidArgument("lengths", "shape (M,), none negative", f"shape {self.lengths.shape}")
        if tokens_per_batch < 1:
            raise InvalidArgument("tokens_per_batch", "at least 1", tokens_per_batch)
        if seed < 0:
            raise InvalidArgument("seed", "at least 0", seed)
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.shuffle = shuffle
        self._drawn = drawn
        self._plan = lru_cache(maxsize=1)(self._make_plan)

    def lengths_in(self, epoch: int) -> np.ndarray:
        """Return the events `(M,)` that each example puts into its batch of `epoch`."""
        return self.lengths if self._drawn is None else self._drawn(epoch)

    def num_batches(self, epoch: int) -> int:
        """Return how many batches `epoch` has (it may differ between epochs)."""
        return len(self._plan(epoch)[1]) - 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (batch number, indices of examples `(B,)` int64) of `epoch`, from batch number `start` on."""
        order, cuts = self._plan(epoch)
        lengths = self.lengths_in(epoch)
        for number in range(start, len(cuts) - 1):
            index = order[cuts[number] : cuts[number + 1]]
            if self.shuffle:  # who meets is random, how they stand is not: kernels like equal lengths side by side
                index = index[np.argsort(lengths[index], kind="stable")]
            yield number, index

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        count = len(self.lengths)
        order = np.arange(count)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
        ends = np.cumsum(self.lengths_in(epoch)[order], dtype=np.int64)  # events up to and with each example
        cuts = [0]
        while cuts[-1] < count:
            before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
            fitting = int(np.searchsorted(ends, before + self.tokens_per_batch, side="right"))
            cuts.append(max(fitting, cuts[-1] + 1))
        return order, cuts


def chunks(lengths: "np.ndarray | Tensor", most_events: int, most_rows: int | None = None) -> Iterator[Tensor]:
    """Yield all examples in their own order as indices `(B,)` int64: at most so many events and rows at a time.

    `lengths` `(M,)` are the events of each example; one longer than `most_events` is a chunk of its own.
    """
    for _, index in TokenBatches(lengths, most_events, seed=0, shuffle=False).epoch(0):
        yield from torch.from_numpy(index).split(most_rows or len(index))


def shard(index: np.ndarray, lengths: np.ndarray | Tensor, rank: int, world: int) -> np.ndarray:
    """Return the contiguous part of a batch's `index` `(B,)` for `rank` of `world`, balanced by events.

    The parts of all ranks together are `index`, in order; with fewer rows than ranks some parts are empty.
    `lengths` `(M,)` are those of all examples, as `TokenBatches` got them.
    """
    if not 0 <= rank < world:
        raise InvalidArgument("rank", f"0 … {world - 1}", rank)
    ends = np.concatenate([[0], np.cumsum(np.asarray(lengths)[index], dtype=np.int64)])
    middles = (ends[:-1] + ends[1:]) / 2  # a row goes to the rank in whose share of the events its middle lies
    first, last = (np.searchsorted(middles, ends[-1] * edge / world) for edge in (rank, rank + 1))
    first, last = (0 if rank == 0 else first), (len(index) if rank == world - 1 else last)
    return index[first:last]


def training_batch(histories: Histories, examples: Examples, index: np.ndarray | Tensor,
                   max_length: int | None) -> EventBatch:
    """Gather the examples `index` `(B,)` for next-event training.

    A history of n events gives n - 1 of them: `item` is every event but the newest, `target` (int64) the
    event after each; the newest `max_length` are kept (None: all). Fewer than two events give an empty row.
    `weight` (float32, where the log has it) is that of the target; features are those of the input. Where the log has
    times, `time` is that of the input and `asked` that of the target, both int64 in seconds.
    """
    rows, ends = _chosen(examples, index)
    lengths = (ends - 1).clamp(0, max_length)
    positions, offsets, longest = _newest(histories, rows, ends - 1, lengths)
    events = _inputs(histories, positions, offsets, longest)
    _add_times(events, histories, rows, ends - 1)
    target = histories.fields["item"][positions + 1].long()
    events["target"] = JaggedTensor.trusted(target, offsets, longest)
    if "weight" in histories.fields:
        events["weight"] = JaggedTensor.trusted(histories.fields["weight"][positions + 1], offsets, longest)
    return EventBatch(events, {"user": rows})


def history_batch(histories: Histories, examples: Examples, index: np.ndarray | Tensor,
                  max_length: int | None) -> EventBatch:
    """Gather the examples `index` `(B,)` for scoring: the newest `max_length` events of each (None: all).

    Where the log has times, `time` is that of each event and `asked` that of the event after it, both int64 in seconds:
    the newest is asked when the first of the events to predict happened, or at its own time where none is to come.
    Context: `user` `(B,)` int64 and `truth`, a `JaggedTensor` (int64) of all dense items to predict.
    """
    rows, ends = _chosen(examples, index)
    positions, offsets, longest = _newest(histories, rows, ends, ends.clamp(0, max_length))
    truth_ends = torch.from_numpy(examples.truth_ends)[torch.as_tensor(index)]
    truth_at, truth_offsets, truth_longest = _newest(histories, rows, truth_ends, truth_ends - ends)
    truth = JaggedTensor.trusted(histories.fields["item"][truth_at].long(), truth_offsets, truth_longest)
    events = _inputs(histories, positions, offsets, longest)
    _add_times(events, histories, rows, ends)
    return EventBatch(events, {"user": rows, "truth": truth})


def with_user_keys(batch: EventBatch, keys: Tensor) -> EventBatch:
    """Return `batch` with the context `user_key` `(B,)` int64: the entry of `keys` `(num_users,)` for each `user`."""
    users = batch.context["user"]
    assert isinstance(users, Tensor)
    return EventBatch.trusted(dict(batch.events), {**batch.context, "user_key": keys[users]})


def seen_items(histories: Histories, examples: Examples, index: np.ndarray | Tensor) -> JaggedTensor:
    """Return all items of the histories of `index` `(B,)`, not truncated, dense ids (int64), repeats too."""
    rows, ends = _chosen(examples, index)
    positions, offsets, longest = _newest(histories, rows, ends, ends)
    return JaggedTensor.trusted(histories.fields["item"][positions].long(), offsets, longest)


def _chosen(examples: Examples, index: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    at = torch.as_tensor(index)
    return torch.from_numpy(examples.rows)[at], torch.from_numpy(examples.ends)[at]


def _newest(histories: Histories, rows: Tensor, ends: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
    """Positions `(T,)` of the `lengths` events before event `ends` of each row, their offsets, longest."""
    return runs(histories.offsets[rows] + ends - lengths, lengths)


def runs(firsts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return positions `(T,)` int64 of runs end to end, `firsts` … `firsts + lengths - 1` each, offsets, longest.

    `firsts` and `lengths` are `(B,)` int64.
    """
    offsets = offsets_from_lengths(lengths)
    total = int(offsets[-1])
    positions = torch.repeat_interleave(firsts - offsets[:-1], lengths, output_size=total) + torch.arange(total)
    return positions, offsets, int(lengths.max()) if len(lengths) else 0


def _inputs(histories: Histories, positions: Tensor, offsets: Tensor,
            longest: int) -> dict[str, JaggedTensor]:
    fields = {name: values[positions] for name, values in histories.fields.items() if name != "weight"}
    fields["item"] = fields["item"].long()
    return {name: JaggedTensor.trusted(values, offsets, longest) for name, values in fields.items()}


def _add_times(events: dict[str, JaggedTensor], histories: Histories, rows: Tensor, ends: Tensor) -> None:
    """Turn the field `time` into seconds and add `asked`: the newest event of each row is asked at event `ends`."""
    if not histories.has_time:
        return
    ticks, times = histories.ticks_per_second, histories.fields["time"]
    last = (histories.offsets[rows + 1] - 1).minimum(histories.offsets[rows] + ends.clamp(min=0))
    events["time"] = events["time"].with_values(seconds(events["time"].values, ticks))
    events["asked"] = asked_times(events["time"], seconds(times[last], ticks))
