"""Embedding tables: those of one width are one weight, so that many features are one gather."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidArgument, suggest
from ..jagged import JaggedTensor
from ..jagged.tensor import readable
from ..ops.lookup import lookup

_SPREAD = 0.02  # standard deviation of new embeddings


@dataclass(frozen=True)
class Column:
    """A feature of ids, and the table that it reads; several features may read one.

    Attributes:
        name: of the feature, as errors call it.
        table: see `EmbeddingTables`.
        unknown: what is done with an id that the table has no row for, negative or too large. "refuse": an error,
            where ids can be read without waiting for a device; elsewhere, and with "fallback", it is read as row 0.
    """

    name: str
    table: str
    unknown: Literal["refuse", "fallback"] = "refuse"


class EmbeddingTables(nn.Module):
    """Tables of embeddings, fused: all rows of one width lie in one weight, each table behind the one before it.

    Row 0 of a table stands for what is unknown. Columns are read through a `TableReader`.

    Args:
        shapes: name of a table → its rows (row 0 counted) and its width.
        sparse: let the gradients of the weights be sparse, of the rows that were read: see `RowwiseAdagrad`.

    Attributes:
        weights: width, as text → `(rows of all tables of this width, width)`.

    Raises:
        InvalidArgument: no table, or one without rows or width.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, sparse: bool = False):
        super().__init__()
        if not shapes:
            raise InvalidArgument("shapes", "at least one table", "none")
        self.sparse = sparse
        self.shapes = dict(shapes)
        self.first: dict[str, int] = {}
        together: dict[int, int] = {}
        for name, (rows, width) in shapes.items():
            if rows < 1 or width < 1:
                raise InvalidArgument(f"shapes[{name!r}]", "rows and width of 1 or more", (rows, width))
            self.first[name] = together.get(width, 0)
            together[width] = self.first[name] + rows
        self.weights = nn.ParameterDict(
            {str(width): torch.randn(rows, width) * _SPREAD for width, rows in together.items()})

    def table(self, name: str) -> Tensor:
        """Return the embeddings `(V, E)` of one table: its rows, row 0 counted; a view of the weight."""
        rows, width = self.shape(name)
        return self.weights[str(width)].narrow(0, self.first[name], rows)

    def shape(self, name: str) -> tuple[int, int]:
        """Return rows and width of a table; raises `InvalidArgument` for one that is not there."""
        if name not in self.shapes:
            raise InvalidArgument("table", f"one of {', '.join(self.shapes)}{suggest(name, self.shapes)}", repr(name))
        return self.shapes[name]

    def extra_repr(self) -> str:
        """Say which tables there are, with their rows and widths."""
        return ", ".join(f"{name} ({rows}, {width})" for name, (rows, width) in self.shapes.items())


