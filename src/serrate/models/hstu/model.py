"""HSTU for the next item: Zhai et al., "Actions Speak Louder than Words", ICML 2024 (arXiv 2402.17152).

Read top to bottom: item and position tables → HSTU layers, which know distances in position and in time →
similarity with the item table.
"""

from torch import Tensor, nn

from ...errors import InvalidArgument
from ...jagged import EventBatch, JaggedTensor
from ...nn import HSTULayer
from ..next_item import NextItemModel
from .config import HSTUConfig


class HSTU(NextItemModel):
    """Next-item model over dense item ids `0 … num_items - 1`; the output layer is the item table (tied).

    Args:
        config: see `HSTUConfig`.
        num_items: `V`, the size of the catalogue.
    """

    def __init__(self, config: HSTUConfig, num_items: int):
        super().__init__(config, num_items)
        for table in (self.items, self.positions):
            nn.init.trunc_normal_(table.weight, std=0.02)
        self.layers = nn.ModuleList(HSTULayer(config.width, config.heads, config.layer) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width) if config.similarity != "cosine" else nn.Identity()

    def forward(self, batch: EventBatch) -> JaggedTensor:
        """Return the output after each event: values `(T, E)`, the rows of `batch`.

        Rows may be at most `max_length` events long; older events are the caller's to cut. With `config.time` the batch
        has the fields `time` and `asked`, int64 in seconds: when each event happened, and when what comes after it is
        asked for.

        Raises:
            InvalidArgument: a batch without these fields.
        """
        asked, happened = self._times(batch)
        x = self.embed(batch)
        for layer in self.layers:
            x = layer(x, query_times=asked, key_times=happened)
        return x.with_values(self.norm(x.values))

    def _times(self, batch: EventBatch) -> tuple[Tensor | None, Tensor | None]:
        if not self.config.reads_time:
            return None, None
        for name in ("time", "asked"):
            if name not in batch.events:
                raise InvalidArgument("batch", f"a field {name!r}, which model.time reads", ", ".join(batch))
        return batch["asked"].values, batch["time"].values
