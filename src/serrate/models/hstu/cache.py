"""Histories that HSTU layers have been through, kept: what comes behind them is computed without them (M-FALCON).

A cache is a value, given and returned, and nothing is kept anywhere else. It is an `EventBatch` of `B` histories, so
what edits and moves batches does so with caches: `gather_rows` picks users, `split_events` forgets their newest events,
`to` moves them. Its fields, `T` events of all histories together:

    time       (T,)        int64, when the events happened; 0 where the layers have no table of times
    keys.l     (T, H, D)   of layer l, from 0 on, in the dtype that the layers compute in
    values.l   (T, H, Dv)

Under a causal mask no event sees what comes after it, so this is all that later events need, and it holds for any first
part of a history too. Everything here takes events after their embedding, which is the model's; no gradients.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument
from ...jagged import EventBatch, JaggedTensor
from ...jagged.edit import take_events
from ...jagged.tensor import longest_row
from ...nn import HSTULayer
from ...ops.attention import Mask, attention

MICROBATCH = 1024  # candidates of a user that go through a layer together

Layers = Iterable[nn.Module]  # that are `HSTULayer`s


@torch.no_grad()
def encode_events(layers: Layers, x: JaggedTensor, past: EventBatch | None = None, *,
                  query_times: Tensor | None = None,
                  key_times: Tensor | None = None) -> tuple[JaggedTensor, EventBatch]:
    """Return events after the layers, values `(T, E)`, and the cache of their histories.

    With `past` the events come behind histories that are cached, and the result is what these events would be in whole
    histories; the new cache is that of the whole ones, a copy. What the model adds to events before the layers must not
    depend on what comes after them: learned positions have to be counted from the oldest event.

    Args:
        layers: in evaluation mode.
        x: the embedded events, values `(T, E)`; rows may be empty.
        past: the cache of as many histories as `x` has rows; None: there is nothing before these events.
        query_times: `(T,)` as in `HSTULayer`. What the newest event of a cached history was asked at stays: where that
            was not the time of the event that followed, forget it first and give it again.
        key_times: `(T,)`: when each event happened.

    Raises:
        InvalidArgument: layers in training, or with the normaliser "length" and a past, whose events it would change; a
            cache of other layers, rows, device or dtype; missing times.
    """
    stack = _ready(layers)
    times = x.values.new_zeros(x.num_events, dtype=torch.int64) if key_times is None else key_times.long()
    joined = None if past is None else _Joined(past, x)
    if past is not None:
        _check_cache(stack, past, x)
        if any(layer.options.normaliser == "length" for layer in stack):
            raise InvalidArgument("past", "None with normaliser 'length', which changes what earlier events attend to",
                                  f"a cache of {past.num_events} events")
    rows = x if joined is None else joined.rows
    events = {"time": rows.with_values(times if joined is None else joined.values("time", times))}
    asked = key_times if query_times is None else query_times
    happened = None if key_times is None else events["time"].values
    for number, layer in enumerate(stack):
        gate, v, q, k = layer.project(x.values)
        if joined is not None:
            k, v = joined.values(f"keys.{number}", k), joined.values(f"values.{number}", v)
        events[f"keys.{number}"], events[f"values.{number}"] = rows.with_values(k), rows.with_values(v)
        attended = attention(q, k, v, x.offsets.to(rows.offsets.dtype),
                             kv_offsets=None if joined is None else rows.offsets, mask=Mask(causal=True),
                             weights=layer.weights(x.device), bias=layer.bias(asked, happened),
                             scale=layer.options.scale, longest=_longest(x, rows))
        x = x.with_values(layer.finish(x.values, attended, gate))
    return x, EventBatch.trusted(events, {})


@torch.no_grad()
def encode_candidates(layers: Layers, cache: EventBatch, x: JaggedTensor, *, asked: Tensor | None = None,
                      microbatch: int = MICROBATCH) -> JaggedTensor:
    """Return candidates after the layers, values `(M, E)`, the rows of `x`: each as the event behind its history.

    A candidate sees the history and itself and no other candidate; all stand where the history ends and are asked for
    at the same time. So the result is that of each candidate alone, in any order and with any `microbatch`. With the
    normaliser "length" a history's events count, and not the candidate behind it: as with `Mask(targets=1)`.

    A microbatch of b candidates a row costs b times the keys of the history. For it the keys and values of one layer
    are copied once, with room for a microbatch behind each history, and each microbatch is written there in turn. One
    whose longest row is not known on the host, or not below `microbatch`, has its lengths read there once.

    Args:
        layers: in evaluation mode.
        cache: of the histories, from `encode_events`; it is left as it is.
        x: the embedded candidates of each history, values `(M, E)`; rows may be empty.
        asked: `(B,)` int32 or int64: the time of the request, which is also when its candidates happen; read by a table
            of times.
        microbatch: candidates of a row that are computed together; more take more memory.

    Raises:
        InvalidArgument: layers in training, a cache of other layers, rows, device or dtype, times missing where they
            are needed, a microbatch below 1.

    Source: M-FALCON of Jiaqi Zhai et al., "Actions Speak Louder than Words", ICML 2024 (arXiv 2402.17152).
    """
    stack = _ready(layers)
    _check_cache(stack, cache, x)
    _check_asked(stack, cache, asked)
    if microbatch < 1:
        raise InvalidArgument("microbatch", "1 or more", microbatch)
    parts = list(_microbatches(x, microbatch))
    room = _Joined(cache, parts[0])  # no microbatch of a row has more candidates than its first
    mask = Mask(causal=True, targets=parts[0].lengths)
    slots = [room.last(part) for part in parts]
    times, happened = [None] * len(parts), None
    if asked is not None:
        times = [asked.long().repeat_interleave(part.lengths, output_size=part.num_events) for part in parts]
        happened = room.values("time", times[0])
    values = x.values.clone()
    for number, layer in enumerate(stack):
        keys, others = None, None
        for part, slot, time in zip(parts, slots, times, strict=True):
            own = values[part.values]
            gate, v, q, k = layer.project(own)
            if keys is None or others is None:  # the first fills the room
                keys, others = room.values(f"keys.{number}", k), room.values(f"values.{number}", v)
            else:
                keys.index_copy_(0, slot, k)
                others.index_copy_(0, slot, v)
            attended = attention(q, keys, others, part.offsets.to(room.rows.offsets.dtype),
                                 kv_offsets=room.rows.offsets, mask=mask, weights=layer.weights(x.device),
                                 bias=layer.bias(time, happened), scale=layer.options.scale,
                                 longest=_longest(part, room.rows))
            values.index_copy_(0, part.values, layer.finish(own, attended, gate))
    return x.with_values(values)


class _Joined:
    """Rows of a cache, each with the events of a row of `new` behind it.

    rows: of these, without values of their own.
    """

    def __init__(self, past: EventBatch, new: JaggedTensor):
        offsets = past.offsets.long() + new.offsets
        bound = None if past.longest is None or new.longest is None else past.longest + new.longest
        self._past = past
        self._at = _moved(past, new.offsets[:-1]), _moved(new, past.offsets[1:])
        places = offsets.new_empty(past.num_events + new.num_events)
        self.rows = JaggedTensor.trusted(places, offsets, longest_row(offsets, bound))

    def values(self, name: str, new: Tensor) -> Tensor:
        """Return a field of the cache and, behind each row of it, those `new` ones."""
        old = self._past[name].values
        if old.dtype != new.dtype or old.shape[1:] != new.shape[1:]:
            expected, got = (f"events {tuple(part.shape[1:])} {part.dtype}" for part in (new, old))
            raise InvalidArgument("cache", f"{name}: {expected}, as the layers make them now", got)
        if len(self.rows) == 1:  # one user: a plain copy takes half the time on a CPU
            return torch.cat([old, new])
        both = old.new_empty((len(self.rows.values), *old.shape[1:]))
        for at, part in zip(self._at, (old, new), strict=True):
            both.index_copy_(0, at, part)
        return both

    def last(self, x: JaggedTensor) -> Tensor:
        """Return the places of the last events of each joined row, as many as a row of `x` has, `(T,)`."""
        return _moved(x, self.rows.offsets[1:] - x.offsets[1:])


def _moved(x: EventBatch | JaggedTensor, by: Tensor) -> Tensor:
    """`(T,)` int64: where each event comes to stand when its row moves on `by` `(B,)` places."""
    place = torch.arange(x.num_events, device=x.device)
    return place + by.repeat_interleave(x.lengths, output_size=x.num_events)


def _microbatches(x: JaggedTensor, size: int) -> Iterator[JaggedTensor]:
    """Yield the places in `x` of up to `size` events of each row, then of as many that follow, …; at least once."""
    places = x.with_values(torch.arange(x.num_events, device=x.device))
    if x.longest is not None and x.longest <= size:
        yield places
        return
    lengths = x.lengths.cpu()
    for first in range(0, max(1, int(lengths.amax()) if len(lengths) else 0), size):
        count = int((lengths - first).clamp(0, size).sum())
        yield take_events(places, x.offsets[:-1] + first, (x.lengths - first).clamp(0, size), count, bound=size)


def _longest(queries: JaggedTensor, keys: JaggedTensor) -> tuple[int, int] | None:
    return None if queries.longest is None or keys.longest is None else (queries.longest, keys.longest)


def _ready(layers: Layers) -> list[HSTULayer]:
    """Return layers that may be used here, as a list."""
    stack = []
    for layer in layers:
        if not isinstance(layer, HSTULayer) or layer.training:
            got = "in training" if isinstance(layer, HSTULayer) else type(layer).__name__
            raise InvalidArgument("layers", "HSTULayers in evaluation mode, as eval() sets it", got)
        stack.append(layer)
    return stack


def _check_cache(stack: list[HSTULayer], cache: EventBatch, x: JaggedTensor) -> None:
    names = {"time", *(f"{part}.{number}" for part in ("keys", "values") for number in range(len(stack)))}
    if set(cache) != names:
        raise InvalidArgument("cache", f"time, and keys and values of {len(stack)} layers", ", ".join(cache))
    if cache.offsets.shape != x.offsets.shape:
        raise InvalidArgument("cache", f"{len(x)} rows, as what comes behind them", len(cache))
    if cache.device != x.device:
        raise InvalidArgument("cache", f"on {x.device}, as what comes behind it", cache.device)


def _check_asked(stack: list[HSTULayer], cache: EventBatch, asked: Tensor | None) -> None:
    if asked is None:
        if any(layer.time_bias is not None for layer in stack):
            raise InvalidArgument("asked", "the time of each request, as the layers have a table of times", None)
    elif asked.shape != (len(cache),) or asked.dtype not in (torch.int32, torch.int64):
        raise InvalidArgument("asked", f"shape ({len(cache)},), dtype int32 or int64",
                              f"{tuple(asked.shape)} {asked.dtype}")
