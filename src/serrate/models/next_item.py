"""What the models of the next item share: how items enter, and how they leave as scores of all items."""

import torch
from torch import Tensor, nn

from ..jagged import EventBatch, JaggedTensor
from ..nn import Sides, ages
from .encoder import EncoderConfig
from .similarity import MixtureOfLogitsConfig, SimilarityConfig, build_similarity


class NextItemConfig(EncoderConfig):
    """What every model of the next item has; widths in channels, lengths in events."""

    similarity: SimilarityConfig = "cosine"

    @property
    def reads_users(self) -> bool:
        """Whether the model can make use of users' keys in a batch."""
        return isinstance(self.similarity, MixtureOfLogitsConfig) and self.similarity.user_buckets > 0


class NextItemModel(nn.Module):
    """Model over dense item ids `0 … num_items - 1` whose output layer is the item table (tied).

    A model is its `forward`: a batch becomes an output after each event, and its `similarity`, which scores every item
    by that output. Another `nn.Similarity` may take the place of the one that the configuration names.

    Args:
        config: the config of the model.
        num_items: `V`, the size of the catalogue.

    Attributes:
        similarity: of outputs and item vectors.
    """

    def __init__(self, config: NextItemConfig, num_items: int):
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.items = nn.Embedding(num_items, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.similarity = build_similarity(config.similarity, config.width)

    def forward(self, batch: EventBatch) -> JaggedTensor:
        """Return the output after each event: values `(T, E)`, the rows of `batch`.

        Rows may be at most `max_length` events long; older events are the caller's to cut.
        """
        raise NotImplementedError

    def embed(self, batch: EventBatch) -> JaggedTensor:
        """Return `dropout(√E · item + position)` of each event, values `(T, E)`; positions count from the newest."""
        items = batch["item"]
        x = self.items(items.values) * self.config.width**0.5 + self.positions(ages(items))
        return items.with_values(self.dropout(x))

    def newest(self, batch: EventBatch) -> Tensor:
        """`(B, E)` the output after each row's newest event; zeros for a row without events."""
        hidden = self(batch)
        if hidden.num_events == 0:
            return hidden.values.new_zeros(len(batch), self.config.width)
        last = (hidden.offsets[1:] - 1).clamp(min=0)
        return hidden.values[last] * (hidden.lengths > 0)[:, None]

    def users(self, batch: EventBatch) -> Tensor | None:
        """`(B,)` int64: the keys of the users where the model reads them and `batch` has the context `user_key`."""
        users = batch.context.get("user_key") if self.config.reads_users else None
        return users if isinstance(users, Tensor) else None

    def query_sides(self, batch: EventBatch) -> Sides:
        """Return what the similarity makes of each row's newest output, every part `(B, …)`, float32 at least."""
        hidden = _wide(self.newest(batch))
        with torch.autocast(hidden.device.type, enabled=False):
            return self.similarity.queries(hidden, self.users(batch))

    def item_sides(self) -> Sides:
        """Return what the similarity makes of all items, every part `(V, …)`, float32 at least."""
        table = _wide(self.items.weight)
        with torch.autocast(table.device.type, enabled=False):
            return self.similarity.items(table)

    def score(self, batch: EventBatch, items: Sides | None = None) -> Tensor:
        """`(B, V)` float32: the score of every item as the next event of each row; 0 for a row without events.

        It is computed in float32 also under autocast: scores rounded to half precision would tie. `items` are the
        `item_sides` where they are kept, as the model in training cannot.
        """
        queries = self.query_sides(batch)
        with torch.autocast(batch.device.type, enabled=False):
            scores = self.similarity.score(queries, self.item_sides() if items is None else items)
        return scores.masked_fill_((batch.lengths == 0)[:, None], 0.0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
