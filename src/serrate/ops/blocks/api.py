"""The contract of square blocks: shapes, numerics, errors and the choice of an implementation.

Row `b` of `L` events has a block of `L²` numbers, one for every pair of its events: that of query `i` and key `j`
stands at `blocks[b] + i · L + j`, where `blocks` is `block_offsets(offsets)`. The blocks of a batch lie end to end,
`(P,)`, or with heads `(P, H)`. `P` cannot be read from a device without waiting, so whoever makes blocks is told it as
`pairs`; on a CPU it may be left out. It may be more than the rows have, as a captured graph needs whose offsets change:
what lies past the last block is 0 in results, and ignored in what is given.

Sums are float32 (float64 for float64 inputs) whatever the dtype. Contents of offsets are checked on a CPU only.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...jagged.tensor import readable
from .. import select


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype


class Rows(NamedTuple):
    """Where rows and their blocks begin and end, `(B + 1,)` each: events int32 or int64, pairs int64."""

    offsets: Tensor
    blocks: Tensor


def block_offsets(offsets: Tensor, *, implementation: str | None = None) -> Tensor:
    """Return where the blocks of rows begin and end: the running sums of squared lengths.

    Args:
        offsets: `(B + 1,)` int32 or int64.
        implementation: a name from `implementations("block_offsets")`, or None for the automatic choice.

    Returns:
        `(B + 1,)` int64; nothing waits for the device.

    Raises:
        InvalidArgument: offsets of another shape or dtype.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_offsets(offsets)
    return _chosen("block_offsets", offsets, implementation)(offsets.contiguous())


