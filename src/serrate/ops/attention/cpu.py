"""Attention on the CPU: rows of one shape run together through torch's flash kernel, nothing padded.

Events are brought into order of the shapes of their rows (where they are not), so that each group of `n` rows of `m`
queries and `l` keys is one contiguous slice of either and becomes a dense batch, `(n, H, m, D)` and `(n, H, l, D)`,
without a copy. Long rows mostly have a shape of their own and run alone, short ones share a call; README.md has the
measurements. A mask that the kernel does not know is written out, once for each group.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from .api import Call, Rows, Settings
from .mask import Mask, seen


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    if call.device.type != "cpu":
        return f"needs a CPU tensor, got {call.device.type}"
    asked = {"dropout": call.dropout, "pointwise weights": call.pointwise, "a bias": call.biased}  # nor does the kernel
    return next((f"does not serve {name}" for name, wanted in asked.items() if wanted), None)


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Attend within each row; see `api.attention`. The kernel wants one width, reached by zeros, and equal heads."""
    queries, offsets = rows.pack(q)
    heads, width, value_width = q.shape[-2], max(q.shape[-1], v.shape[2]), v.shape[2]
    if k.shape[1] != heads:
        k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    queries, k, v = (x if x.shape[2] == width else pad(x, (0, width - x.shape[2])) for x in (queries, k, v))
    mask = settings.mask
    numbers = [-1 if number is None else number for number in (*mask.reach, mask.block)]
    out, lse = _forward(queries, k, v, _table(offsets, rows.keys, mask), numbers, settings.scale)
    if value_width != width:
        out = out[..., :value_width]
    if q.dim() == 4:
        out, lse = out.unflatten(0, q.shape[:2]), lse.unflatten(0, q.shape[:2])
    return out, lse if settings.with_lse else None


def _table(queries: Tensor, keys: Tensor, mask: Mask) -> Tensor:
    """Return offsets of queries, offsets of keys, context and targets: `(4, B + 1)`, or fewer where that is all.

    `(2, B + 1)` without context and targets, `(1, B + 1)` where rows of queries are those of keys besides. Counts have
    one 0 more than there are rows; lengths are not taken here, for a traced `diff` is of two rows and more only.
    """
    if not mask.per_row:
        return keys[None] if queries is keys else torch.stack([queries, keys])
    counts = (pad(count.to(keys.dtype), (0, 1)) if isinstance(count, Tensor) else torch.zeros_like(keys)
              for count in (mask.context, mask.targets))
    return torch.stack([queries, keys, *counts])


@torch.library.custom_op("serrate::row_attention_cpu", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Return the output `(T, H, D)` and the log-sum-exp `(T, H)`, both in the order of the queries.

    mask: how far a query sees to the left and to the right and the size of a block, -1 for no limit.
    """
    groups = _Groups(table)
    results = [_attend(query, key, value, known, scale) for (query,), (key, value), known in zip(
        groups.queries.dense(q), groups.keys.dense(k, v), _masks(groups.shapes, mask, q.dtype), strict=True)]
    out, lse = _outputs(q, v)
    return (groups.queries.gather(out, [out for out, _ in results]),
            groups.queries.gather(lse, [lse for _, lse in results]))


@torch.library.custom_op("serrate::row_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(grad: Tensor, saved: list[Tensor], table: Tensor, mask: list[int],
              scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `k` and `v`; `saved` holds these, the output and the log-sum-exp."""
    q, k, v, out, lse = saved
    groups = _Groups(table)
    results = [_gradients(*both, scale) for both in zip(
        groups.queries.dense(grad, q, out, lse), groups.keys.dense(k, v), _masks(groups.shapes, mask, q.dtype),
        strict=True)]
    dq, dk, dv = (side.gather(torch.empty(x.shape, dtype=x.dtype), [result[at] for result in results])
                  for at, (side, x) in enumerate(((groups.queries, q), (groups.keys, k), (groups.keys, v))))
    return dq, dk, dv


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: tuple[bool, Tensor | None], scale: float) -> tuple[Tensor, Tensor]:
    """One group: `q` `(n, H, m, D)`, `k`, `v` `(n, H, l, D)` → `(n, H, m, D)` and `(n, H, m)`."""
    causal, hidden = mask
    if q.shape[2] == 0 or k.shape[2] == 0:  # the kernel divides by the number of keys
        return torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf, dtype=_wide(q))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(q, k, v, 0.0, causal, attn_mask=hidden, scale=scale)
    if hidden is not None:  # to the kernel the log-sum-exp of no key is 0
        lse = lse.masked_fill(hidden.isneginf().all(-1), -math.inf)
    return out, lse


def _gradients(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], mask: tuple[bool, Tensor | None],
               scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """One group: the gradients of `q` `(n, H, m, D)` and of `k` and `v` `(n, H, l, D)`."""
    (grad, q, out, lse), (k, v), (causal, hidden) = ours, theirs, mask
    if q.shape[2] == 0 or k.shape[2] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if hidden is not None:
        lse = lse.masked_fill(lse.isneginf(), 0.0)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return kernel(grad, q, k, v, out, lse, 0.0, causal, attn_mask=hidden, scale=scale)


