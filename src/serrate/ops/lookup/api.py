"""The contract of reading tables: shapes, numerics, errors and the choice of an implementation."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ...errors import InvalidArgument, suggest
from ...jagged.tensor import readable
from .. import select

How = Literal["each", "sum", "mean"]
HOWS: tuple[str, ...] = get_args(How)


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype


def lookup(table: Tensor, rows: Tensor, *, how: How = "each", offsets: Tensor | None = None,
           implementation: str | None = None) -> Tensor:
    """Read rows of a table, each, or the sum or mean of several.

    The gradient of the table is dense, summed in float32 (float64 for float64) in the same order every time: rows that
    half of all places read take no longer than others.

    Args:
        table: `(V, E)`, any floating dtype.
        rows: int32 or int64 from 0 to `V - 1`; `(R, n)`, or with offsets `(N,)`. Contents are not read on the host.
        how: "each"; "sum" of the n of each line, or with offsets of each bag; "mean", with offsets alone.
        offsets: `(B + 1,)` int32 or int64: bag `b` is `rows[offsets[b]:offsets[b + 1]]`; an empty one gives 0.
        implementation: a name from `implementations("lookup")`, or None for the automatic choice.

    Returns:
        "each": `(R, n, E)`; else `(R, E)`, or with offsets `(B, E)`; of the dtype of the table, differentiable in it.

    Raises:
        InvalidArgument: shapes, dtypes, devices or words that do not fit; on a CPU rows past the table.
        NotUsable: the implementation asked for cannot serve this call.
    """
    if table.dim() != 2 or not table.dtype.is_floating_point:
        raise InvalidArgument("table", "floating-point (V, E)", f"{table.dtype} {tuple(table.shape)}")
    if how not in HOWS:
        raise InvalidArgument("how", f"one of {', '.join(HOWS)}{suggest(str(how), HOWS)}", repr(how))
    if (how == "each" and offsets is not None) or (how == "mean" and offsets is None):
        raise InvalidArgument("offsets", "given for means, not for each", None if offsets is None else "given")
    axes = 2 if offsets is None else 1
    for name, each, dimensions in (("rows", rows, axes), ("offsets", offsets, 1)):
        if each is None:
            continue
        if each.dim() != dimensions or each.dtype not in (torch.int32, torch.int64):
            raise InvalidArgument(name, f"int32 or int64 of {dimensions} axes", f"{each.dtype} {tuple(each.shape)}")
        if each.device != table.device:
            raise InvalidArgument(name, f"a tensor on {table.device}, as the table", each.device)
    if readable(rows) and rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < table.shape[0]:
        raise InvalidArgument("rows", f"from 0 to below {table.shape[0]}", f"{int(rows.min())} to {int(rows.max())}")
    call = Call(table.device, table.dtype)
    return select.choose("lookup", call, implementation).implementation.compute(table, rows, offsets, how)
