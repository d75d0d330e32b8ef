"""SASRec-family jagged transformer: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.

Read top to bottom: item and position tables → pre-norm blocks → norm → similarity with the item table.
Departures from the paper: pre-norm blocks with GELU, positions counted from the newest event, no padding anywhere.
"""

from torch import nn

from ...jagged import EventBatch, JaggedTensor
from ...nn import TransformerBlock
from ..next_item import NextItemModel
from .config import TransformerConfig


class Transformer(NextItemModel):
    """Next-item model over dense item ids `0 … num_items - 1`; the output layer is the item table (tied).

    Args:
        config: see `TransformerConfig`.
        num_items: `V`, the size of the catalogue.
    """

    def __init__(self, config: TransformerConfig, num_items: int):
        super().__init__(config, num_items)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, config.feedforward, config.dropout)
            for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        for part in (self.items, self.positions, self.blocks):  # the similarity has a start of its own
            part.apply(_initialise)

    def forward(self, batch: EventBatch) -> JaggedTensor:
        """Return the output after each event: values `(T, E)`, the rows of `batch`.

        Rows may be at most `max_length` events long; older events are the caller's to cut.
        """
        x = self.embed(batch)
        for block in self.blocks:
            x = block(x)
        return x.with_values(self.norm(x.values))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
