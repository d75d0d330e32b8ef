"""SASRec-family jagged transformer: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.

Read top to bottom: item and position tables → pre-norm blocks → norm → dot product with the item table.
Departures from the paper: pre-norm blocks with GELU, positions counted from the newest event, no padding anywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...jagged import EventBatch, JaggedTensor
from ...nn import TransformerBlock, ages
from .config import TransformerConfig


class Transformer(nn.Module):
    """Next-item model over dense item ids `0 … num_items - 1`; the output layer is the item table (tied).

    Args:
        config: see `TransformerConfig`.
        num_items: `V`, the size of the catalogue.
    """

    def __init__(self, config: TransformerConfig, num_items: int):
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.items = nn.Embedding(num_items, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, config.feedforward, config.dropout)
            for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.apply(_initialise)

    def forward(self, batch: EventBatch) -> JaggedTensor:
        """Return the query vector after each event: values `(T, E)`, the rows of `batch`.

        Rows may be at most `max_length` events long; older events are the caller's to cut.
        """
        items = batch["item"]
        x = self.items(items.values) * self.config.width**0.5 + self.positions(ages(items))
        x = items.with_values(self.dropout(x))
        for block in self.blocks:
            x = block(x)
        hidden = self.norm(x.values)
        return x.with_values(F.normalize(hidden, dim=-1) if self.config.similarity == "cosine" else hidden)

    def item_table(self) -> Tensor:
        """`(V, E)` the item vectors that queries are multiplied with."""
        table = self.items.weight
        return F.normalize(table, dim=-1) if self.config.similarity == "cosine" else table

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


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
