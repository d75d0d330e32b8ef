"""Ranking of many candidates after histories that are read once: encode, extend as events come, score.

The cache of a history is a value that the caller keeps, see `cache.py`: two tokens an event. The ranking model has no
learned input positions, so the keys of a token stay right when its history grows. The model of the next item counts
positions from the newest event: each new event moves all of them and leaves nothing of a cache right. It is refused.
"""

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...jagged import EventBatch, JaggedTensor
from .cache import MICROBATCH, encode_candidates, encode_events
from .ranking import HSTURanker


@torch.no_grad()
def encode_history(model: HSTURanker, batch: EventBatch, past: EventBatch | None = None) -> EventBatch:
    """Return the cache of `B` histories; with `past` of the histories that are cached there, grown by these events.

    A history that grew is cached as if it had been read whole, up to rounding.

    Args:
        model: in evaluation mode.
        batch: the events, actions included, with the fields that `model` reads; rows may be empty.
        past: the cache of as many histories, of which `batch` has the events that came since, oldest first. It is
            copied and stays as it is.

    Raises:
        InvalidArgument: another model, one in training or with the normaliser "length" and a past; a field that is
            missing; a cache of another model or of other rows; histories that grow beyond the model's `max_length`,
            which it would read without their oldest events: encode those anew. On an accelerator their lengths are
            looked at only where the bounds on both parts do not show that they fit.
    """
    _check(model)
    tokens, times = model.tokens(batch), model.times(batch)
    _, cache = encode_events(model.layers, tokens, past, key_times=None if times is None else times.values)
    if past is not None:
        _check_lengths(model, cache)
    return cache


@torch.no_grad()
def score_candidates(model: HSTURanker, cache: EventBatch, candidates: JaggedTensor, *, asked: Tensor | None = None,
                     microbatch: int = MICROBATCH) -> JaggedTensor:
    """Return what would be done with each candidate after the history of its row: values `(M, K)` float32.

    The same as `HSTURanker.score` up to rounding, for any `microbatch`, without reading the histories again.

    Args:
        model: in evaluation mode.
        cache: of `B` histories, from `encode_history`.
        candidates: values `(M,)` int64, dense item ids, in `B` rows.
        asked: `(B,)` int32 or int64 in seconds, when they are shown; read with `config.time` only.
        microbatch: candidates of a row that go through the layers together, see `encode_candidates`.

    Raises:
        InvalidArgument: another model or one in training; a cache of another model or of other rows; times that are
            missing; a `microbatch` below 1.
    """
    _check(model)
    asked = asked if model.config.reads_time else None
    hidden = encode_candidates(model.layers, cache, model.shown(candidates), asked=asked, microbatch=microbatch)
    return candidates.with_values(model.predictions(model.outputs(hidden.values)))


def _check(model: HSTURanker) -> None:
    if not isinstance(model, HSTURanker) or model.training:
        got = "in training" if isinstance(model, HSTURanker) else type(model).__name__
        raise InvalidArgument("model", "an HSTURanker in evaluation mode, as eval() sets it", got)


def _check_lengths(model: HSTURanker, cache: EventBatch) -> None:
    most, longest = model.config.tokens, cache.longest
    if longest is None or longest > most:  # of a bound perhaps
        longest = int(cache.lengths.amax()) if len(cache) else 0
    if longest > most:
        raise InvalidArgument("past", f"histories of at most {most // 2} events together with those of batch",
                              longest // 2)
