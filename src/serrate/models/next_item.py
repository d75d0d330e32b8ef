"""What the models of the next item share: how items enter, and how they leave as scores of all items."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..jagged import EventBatch, JaggedTensor
from ..nn import ages
from .encoder import EncoderConfig


class NextItemConfig(EncoderConfig):
    """What every model of the next item has; widths in channels, lengths in events."""

    similarity: Literal["dot", "cosine"] = "cosine"


class NextItemModel(nn.Module):
    """Model over dense item ids `0 … num_items - 1` whose output layer is the item table (tied).

    A model is its `forward`: a batch becomes the query vector after each event, by which every item is scored.

    Args:
        config: the config of the model.
        num_items: `V`, the size of the catalogue.
    """

    def __init__(self, config: NextItemConfig, num_items: int):
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.items = nn.Embedding(num_items, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: EventBatch) -> JaggedTensor:
        """Return the query vector after each event: values `(T, E)`, the rows of `batch`.

        Rows may be at most `max_length` events long; older events are the caller's to cut.
        """
        raise NotImplementedError

    def embed(self, batch: EventBatch) -> JaggedTensor:
        """Return `dropout(√E · item + position)` of each event, values `(T, E)`; positions count from the newest."""
        items = batch["item"]
        x = self.items(items.values) * self.config.width**0.5 + self.positions(ages(items))
        return items.with_values(self.dropout(x))

    def query(self, hidden: JaggedTensor) -> JaggedTensor:
        """Return what items are multiplied with, values `(T, E)`: of length 1 where similarity is the cosine."""
        return hidden.with_values(F.normalize(hidden.values, dim=-1)) if self._cosine else hidden

    def item_table(self) -> Tensor:
        """`(V, E)` the item vectors that queries are multiplied with."""
        table = self.items.weight
        return F.normalize(table, dim=-1) if self._cosine else table

    @property
    def _cosine(self) -> bool:
        return self.config.similarity == "cosine"

    def newest(self, batch: EventBatch) -> Tensor:
        """`(B, E)` the query vector after each row's newest event; zeros for a row without events."""
        hidden = self(batch)
        if hidden.num_events == 0:
            return hidden.values.new_zeros(len(batch), self.config.width)
        last = (hidden.offsets[1:] - 1).clamp(min=0)
        return hidden.values[last] * (hidden.lengths > 0)[:, None]

    def score(self, batch: EventBatch) -> Tensor:
        """`(B, V)` float32: the score of every item as the next event of each row.

        The product is float32 also under autocast: scores rounded to half precision would tie.
        """
        query = self.newest(batch).float()
        with torch.autocast(query.device.type, enabled=False):
            return query @ self.item_table().float().T
