"""The ranking model as one writes it in plain PyTorch: padded histories and masks, an embedding a feature, own weights.

`PaddedRanker` has the weights of a `RankingModel`, and gives what that gives: its oracle, and what it is measured by.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hstu_models import dense_layer
from torch import Tensor, nn

from serrate.jagged import JaggedTensor, RankingBatch, to_padded
from serrate.models.ranking.config import DIN, PMA, CategoricalFeature, DenseFeature, HSTULayers, Pooling, Target
from serrate.models.ranking.features import Embedded, Side
from serrate.models.ranking.history import History, age_column
from serrate.models.ranking.model import RankingModel
from serrate.nn import DINAttention
from serrate.ops.attention.bias import bucket

Ids = tuple[Tensor, Tensor]  # of several a row: `(R, L)`, and which cells hold one, `(R, L)`


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """A `RankingBatch` of U states and M candidates whose histories are `(U, N)`, longest row first to last cell.

    Attributes:
        histories: name → (field → `(U, N)`, which cells are events `(U, N)`).
        context, candidates: name → `(U,)` or `(M,)`, or `Ids` where there are several.
        asked: `(U,)`, or None.
        owner, place: `(M,)`, each candidate's state, and which candidate of its state it is, below `most`.
    """

    histories: dict[str, tuple[dict[str, Tensor], Tensor]]
    context: dict[str, Tensor | Ids]
    candidates: dict[str, Tensor | Ids]
    asked: Tensor | None
    owner: Tensor
    place: Tensor
    most: int

    @classmethod
    def of(cls, batch: RankingBatch) -> "PaddedBatch":
        """Pad a batch; waits for the device."""
        together, order = batch.owner.sort(stable=True)
        every = torch.arange(len(batch), device=batch.device)
        place = torch.empty_like(every)
        place[order] = every - torch.searchsorted(together, together)
        histories = {name: ({field: to_padded(history[field], 0)[0] for field in history},
                            _real(next(iter(history.events.values())))) for name, history in batch.histories.items()}
        asked = batch.context.get("asked")
        return cls(histories, *({name: part if isinstance(part, Tensor) else (to_padded(part, 0)[0], _real(part))
                                 for name, part in side.items()} for side in (batch.context, batch.candidates)),
                   asked if isinstance(asked, Tensor) else None, batch.owner, place,
                   int(place.max()) + 1 if len(batch) else 0)


class PaddedRanker(nn.Module):
    """A `RankingModel` over padded rows, of the same weights; attention by `attend`, called as torch's own.

    In training Dice counts cells of padding like events, as most code does; everywhere else it is the model's oracle.
    """

    def __init__(self, model: RankingModel, attend: Callable[..., Tensor] = F.scaled_dot_product_attention):
        super().__init__()
        self.model = model
        self.attend = attend

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Return the outputs `(M, K)`."""
        model = self.model
        shared = self.side(model.context, batch.context)
        own = self.side(model.candidates, batch.candidates)
        features = dict(zip(model.candidates.names, own, strict=True))
        for history in model.histories:
            fields, real = batch.histories[history.config.name]
            x = self.encode(history, fields, real, batch.asked)
            targets = [features[name] for name in model.config.target(history.config)]
            for read, module in zip(history.config.reads, history.reads, strict=True):
                if isinstance(read, Pooling):
                    shared.append(pooled(x, real, read.how))
                elif isinstance(read, PMA):
                    asking = module.queries.expand(len(x), -1, -1)
                    shared += self.attended(module, asking, x, real).unbind(1)
                else:
                    asking = x.new_zeros(len(x), batch.most, x.shape[-1])
                    asking[batch.owner, batch.place] = torch.stack(targets).sum(0)
                    own.append(self.found(read, module, asking, x, real)[batch.owner, batch.place])
        vectors = torch.stack([*(vector[batch.owner] for vector in shared), *own], 1)
        return model.outputs(model.interact(vectors))

    def side(self, side: Side, known: dict[str, Tensor | Ids]) -> list[Tensor]:
        """Return the vectors `(R, E)` of the features of states or candidates, in the order of the model."""
        model, vectors = self.model, []
        if side.dense is not None:
            columns = []
            for feature in side.dense.features:
                x = torch.as_tensor(known[feature.name]).to(model.head.weight.dtype)
                x = x.sign() * x.abs().log1p() if feature.transform == "log1p" else x
                x = (x - (feature.centre or 0.0)) / (feature.spread or 1.0)
                columns.append(x.nan_to_num(feature.missing, feature.missing, feature.missing))
            vectors.append(side.dense.network(torch.stack(columns, 1)))
        features = {feature.name: feature for feature in model.config.features
                    if feature.of == side.argument and not isinstance(feature, DenseFeature)}
        singles = [name for name, feature in features.items() if isinstance(feature, CategoricalFeature)]
        if singles:
            vectors += self.embedded(side.single, {name: known[name] for name in singles})
        for feature, bag in zip(side.multi, side.bags, strict=True):
            ids, real = known[feature.name]
            x, = self.embedded(bag, {feature.name: ids})
            vectors.append(pooled(x, real, feature.pooling))
        return vectors

    def embedded(self, embedded: Embedded, ids: dict[str, Tensor]) -> list[Tensor]:
        """Return the embeddings `(…, E)` of ids `(…)`, a lookup each."""
        found = []
        for reader, projection in zip(embedded.readers, embedded.projections, strict=True):
            for column in reader.columns:
                found.append(projection(F.embedding(ids[column.name], self.model.tables.table(column.table))))
        return found

    def encode(self, history: History, fields: dict[str, Tensor], real: Tensor, asked: Tensor | None) -> Tensor:
        """Return the events `(U, N, E)` after the layers."""
        config = history.config
        if config.age:
            age = (asked[:, None] - fields["time"]).clamp(min=0)
            fields = {**fields, age_column(config).name: (age + 1).double().log2().ceil().long().clamp(
                max=len(history.boundaries))}  # 0: 0, 1: 1, 2 and 3: 2, 4 to 7: 3
        x = torch.stack(self.embedded(history.embedded, fields)).sum(0)
        if history.positions is not None:
            newest = real.sum(1, keepdim=True) - 1
            place = (newest - torch.arange(x.shape[1], device=x.device)).clamp(0, config.max_length - 1)
            x = x + history.positions(place)
        for layer in history.layers:
            if isinstance(config.layers, HSTULayers):
                times = fields["time"] if config.layers.time else real.long()
                x = dense_layer(layer, x, times, times, bucket=bucket)
                continue
            causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            seen = real[:, None, None] & (causal.tril() if config.layers.causal else causal)
            heads = layer.attention.project_in(layer.attention_norm(x)).unflatten(-1, (3, layer.attention.heads, -1))
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            attended = self.attend(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
            x = x + layer.dropout(layer.attention.project_out(attended))
            x = x + layer.dropout(layer.feedforward(layer.feedforward_norm(x)))
        return x if history.norm is None else history.norm(x)

    def found(self, read: Target | DIN, module: nn.Module, asking: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """Return what each of `(U, C, E)` finds in its history `(U, N, E)`, `(U, C, E)`."""
        if isinstance(read, Target):
            return self.attended(module, module.project_targets(asking), x, real)
        assert isinstance(module, DINAttention)
        q = asking[:, :, None].expand(-1, -1, x.shape[1], -1)
        k = x[:, None].expand_as(q)
        unit = module.unit(module.enter(torch.cat([q, k, q - k, q * k], -1)).flatten(0, 2)).unflatten(0, q.shape[:3])
        weights = unit[..., 0]
        if read.weights == "softmax":
            weights = weights.masked_fill(~real[:, None], torch.finfo(x.dtype).min).softmax(-1)
        weights = weights.sigmoid() if read.weights == "sigmoid" else weights
        return weights.masked_fill(~real[:, None], 0.0) @ x

    def attended(self, module: nn.Module, asking: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """Return what queries `(U, C, E)`, projected, find in events `(U, N, E)`, `(U, C, E)`."""
        k, v = module.project_in(x).unflatten(-1, (2, module.heads, -1)).permute(2, 0, 3, 1, 4)
        q = asking.unflatten(-1, (module.heads, -1)).transpose(1, 2)
        mask = real[:, None, None].expand(-1, -1, q.shape[2], -1)
        return module.project_out(self.attend(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def pooled(x: Tensor, real: Tensor, how: str) -> Tensor:
    """Return `(R, E)`, the mean, sum or maximum over the cells of `(R, L, E)` that are real; zeros where none is."""
    if how == "max":
        largest = x.masked_fill(~real[..., None], float("-inf")).amax(1) if x.shape[1] else x.new_zeros(x.shape[::2])
        return largest.masked_fill(~real.any(1, keepdim=True), 0.0)
    total = x.masked_fill(~real[..., None], 0.0).sum(1)
    return total / real.sum(1, keepdim=True).clamp(min=1) if how == "mean" else total


def _real(x: JaggedTensor) -> Tensor:
    """Return which cells of the padded rows hold an event, `(B, N)`."""
    longest = to_padded(x, 0)[0].shape[1]
    return torch.arange(longest, device=x.device) < x.lengths[:, None]
