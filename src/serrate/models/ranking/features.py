"""From what is known of a state or a candidate to vectors of the model's width."""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument, suggest
from ...jagged import JaggedTensor
from ...jagged.tensor import readable
from ...nn import Column, EmbeddingTables, TableReader
from .config import CategoricalFeature, DenseFeature, FeatureConfig, MultiFeature

Known = Mapping[str, Tensor | JaggedTensor]
Part = TypeVar("Part", Tensor, JaggedTensor)


class Embedded(nn.Module):
    """Columns of ids, `n` times `(R,)`, as vectors `(R, n, E)`; one gather for each width of tables.

    Args:
        tables: where they are read, the same in each call.
        columns: at least one.
        width: `E`; embeddings of another width are projected, by one matrix for each width.

    Attributes:
        names: of the columns, in the order of their vectors.
    """

    readers: Any  # of TableReader, which a ModuleList does not tell
    projections: Any

    def __init__(self, tables: EmbeddingTables, columns: Sequence[Column], width: int):
        super().__init__()
        together: dict[int, list[Column]] = {}
        for column in columns:
            together.setdefault(tables.shape(column.table)[1], []).append(column)
        self.readers = nn.ModuleList(TableReader(tables, group) for group in together.values())
        self.projections = nn.ModuleList(
            nn.Identity() if own == width else nn.Linear(own, width, bias=False) for own in together)
        self.names = [column.name for group in together.values() for column in group]

    def forward(self, tables: EmbeddingTables, ids: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors `(R, n, E)`, in the order of `names`; `ids` has those of each column, `(R,)`."""
        return torch.cat([projection(reader(tables, [ids[column.name] for column in reader.columns]))
                          for reader, projection in zip(self.readers, self.projections, strict=True)], 1)

    def summed(self, tables: EmbeddingTables, ids: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the vectors, `(R, E)`, without making them."""
        return reduce(torch.add, [
            projection(reader.summed(tables, [ids[column.name] for column in reader.columns]))
            for reader, projection in zip(self.readers, self.projections, strict=True)])

    def pooled(self, tables: EmbeddingTables, ids: JaggedTensor, how: Literal["mean", "sum"]) -> Tensor:
        """Return the pooled vector `(R, 1, E)` of jagged ids in R rows; of one column."""
        reader, projection = self.readers[0], self.projections[0]
        return projection(reader.pooled(tables, ids, how))[:, None]


class Dense(nn.Module):
    """Numbers as one vector: standardised, what is missing filled in, then an MLP.

    Args:
        features: `n` of them, at least one.
        hidden: widths of the hidden layers.
        width: `E`, of the vector.
    """

    centre: Tensor
    spread: Tensor
    logged: Tensor
    missing: Tensor

    def __init__(self, features: Sequence[DenseFeature], hidden: Sequence[int], width: int):
        super().__init__()
        self.features = tuple(features)
        for name, numbers in (("centre", [feature.centre or 0.0 for feature in features]),
                              ("spread", [feature.spread or 1.0 for feature in features]),
                              ("missing", [feature.missing or 0.0 for feature in features]),
                              ("logged", [feature.transform == "log1p" for feature in features])):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)
        widths = [len(features), *hidden]
        self.network = nn.Sequential(perceptron(widths), nn.Linear(widths[-1], width))

    def forward(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """Return the vector `(R, 1, E)` of numbers, `n` times `(R,)`.

        Raises:
            InvalidArgument: numbers of another shape; NaN or infinity where `missing` is None, if that can be read.
        """
        given = [numbers[feature.name] for feature in self.features]
        for feature, values in zip(self.features, given, strict=True):
            if values.dim() != 1:
                raise InvalidArgument(f"feature {feature.name!r}", "numbers (R,)", tuple(values.shape))
            if feature.missing is None and readable(values) and not bool(values.isfinite().all()):
                raise InvalidArgument(f"feature {feature.name!r}", "finite numbers, as it has no missing",
                                      float(values[~values.isfinite()][0]))
        x = torch.stack([values.to(self.centre.dtype) for values in given], 1)
        x = torch.where(self.logged, x.sign() * x.abs().log1p(), x)
        x = torch.where(x.isfinite(), (x - self.centre) / self.spread, self.missing)
        return self.network(x)[:, None]


class Side(nn.Module):
    """The features of states, or of candidates, as vectors `(R, n, E)`.

    Args:
        argument: "context" or "candidates": where they are in a batch, and how errors call it.
        features: any number.
        tables: those that they read, the same in each call.
        hidden: of the dense features' network.
        width: `E`.

    Attributes:
        names: of the features, in the order of their vectors; dense ones are one, the first, without a name.
    """

    bags: Any  # of Embedded

    def __init__(self, argument: str, features: Sequence[FeatureConfig], tables: EmbeddingTables,
                 hidden: Sequence[int], width: int):
        super().__init__()
        self.argument = argument
        dense = [feature for feature in features if isinstance(feature, DenseFeature)]
        single = [feature.column for feature in features if isinstance(feature, CategoricalFeature)]
        self.multi = [feature for feature in features if isinstance(feature, MultiFeature)]
        self.dense = Dense(dense, hidden, width) if dense else None
        self.single = Embedded(tables, single, width) if single else None
        self.bags = nn.ModuleList(Embedded(tables, [feature.column], width) for feature in self.multi)
        self.names = [*([None] if dense else []), *(self.single.names if self.single else []),
                      *(feature.name for feature in self.multi)]
        self.flat = [*(feature.name for feature in dense), *(column.name for column in single)]

    def forward(self, tables: EmbeddingTables, known: Known) -> list[Tensor]:
        """Return the vectors, each entry `(R, k, E)`, of what is `known` of R states or candidates; none: no entry.

        Raises:
            InvalidArgument: a feature that is missing or of another kind, ids or numbers that are refused.
        """
        flat = {name: self._part(known, name, Tensor) for name in self.flat}
        vectors = [] if self.dense is None else [self.dense(flat)]
        if self.single is not None:
            vectors.append(self.single(tables, flat))
        for feature, bag in zip(self.multi, self.bags, strict=True):
            vectors.append(bag.pooled(tables, self._part(known, feature.name, JaggedTensor), feature.pooling))
        return vectors

    def _part(self, known: Known, name: str, kind: type[Part]) -> Part:
        if name not in known:
            raise InvalidArgument(self.argument, f"a feature {name!r}{suggest(name, known)}",
                                  ", ".join(known) or "none")
        part = known[name]
        if not isinstance(part, kind):
            words = "a tensor (R,)" if kind is Tensor else "a JaggedTensor, as the feature is multi"
            raise InvalidArgument(f"{self.argument}[{name!r}]", words, type(part).__name__)
        return part


def perceptron(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Return hidden layers of `widths`, first that of the inputs: each linear, ReLU, dropout."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
