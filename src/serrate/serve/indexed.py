"""A saved run beside an index over its items: built, opened, searched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import models
from ..index import Index, kind_named, load_index, top_k
from ..jagged import EventBatch, JaggedTensor, gather_rows


def build_index(model: models.NextItemModel, kind: str, config: Mapping[str, Any] | None = None) -> Index:
    """Return an index over all items of a model in evaluation mode, by their dense ids.

    Raises:
        InvalidArgument: no such kind, or one that cannot serve the model's similarity.
        InvalidConfig: an unknown setting of the kind or a wrong value.
    """
    with torch.no_grad():
        return kind_named(kind).build(model.similarity, model.item_sides(), config=config)


def open_index(path: Path | str, model: models.NextItemModel) -> Index:
    """Open an index that was built over the items of this model, on its device; see `index.load_index`."""
    return load_index(path, model.similarity, model=model, device=next(model.parameters()).device)


def search_index(index: Index, model: models.NextItemModel, batch: EventBatch, k: int, *,
                 exclude: JaggedTensor | None, allow: Tensor | None, deny: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `(scores, ids)`, both `(B, k)` on the CPU, as `model.score` and `index.top_k` would; see `Index.search`.

    To a row without events all items score 0: it gets those with the smallest dense ids, the most frequent ones.
    """
    found = index.search(model.query_sides(batch), k, exclude=exclude, allow=allow, deny=deny)
    scores, ids = found.scores.cpu(), found.ids.cpu()
    empty = (batch.lengths == 0).nonzero()[:, 0].cpu()
    if len(empty):
        there = index.ids.cpu()
        alike = torch.zeros(len(empty), model.num_items)
        scores[empty], ids[empty] = top_k(alike, k, exclude=None if exclude is None else gather_rows(exclude, empty),
                                          allow=there if allow is None else there[torch.isin(there, allow)], deny=deny)
    return scores, ids