def _masks(shapes: list[tuple[int, ...]], numbers: list[int],
           dtype: torch.dtype) -> Iterator[tuple[bool, Tensor | None]]:
    """Yield for each group whether the kernel's own causal mask serves it, or else what to add to its scores.

    shapes: queries, keys, context and targets of each row; to add: `(queries, keys)`, None where all is seen.
    """
    left, right, block = (None if number < 0 else number for number in numbers)
    mask = Mask(causal=right == 0, window=(left, right), block=block)
    plain = mask.plain
    for queries, keys, *counts in shapes:
        if plain and not counts and (queries == keys or not mask.causal):
            yield mask.causal, None
            continue
        visible = seen(mask, queries, keys, *counts)
        yield False, None if visible.all() else \
            torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -math.inf)


class _Groups:
    """The rows of a batch by shape: how many queries, keys, and, where the mask asks, context events and targets.

    shapes: of each group; queries, keys: the two sides, each group of rows one contiguous slice of either.
    """

    def __init__(self, table: Tensor):
        shapes = table.diff() if len(table) < 4 else torch.cat([table[:2].diff(), table[2:, :-1]])
        same = len(shapes) == 1 or torch.equal(shapes[0], shapes[1])
        number = _numbered(shapes)
        order = None if bool((number.diff() >= 0).all()) else number.argsort(stable=True)
        sizes = (number if order is None else number[order]).unique_consecutive(return_counts=True)[1]
        first = sizes.cumsum(0) - sizes
        kinds = shapes[:, first if order is None else order[first]].T.tolist()
        self.shapes = [tuple(kind) if len(kind) > 1 else (kind[0], kind[0]) for kind in kinds]
        groups = list(zip(sizes.tolist(), self.shapes, strict=True))
        self.queries = _Side(shapes[0], order, [(rows, shape[0]) for rows, shape in groups])
        self.keys = self.queries if same else _Side(shapes[1], order, [(rows, shape[1]) for rows, shape in groups])


def _numbered(shapes: Tensor) -> Tensor:
    """Return a number `(B,)` for each row: equal for rows of one shape, in the order of the shapes."""
    number = shapes[0]
    for column in shapes[1:]:
        base = column.amax() + 1 if len(column) else 1
        number = number.unique(return_inverse=True)[1] * base + column  # of the ranks: no overflow
    return number


class _Side:
    """The queries or the keys of a batch, group after group; rows that come in this order already are not moved."""

    def __init__(self, lengths: Tensor, order: Tensor | None, shapes: list[tuple[int, int]]):
        self._shapes = shapes
        self._sizes = [rows * length for rows, length in shapes]
        self._order: Tensor | None = None
        if order is not None:
            begins, lengths = (lengths.cumsum(0) - lengths)[order], lengths[order]
            shift = torch.repeat_interleave(begins - (lengths.cumsum(0) - lengths), lengths)
            self._order = shift + torch.arange(shift.shape[0])

    def dense(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return for each group its part of all tensors `(T, H, ...)`, as `(rows, H, length, ...)`."""
        if not self._sizes:
            return []
        parts = [(x if self._order is None else x.index_select(0, self._order)).split(self._sizes) for x in tensors]
        return [tuple(part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in group)
                for shape, group in zip(self._shapes, zip(*parts, strict=True), strict=True)]

    def gather(self, empty: Tensor, parts: list[Tensor]) -> Tensor:
        """Put the results `(rows, H, length, ...)` of all groups back into the order of the events, `(T, H, ...)`."""
        if not parts:
            return empty
        events = [part.transpose(1, 2).flatten(0, 1) for part in parts]
        if self._order is None:
            return torch.cat(events, out=empty)
        return empty.index_copy_(0, self._order, torch.cat(events))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:2], v.shape[2])), q.new_empty(q.shape[:2], dtype=_wide(q))


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: list[int], scale: float) -> tuple[Tensor, Tensor]:
    return _outputs(q, v)


@_backward.register_fake
def _(grad: Tensor, saved: list[Tensor], table: Tensor, mask: list[int],
      scale: float) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in saved[:3])
    return dq, dk, dv


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, table, ctx.mask, ctx.scale = inputs
    ctx.save_for_backward(table, q, k, v, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad: Tensor | None, grad_lse: Tensor | None):
    if grad is None and grad_lse is None:
        return None, None, None, None, None, None
    table, q, k, v, out, lse = ctx.saved_tensors
    width = q.shape[2]
    grad = torch.zeros_like(out) if grad is None else grad
    if grad_lse is not None:
        # the gradient of a score is p · (grad · v - grad · out + grad_lse): one more column of ones in v, of grad_lse
        # in grad and of zeros in out makes it so
        grad = torch.cat([grad, grad_lse[..., None].to(grad.dtype)], -1)
        q, k, out, v = pad(q, (0, 1)), pad(k, (0, 1)), pad(out, (0, 1)), pad(v, (0, 1), value=1.0)
    grads = _backward(grad, [q, k, v, out, lse], table, ctx.mask, ctx.scale)
    return *(grads if grad_lse is None else (x[..., :width] for x in grads)), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