def block_products(
    x: Tensor,
    y: Tensor,
    offsets: Tensor,
    *,
    pairs: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Multiply every event of a row with every event of it: the block `X Yᵀ`, `x_i · y_j` for query `i` and key `j`.

    Args:
        x: `(T, D)` or `(T, H, D)` queries; float64, float32, bfloat16 or float16; any strides.
        y: keys, of the shape, dtype and device of `x`.
        offsets: `(B + 1,)` int32 or int64, the rows.
        pairs: P, at least the sum of squared lengths; needed where that cannot be read.
        implementation: a name from `implementations("block_products")`, or None for the automatic choice.

    Returns:
        `(P,)` or `(P, H)` of the dtype of `x`; differentiable in `x` and `y`, any number of times.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit; `pairs` missing.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_floating("x", x)
    if x.dim() not in (2, 3) or 0 in x.shape[1:]:
        raise InvalidArgument("x", "shape (T, D) or (T, H, D) with H, D >= 1", tuple(x.shape))
    _check_like("y", y, "x", x, x.shape)
    rows = _rows(offsets, x, implementation, events=x.shape[0])
    compute = _chosen("block_products", x, implementation)
    return _like(x, 3, compute(_headed(x, 3), _headed(y, 3), rows, _pairs(rows, pairs)))


def block_matmul(
    a: Tensor,
    y: Tensor,
    offsets: Tensor,
    *,
    transposed: bool = False,
    implementation: str | None = None,
) -> Tensor:
    """Multiply the block of a row with its events: `A Y`, for query `i` the sum over keys `j` of `a_ij y_j`.

    Args:
        a: `(P,)` or `(P, H)` blocks; float64, float32, bfloat16 or float16; any strides.
        y: `(T, D)`, or `(T, H, D)` where blocks have heads; dtype and device of `a`.
        offsets: `(B + 1,)` int32 or int64, the rows.
        transposed: `Aᵀ Y` in its place, for key `j` the sum over queries `i` of `a_ij y_i`.
        implementation: a name from `implementations("block_matmul")`, or None for the automatic choice.

    Returns:
        Of the shape and dtype of `y`; differentiable in `a` and `y`, any number of times.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_blocks(a)
    if y.dim() != a.dim() + 1 or y.shape[1:-1] != a.shape[1:] or y.shape[-1] < 1:
        expected = f"shape ({', '.join(['T', *map(str, a.shape[1:]), 'D'])}) with D >= 1"
        raise InvalidArgument("y", expected, tuple(y.shape))
    _check_like("y", y, "a", a, y.shape)
    rows = _rows(offsets, a, implementation, events=y.shape[0], pairs=a.shape[0])
    compute = _chosen("block_matmul", a, implementation)
    return _like(y, 3, compute(_headed(a, 2), _headed(y, 3), rows, transposed))


def block_softmax(
    a: Tensor,
    offsets: Tensor,
    *,
    over: Literal["keys", "queries"] = "keys",
    implementation: str | None = None,
) -> Tensor:
    """Take the softmax of each query over the keys of its row, or of each key over the queries.

    Where all scores are -inf, so that nothing is seen, the weights are 0. The result is kept for the backward pass and
    nothing else.

    Args:
        a: `(P,)` or `(P, H)` scores, each head apart; float64, float32, bfloat16 or float16; any strides.
        offsets: `(B + 1,)` int32 or int64, the rows.
        over: "keys" or "queries": what the weights of a row of numbers sum to 1 over.
        implementation: a name from `implementations("block_softmax")`, or None for the automatic choice.

    Returns:
        Of the shape and dtype of `a`, differentiable in it.

    Raises:
        InvalidArgument: shapes, dtypes, devices or words that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_blocks(a)
    if over not in ("keys", "queries"):
        raise InvalidArgument("over", "'keys' or 'queries'", repr(over))
    rows = _rows(offsets, a, implementation, pairs=a.shape[0])
    return _like(a, 2, _chosen("block_softmax", a, implementation)(_headed(a, 2), rows, over == "queries"))


def block_differences(
    x: Tensor,
    y: Tensor | None,
    offsets: Tensor,
    *,
    pairs: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Subtract every event of a row from every event of it: `x_i - y_j` for query `i` and key `j`.

    Args:
        x: `(T,)` or `(T, H)`, of queries: times, positions, values; any dtype but bool and complex; any strides.
        y: of keys, of the shape, dtype and device of `x`; None: `x`.
        offsets: `(B + 1,)` int32 or int64, the rows.
        pairs: P, at least the sum of squared lengths; needed where that cannot be read.
        implementation: a name from `implementations("block_differences")`, or None for the automatic choice.

    Returns:
        `(P,)` or `(P, H)` of the dtype of `x`; differentiable in `x` and `y`, any number of times.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit; `pairs` missing.
        NotUsable: the implementation asked for cannot serve this call.
    """
    if x.dim() not in (1, 2) or 0 in x.shape[1:]:
        raise InvalidArgument("x", "shape (T,) or (T, H) with H >= 1", tuple(x.shape))
    if x.dtype == torch.bool or x.dtype.is_complex:
        raise InvalidArgument("x", "a floating-point or integer dtype", x.dtype)
    y = x if y is None else y
    _check_like("y", y, "x", x, x.shape)
    rows = _rows(offsets, x, implementation, events=x.shape[0])
    compute = _chosen("block_differences", x, implementation)
    return _like(x, 2, compute(_headed(x, 2), _headed(y, 2), rows, _pairs(rows, pairs)))


def block_multiply(a: Tensor, square: Tensor, offsets: Tensor, *, implementation: str | None = None) -> Tensor:
    """Multiply every block with one square that all rows and heads share, such as a mask: `a_ij square_ij`.

    Args:
        a: `(P,)` or `(P, H)` blocks; float64, float32, bfloat16 or float16; any strides.
        square: `(N, N)`, N at least the longest row; bool, or the dtype of `a`; on its device; any strides. Where N is
            too small on an accelerator, it counts as 0 further on.
        offsets: `(B + 1,)` int32 or int64, the rows.
        implementation: a name from `implementations("block_multiply")`, or None for the automatic choice.

    Returns:
        Of the shape and dtype of `a`; differentiable in `a` and `square`, any number of times.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_blocks(a)
    if square.dim() != 2 or square.shape[0] != square.shape[1]:
        raise InvalidArgument("square", "shape (N, N)", tuple(square.shape))
    square = square.to(a.dtype) if square.dtype == torch.bool else square
    _check_like("square", square, "a", a, square.shape)
    rows = _rows(offsets, a, implementation, pairs=a.shape[0])
    if readable(offsets) and offsets.shape[0] > 1 and (longest := int(offsets.diff().max())) > square.shape[0]:
        raise InvalidArgument("square", f"N of at least {longest}, the longest row", square.shape[0])
    return _like(a, 2, _chosen("block_multiply", a, implementation)(_headed(a, 2), square, rows))


def to_padded_blocks(
    a: Tensor,
    offsets: Tensor,
    length: int,
    *,
    fill: float = 0,
    implementation: str | None = None,
) -> Tensor:
    """Put blocks into a dense tensor: the pair `(i, j)` of row `b` becomes cell `[b, i, j]`.

    Of a row longer than `length` the pairs of its oldest events stay: pass the longest row to keep all, and a smaller
    number to cut on purpose.

    Args:
        a: `(P,)` or `(P, H)` blocks; any dtype, any strides.
        offsets: `(B + 1,)` int32 or int64, the rows.
        length: N.
        fill: what padding holds.
        implementation: a name from `implementations("to_padded_blocks")`, or None for the automatic choice.

    Returns:
        `(B, N, N)` or `(B, N, N, H)` of the dtype of `a`; differentiable in it, any number of times.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit.
        NotUsable: the implementation asked for cannot serve this call.
    """
    _check_shape(a)
    if length < 0:
        raise InvalidArgument("length", "a number of at least 0", length)
    rows = _rows(offsets, a, implementation, pairs=a.shape[0])
    compute = _chosen("to_padded_blocks", a, implementation)
    return _like(a, 2, compute(_headed(a, 2), rows, length, float(fill)))


def from_padded_blocks(
    padded: Tensor,
    offsets: Tensor,
    *,
    pairs: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Take blocks out of a dense tensor; reverses `to_padded_blocks`.

    Args:
        padded: `(B, N, N)` or `(B, N, N, H)`; any dtype, any strides. Pairs of rows longer than N become 0.
        offsets: `(B + 1,)` int32 or int64, the rows.
        pairs: P, at least the sum of squared lengths; needed where that cannot be read.
        implementation: a name from `implementations("from_padded_blocks")`, or None for the automatic choice.

    Returns:
        `(P,)` or `(P, H)` of the dtype of `padded`; differentiable in it, any number of times.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit; `pairs` missing.
        NotUsable: the implementation asked for cannot serve this call.
    """
    if padded.dim() not in (3, 4) or padded.shape[1] != padded.shape[2] or 0 in padded.shape[3:]:
        raise InvalidArgument("padded", "shape (B, N, N) or (B, N, N, H) with H >= 1", tuple(padded.shape))
    rows = _rows(offsets, padded, implementation)
    if padded.shape[0] != offsets.shape[0] - 1:
        raise InvalidArgument("padded", f"{offsets.shape[0] - 1} rows, as offsets has", padded.shape[0])
    compute = _chosen("from_padded_blocks", padded, implementation)
    return _like(padded, 4, compute(_headed(padded, 4), rows, _pairs(rows, pairs)))


def _chosen(operation: str, x: Tensor, implementation: str | None) -> Callable[..., Any]:
    return select.choose(operation, Call(x.device, x.dtype), implementation).implementation.compute


def _headed(x: Tensor, axes: int) -> Tensor:
    """Return the tensor with an axis of heads, which is one of `axes`: the last of blocks, the middle one of events."""
    return x if x.dim() == axes else x.unsqueeze(1 if axes == 3 else -1)


def _like(x: Tensor, axes: int, out: Tensor) -> Tensor:
    """Return a result without the axis of heads where `x` came without, see `_headed`."""
    return out if x.dim() == axes else out.squeeze(1 if out.dim() == 3 else -1)


def _rows(offsets: Tensor, like: Tensor, implementation: str | None, *, events: int | None = None,
          pairs: int | None = None) -> Rows:
    """Return the rows, checked: the device of `like`, and on a CPU the contents, of so many events or pairs."""
    _check_offsets(offsets)
    if offsets.device != like.device:
        raise InvalidArgument("offsets", f"a tensor on {like.device}, as what it divides", offsets.device)
    own = offsets.contiguous()
    rows = Rows(own, block_offsets(own, implementation=implementation))
    if readable(own):
        if int(own[0]) or bool((own[1:] < own[:-1]).any()):
            raise InvalidArgument("offsets", "entries that begin with 0 and do not fall", own.tolist())
        if events is not None and int(own[-1]) != events:
            raise InvalidArgument("offsets", f"a last entry of T = {events}", int(own[-1]))
        if pairs is not None and int(rows.blocks[-1]) > pairs:
            raise InvalidArgument("a", f"P of at least {int(rows.blocks[-1])}, the sum of squared lengths", pairs)
    return rows


def _pairs(rows: Rows, pairs: int | None) -> int:
    if not readable(rows.blocks):
        if pairs is None:
            raise InvalidArgument("pairs", "the number of pairs, where it cannot be read from offsets", None)
        return pairs
    there = int(rows.blocks[-1])
    if pairs is not None and pairs < there:
        raise InvalidArgument("pairs", f"at least {there}, the sum of squared lengths", pairs)
    return there if pairs is None else pairs


def _check_offsets(offsets: Tensor) -> None:
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype not in (torch.int32, torch.int64):
        got = f"{tuple(offsets.shape)} {offsets.dtype}"
        raise InvalidArgument("offsets", "shape (B + 1,), dtype int32 or int64", got)


def _check_shape(a: Tensor) -> None:
    if a.dim() not in (1, 2) or 0 in a.shape[1:]:
        raise InvalidArgument("a", "shape (P,) or (P, H) with H >= 1", tuple(a.shape))


def _check_blocks(a: Tensor) -> None:
    _check_shape(a)
    _check_floating("a", a)


def _check_floating(name: str, x: Tensor) -> None:
    if not x.dtype.is_floating_point:
        raise InvalidArgument(name, "a floating-point dtype", x.dtype)


def _check_like(name: str, x: Tensor, of: str, other: Tensor, shape: torch.Size) -> None:
    if x.shape != shape:
        raise InvalidArgument(name, f"shape {tuple(shape)}, as {of}", tuple(x.shape))
    if x.dtype != other.dtype:
        raise InvalidArgument(name, f"{other.dtype}, as {of}", x.dtype)
    if x.device != other.device:
        raise InvalidArgument(name, f"a tensor on {other.device}, as {of}", x.device)
