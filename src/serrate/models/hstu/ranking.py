"""HSTU for ranking: what will somebody do with an item that they are shown? Source: see `model.py`.

Read top to bottom: items and actions take turns as tokens → HSTU layers → at each item, a small network → an output for
each task. An item stands before what was done with it, so it meets the history inside the layers, and one pass over a
history predicts every action in it.
"""

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument
from ...jagged import EventBatch, JaggedTensor, concatenate_events, deinterleave_events, interleave_events, split_events
from ...nn import HSTULayer
from ...ops.attention import Mask
from ..tasks import predictions, weighted_losses
from .config import HSTURankingConfig

_SPREAD = 0.02  # standard deviation of new tables, as in the layers


class HSTURanker(nn.Module):
    """Model of actions on dense item ids `0 … num_items - 1`: `K` tasks, told by fields of the events.

    A batch has the field `item`, the field of each task, and `time`, int64 in seconds, with `config.time`. Its rows may
    be `max_length` events long; older events are the caller's to cut.

    Args:
        config: see `HSTURankingConfig`.
        num_items: `V`, the size of the catalogue.
    """

    def __init__(self, config: HSTURankingConfig, num_items: int):
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.items = nn.Embedding(num_items, config.width)
        self.actions = nn.Linear(len(config.tasks), config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(HSTULayer(config.width, config.heads, config.layer) for _ in range(config.blocks))
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.SiLU(),
                                  nn.Dropout(config.dropout), nn.Linear(config.width, len(config.tasks)))
        for table in (self.items.weight, self.actions.weight, self.actions.bias):
            nn.init.normal_(table, std=_SPREAD)

    def forward(self, batch: EventBatch) -> JaggedTensor:
        """Return what the model says of each event before its action: values `(T, K)` float32, the rows of `batch`.

        These are outputs, of which `predictions` makes probabilities and values.
        """
        hidden = self.encode(self.tokens(batch), self.times(batch))
        shown, _ = deinterleave_events(hidden, 2)
        return shown.with_values(self.outputs(shown.values))

    def loss(self, batch: EventBatch, weights: Tensor | None = None) -> Tensor:
        """Return the scalar sum over all events of `batch` and all tasks, by the weights of these, float32.

        `weights` `(T,)` are those of the events, None: all ones.
        """
        outputs, targets = self(batch).values, self.targets(batch)
        losses = weighted_losses(self.config.tasks, outputs, targets)
        return losses.sum() if weights is None else (losses * weights).sum()

    def predict(self, batch: EventBatch) -> JaggedTensor:
        """Return the prediction of each event's action from what stands before it: values `(T, K)` float32."""
        outputs = self(batch)
        return outputs.with_values(self.predictions(outputs.values))

    def score(self, batch: EventBatch, candidates: JaggedTensor, asked: Tensor | None = None) -> JaggedTensor:
        """Return what would be done with each candidate after the history of its row: values `(M, K)` float32.

        Probabilities of binary tasks, values of the others. Candidates see the history and not each other, so that a
        score depends neither on how many there are nor on their order.

        Args:
            batch: `B` histories, actions included.
            candidates: values `(M,)` int64, dense item ids, in `B` rows.
            asked: `(B,)` int32 or int64 in seconds, when they are shown; read with `config.time` only.

        Raises:
            InvalidArgument: other rows than those of `batch`, a field or times that are missing.
        """
        rows, given = batch.offsets.shape[0] - 1, candidates.offsets.shape[0] - 1
        if given != rows:
            raise InvalidArgument("candidates", f"{rows} rows, as batch", given)
        history, shown = self.tokens(batch), self.shown(candidates)
        tokens = concatenate_events([history, shown])
        times = self.times(batch)
        if times is not None:
            at = _asked(batch, candidates, asked).to(times.dtype)
            times = concatenate_events([times, candidates.with_values(at)])
        hidden = self.encode(tokens, times, Mask(causal=True, targets=candidates.lengths))
        _, found = split_events(hidden, history.lengths, num_events=history.num_events)
        return candidates.with_values(self.predictions(self.outputs(found.values)))

    def tokens(self, batch: EventBatch) -> JaggedTensor:
        """Return the tokens of the events, values `(2 T, E)`: item, action, item, action, …, each row twice as long."""
        items = self.shown(batch["item"])
        actions = self.dropout(self.actions(self.targets(batch)) * self.config.width**0.5)
        return interleave_events([items, items.with_values(actions.to(items.dtype))])  # autocast makes them lower

    def shown(self, items: JaggedTensor) -> JaggedTensor:
        """Return the tokens of items, values `(M, E)`, of dense ids `(M,)`."""
        return items.with_values(self.dropout(self.items(items.values) * self.config.width**0.5))

    def times(self, batch: EventBatch) -> JaggedTensor | None:
        """Return the times of the tokens, values `(2 T,)` int64; an action happens when its item is shown.

        None: the model does not read them.
        """
        return interleave_events([self._field(batch, "time", "model.time")] * 2) if self.config.reads_time else None

    def encode(self, tokens: JaggedTensor, times: JaggedTensor | None, mask: Mask | None = None) -> JaggedTensor:
        """Return what the layers make of tokens, values `(S, E)`, and their times `(S,)`; masks as in `HSTULayer`."""
        for layer in self.layers:
            tokens = layer(tokens, key_times=None if times is None else times.values, mask=mask)
        return tokens

    def outputs(self, hidden: Tensor) -> Tensor:
        """Return `(M, K)` float32, an output for each task, of what the layers made of items, `(M, E)`.

        Computed in the dtype of the weights also under autocast: probabilities of half precision would tie.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.actions.weight.dtype))

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the probability (of a binary task) or the value that each output `(M, K)` stands for, `(M, K)`."""
        return predictions(self.config.tasks, outputs)

    def targets(self, batch: EventBatch) -> Tensor:
        """Return what each event's action says of each task, `(T, K)`: 1 or 0, or spreads from the centre."""
        read = [task.target(self._field(batch, task.field, f"task {task.name!r}").values)
                for task in self.config.tasks]
        return torch.stack(read, 1).to(self.actions.weight.dtype)

    def _field(self, batch: EventBatch, name: str, reader: str) -> JaggedTensor:
        if name not in batch.events:
            raise InvalidArgument("batch", f"a field {name!r}, which {reader} reads", ", ".join(batch))
        return batch[name]


def _asked(batch: EventBatch, candidates: JaggedTensor, asked: Tensor | None) -> Tensor:
    """Return when each candidate is shown, `(M,)`."""
    rows = batch.offsets.shape[0] - 1
    if asked is None or asked.shape != (rows,) or asked.dtype not in (torch.int32, torch.int64):
        got = "None" if asked is None else f"{tuple(asked.shape)} {asked.dtype}"
        raise InvalidArgument("asked", f"shape ({rows},), dtype int32 or int64, as the model reads time", got)
    return torch.repeat_interleave(asked, candidates.lengths, output_size=candidates.num_events)
