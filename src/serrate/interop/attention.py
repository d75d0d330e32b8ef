"""Attention under the names, the order and the meanings that other libraries gave its arguments.

What is not served is refused with `InvalidArgument`, never ignored. Errors in what is passed on come from
`serrate.ops.attention.attention` and name its arguments. Dropout draws from torch's default generator of the device;
which weights it drops differs from the other library.
"""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from ..errors import InvalidArgument, suggest
from ..ops.attention import Mask, Weights, attention


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Attend as `flash_attn.flash_attn_varlen_func` of FlashAttention 2.8 does: `(T, H, D)` → `(T, H, Dv)`.

    Beyond it: the CPU, float32 and float64, offsets of int64, any head width, values of another width.

    Args:
        q: `(T, H, D)` queries.
        k: `(S, G, D)` keys; `G` divides `H`.
        v: `(S, G, Dv)` values.
        cu_seqlens_q: `(B + 1,)` int32 or int64, the rows of queries.
        cu_seqlens_k: `(B + 1,)`, those of keys; pass the same tensor in self-attention, as it is faster.
        max_seqlen_q: length of the longest row of queries, or a bound; a tensor is not read.
        max_seqlen_k: the same of keys.
        dropout_p: share of the weights that is dropped; pass 0 in evaluation.
        softmax_scale: factor on the scores; `1 / sqrt(D)` when None.
        causal: each query sees up to its own position; the last query stands at the last key (bottom right).
        window_size: how many positions a query sees to its left and to its right; -1 is no limit.
        softcap: 0 only.
        alibi_slopes: None only.
        deterministic: either; the backward pass always is.
        return_attn_probs: False only.
        block_table: None only.

    Raises:
        InvalidArgument: what is not served, shapes that do not fit.
    """
    for name, value, served in (("softcap", softcap, 0.0), ("alibi_slopes", alibi_slopes, None),
                                ("return_attn_probs", return_attn_probs, False), ("block_table", block_table, None)):
        _refuse(name, value, served)
    _require_packed(q=q)
    _require_offsets(cu_seqlens_k=cu_seqlens_k)
    return _attend((q, k, v), (cu_seqlens_q, cu_seqlens_k), _mask(window_size, causal), softmax_scale, dropout_p,
                   longest=_known(max_seqlen_q, max_seqlen_k))


class VarlenOptions(TypedDict, total=False):
    """What `varlen_attn` takes by name; scale, window and grouping are served, the rest may be what it is by default.

    scale: factor on the scores; window_size: (left, right), -1 is no limit, (-1, 0) is causal; enable_gqa: allow fewer
    heads of keys than of queries.
    """

    return_aux: Any
    scale: float | None
    window_size: Sequence[int]
    enable_gqa: bool
    seqused_k: Tensor | None
    block_table: Tensor | None
    num_splits: int | None


def varlen_attn(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
                **options: Unpack[VarlenOptions]) -> Tensor:
    """Attend as `torch.nn.attention.varlen.varlen_attn` of torch 2.13 does: `(T, H, D)` → `(T, H, Dv)`.

    Args:
        query: `(T, H, D)`.
        key: `(S, G, D)`; `G` is `H`, or divides it with `enable_gqa`.
        value: `(S, G, Dv)`.
        cu_seq_q: `(B + 1,)` int32 or int64, the rows of queries.
        cu_seq_k: `(B + 1,)`, those of keys; pass the same tensor in self-attention, as it is faster.
        max_q: length of the longest row of queries, or a bound.
        max_k: the same of keys.
        options: see `VarlenOptions`; `return_aux` may request nothing, `seqused_k`, `block_table` and `num_splits` are
            None.

    Raises:
        InvalidArgument: what is not served, shapes that do not fit.
    """
    known = list(VarlenOptions.__annotations__)
    for name in options:
        if name not in known:
            raise InvalidArgument("varlen_attn", f"options among {', '.join(known)}{suggest(name, known)}", name)
    for name in ("seqused_k", "block_table", "num_splits"):
        _refuse(name, options.get(name), None)
    wanted = options.get("return_aux")
    if getattr(wanted, "lse", wanted):
        told = "None, as attention(..., return_lse=True) is what gives the log-sum-exp"
        raise InvalidArgument("return_aux", told, repr(wanted))
    _require_offsets(cu_seq_k=cu_seq_k)
    _require_packed(query=query, key=key)
    _require_heads(query.shape[1], key.shape[1], options.get("enable_gqa", False))
    return _attend((query, key, value), (cu_seq_q, cu_seq_k), _mask(options.get("window_size", (-1, -1))),
                   options.get("scale"), longest=_known(max_q, max_k))


def nested_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                     dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
                     enable_gqa: bool = False) -> Tensor:
    """Attend as `torch.nn.functional.scaled_dot_product_attention` does over nested tensors of layout `torch.jagged`.

    Nothing is copied on the way in or out: their values and offsets are what our kernels take.

    Args:
        query: `(B, H, ragged, D)`, as `(B, ragged, H, D)` is after `transpose(1, 2)`.
        key: `(B, G, ragged, D)`; `G` is `H`, or divides it with `enable_gqa`. With the offsets of `query` this is
            self-attention, with others cross-attention.
        value: `(B, G, ragged, Dv)`, with the offsets of `key`.
        attn_mask: None only.
        dropout_p: share of the weights that is dropped; pass 0 in evaluation.
        is_causal: each event sees itself and what stands before it; in self-attention only, as libraries disagree on
            where the diagonal is otherwise.
        scale: factor on the scores; `1 / sqrt(D)` when None.
        enable_gqa: allow fewer heads of keys than of queries.

    Returns:
        `(B, H, ragged, Dv)`, nested, with the offsets of `query`.

    Raises:
        InvalidArgument: other tensors, nested ones with holes, what is not served, shapes that do not fit.
    """
    _refuse("attn_mask", attn_mask, None)
    (q, ours), (k, theirs), (v, _) = (_open(*x) for x in (("query", query), ("key", key), ("value", value)))
    if key.shape[2] != value.shape[2]:  # symbols of the offsets they were made from
        raise InvalidArgument("value", "the offsets of key (the same tensor)", "others")
    itself = query.shape[2] == key.shape[2]
    if is_causal and not itself:
        told = "False where query and key are not made from the same offsets tensor"
        raise InvalidArgument("is_causal", told, is_causal)
    _require_heads(q.shape[1], k.shape[1], enable_gqa)
    out = _attend((q, k, v), (ours, ours if itself else theirs), Mask(causal=is_causal), scale, dropout_p)
    return torch.nested.nested_tensor_from_jagged(out, ours).transpose(1, 2)


def _attend(qkv: tuple[Tensor, Tensor, Tensor], offsets: tuple[Tensor, Tensor], mask: Mask, scale: float | None,
            dropout: float = 0.0, *, longest: tuple[int, int] | None = None) -> Tensor:
    ours, theirs = offsets
    if not 0 <= dropout < 1:
        raise InvalidArgument("dropout_p", "a number from 0 to below 1", dropout)
    return attention(*qkv, ours, kv_offsets=None if theirs is ours else theirs, mask=mask, scale=scale,
                     longest=longest, weights=Weights(dropout=dropout).drawn(ours.device))


def _open(name: str, nested: Tensor) -> tuple[Tensor, Tensor]:
    """Return values `(T, H, D)` and offsets `(B + 1,)` of a nested tensor `(B, H, ragged, D)`."""
    if not isinstance(nested, Tensor) or not nested.is_nested or nested.layout != torch.jagged:
        got = f"layout {nested.layout}" if isinstance(nested, Tensor) else type(nested).__name__
        raise InvalidArgument(name, "a nested tensor of layout torch.jagged", got)
    # no public name tells the ragged axis where torch.compile traces: sizes all look like integers there
    if nested.dim() != 4 or nested._ragged_idx != 2:  # type: ignore[attr-defined]
        raise InvalidArgument(name, "shape (B, H, ragged, D)", tuple(nested.shape))
    packed = nested.transpose(1, 2)
    # NestedTensor gives `lengths`, but the type of a tensor does not say so
    if packed.lengths() is not None:  # type: ignore[attr-defined]
        raise InvalidArgument(name, "rows without holes", "a nested tensor with lengths beside its offsets")
    return packed.values(), packed.offsets()  # type: ignore[attr-defined]


def _mask(window: Sequence[int], causal: bool = False) -> Mask:
    if len(window) != 2 or any(side < -1 for side in window):
        raise InvalidArgument("window_size", "(left, right), each -1 for no limit or 0 and more", window)
    left, right = (None if side == -1 else side for side in window)
    return Mask(causal=causal or right == 0, window=(left, right))


def _known(ours: int | Tensor, theirs: int | Tensor) -> tuple[int, int] | None:
    """Return the bounds where the host has them; a tensor is left alone, as reading it would wait for the device."""
    return None if isinstance(ours, Tensor) or isinstance(theirs, Tensor) else (ours, theirs)


def _require_packed(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() != 3:  # attention would take queries with four axes for dense ones
            raise InvalidArgument(name, "shape (T, H, D)", tuple(tensor.shape))


def _require_offsets(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):  # attention would take None for the offsets of queries
            raise InvalidArgument(name, "offsets (B + 1,)", tensor)


def _require_heads(ours: int, theirs: int, grouped: bool) -> None:
    if ours != theirs and not grouped:
        raise InvalidArgument("key", f"{ours} heads, as the queries have, or enable_gqa=True", theirs)


def _refuse(name: str, value: Any, served: Any) -> None:
    if isinstance(value, Tensor) or value != served:
        got = "a tensor" if isinstance(value, Tensor) else value
        raise InvalidArgument(name, f"{served}, as nothing else is served", got)