class TableReader(nn.Module):
    """Reads `n` columns of ids `(R,)` from tables of one width, in one gather; holds no weights of its own.

    Args:
        tables: where they are read, the same in each call.
        columns: at least one, of tables of one width.

    Raises:
        InvalidArgument: no column, a table that is not there, or tables of different widths.
    """

    sizes: Tensor
    bases: Tensor

    def __init__(self, tables: EmbeddingTables, columns: Sequence[Column]):
        super().__init__()
        widths = {tables.shape(column.table)[1] for column in columns}
        if len(widths) != 1:
            raise InvalidArgument("columns", "at least one, all of tables of one width", f"widths {sorted(widths)}")
        self.columns = tuple(columns)
        self.width = widths.pop()
        for name, numbers in (("sizes", [tables.shape(column.table)[0] for column in columns]),
                              ("bases", [tables.first[column.table] for column in columns])):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)

    def forward(self, tables: EmbeddingTables, ids: Sequence[Tensor]) -> Tensor:
        """Return the embeddings side by side, `(R, n, width)`, dtype of the weight.

        `ids` are those of each column, `(R,)` int32 or int64.

        Raises:
            InvalidArgument: ids of another shape or dtype, or without a row, as `Column.unknown` says.
        """
        rows, weight = self.rows(ids), tables.weights[str(self.width)]
        return F.embedding(rows, weight, sparse=True) if tables.sparse else lookup(weight, rows)

    def summed(self, tables: EmbeddingTables, ids: Sequence[Tensor]) -> Tensor:
        """Return the sum of the embeddings of each row, `(R, width)`: `forward(…).sum(1)` without its memory.

        Raises:
            InvalidArgument: as `forward`.
        """
        rows, weight = self.rows(ids), tables.weights[str(self.width)]
        if tables.sparse:
            return F.embedding_bag(rows, weight, mode="sum", sparse=True)
        return lookup(weight, rows, how="sum")

    def pooled(self, tables: EmbeddingTables, ids: JaggedTensor, how: Literal["mean", "sum"] = "mean") -> Tensor:
        """Return one embedding for the ids of each row, `(B, width)`, zeros for a row without ids; of one column.

        `ids` has values `(T,)` int32 or int64 in B rows, such as the genres of a film. Nothing of size `(T, width)` is
        made.

        Raises:
            InvalidArgument: as `forward`; several columns.
        """
        if len(self.columns) != 1:
            raise InvalidArgument("columns", "one column to pool", len(self.columns))
        rows, weight = self.rows([ids.values])[:, 0], tables.weights[str(self.width)]
        if tables.sparse:
            return F.embedding_bag(rows, weight, ids.offsets.long(), mode=how, sparse=True, include_last_offset=True)
        return lookup(weight, rows, how=how, offsets=ids.offsets)

    def rows(self, ids: Sequence[Tensor]) -> Tensor:
        """Return `(R, n)` int64, the rows of the fused weight that `ids`, `n` times `(R,)`, stand for.

        Raises:
            InvalidArgument: as `forward`.
        """
        if len(ids) != len(self.columns):
            raise InvalidArgument("ids", f"those of {len(self.columns)} columns", len(ids))
        for column, given in zip(self.columns, ids, strict=True):
            if given.dim() != 1 or given.dtype not in (torch.int32, torch.int64):
                got = f"{tuple(given.shape)} {given.dtype}"
                raise InvalidArgument(f"feature {column.name!r}", "ids (R,), int32 or int64", got)
        side = torch.stack([given.long() for given in ids], 1)
        known = (side >= 0) & (side < self.sizes)
        if readable(side) and not bool(known.all()):
            self._refuse(side, known)
        return torch.where(known, side, 0) + self.bases

    def _refuse(self, side: Tensor, known: Tensor) -> None:
        for i, column in enumerate(self.columns):
            if column.unknown == "refuse" and not bool(known[:, i].all()):
                rows = int(self.sizes[i])
                raise InvalidArgument(f"feature {column.name!r}", f"ids from 0 to below {rows}, the rows of table "
                                      f"{column.table!r}", int(side[~known[:, i], i][0]))


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator for each row of a table in place of one for each number of it.

    `s[row] += mean(g[row]²)`, `w[row] -= lr · g[row] / (√s[row] + eps)`. Takes sparse gradients, of which rows that
    were read twice are summed first (which waits for the device), and dense ones; both give the same, the same in each
    run. A row without a gradient stays as it is. Accumulators are float32, float64 for float64.

    Args:
        parameters: tables, `(rows, …)`, or groups of them as in any optimiser of torch.
        lr: learning rate.
        eps: added to the root.
        initial: what each accumulator starts with.

    Raises:
        InvalidArgument: an option out of range; at a step, a gradient that is sparse in more than rows.

    Source: Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation
    Models", ISCA 2022; Duchi et al., "Adaptive Subgradient Methods", JMLR 2011.
    """

    def __init__(self, parameters, lr: float = 0.01, *, eps: float = 1e-8, initial: float = 0.0):
        for name, value in (("lr", lr), ("initial", initial)):
            if not 0 <= value < float("inf"):
                raise InvalidArgument(name, "a number of 0 or more", value)
        if not 0 < eps < float("inf"):  # a row that never had a gradient would be 0 / 0
            raise InvalidArgument("eps", "a number above 0", eps)
        super().__init__(parameters, {"lr": lr, "eps": eps, "initial": initial})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every table that has a gradient; returns what `closure` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, group)
        return loss

    def _update(self, table: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[table]
        dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
        if not state:
            state["sum"] = torch.full(table.shape[:1], group["initial"], dtype=dtype, device=table.device)
        sums, rows = state["sum"], None
        if gradient.is_sparse:
            if gradient.sparse_dim() != 1:
                raise InvalidArgument("parameters", "gradients that are sparse in rows alone", gradient.sparse_dim())
            gradient = gradient.coalesce()
            rows, gradient = gradient.indices()[0], gradient.values()
        gradient = gradient.to(dtype)
        squares = gradient.square().flatten(1).mean(1) if gradient.dim() > 1 else gradient.square()
        sums = sums.add_(squares) if rows is None else sums.index_add_(0, rows, squares)[rows]
        root = sums.sqrt().add_(group["eps"]).view(-1, *(1,) * (gradient.dim() - 1))
        step = (gradient / root).mul_(-group["lr"]).to(table.dtype)
        table.add_(step) if rows is None else table.index_add_(0, rows, step)
