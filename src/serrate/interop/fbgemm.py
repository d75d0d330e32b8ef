"""The operators that FBGEMM published for jagged tensors, `torch.ops.fbgemm.…`, answered by ours: call `register()`.

Names, order, defaults and results are theirs, and so is the rule of truncation: what lies past `max_seq_len` of a row
is 0 in results of its own and gets no gradient; adding keeps what was there. What was wrong is not: rows longer than
`max_seq_len` and scores of any size give right answers, any width and number of rows is served, so are float64, half
precision and the CPU, everything is differentiable and traced by `torch.compile`. `allow_tf32` and `use_fbgemm_kernel`
make no difference: float32 products are those that `torch.backends.cuda.matmul.allow_tf32` says.

Where a result is as large as offsets on a GPU say and no argument tells how large, the host waits for them:
dense_to_jagged without `total_L`, jagged_index_select without `num_dense_output_rows`, slices, truncation and selection
of values, products and differences of pairs. Where a row may be longer than `max_seq_len`, which nobody knows on a GPU
unless there are no more events than that, events are looked at once more to be cut.

Not there: jagged_unique_indices (`serrate.ops.pool.unique` is), keyed_jagged_index_select_dim1,
jagged_hash_size_cumsum, expand_into_jagged_permute, and the `…_forward` and `…_backward` halves of operators.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NotUsable
from ..jagged import JaggedTensor, gather_rows, offsets_from_lengths, oldest
from ..jagged.edit import take_events
from ..jagged.tensor import readable
from ..ops.attention import Mask, attention
from ..ops.blocks import (
    block_differences,
    block_matmul,
    block_multiply,
    block_products,
    block_softmax,
    from_padded_blocks,
    to_padded_blocks,
)
from ..ops.bmm import jagged_dense_bmm, jagged_jagged_bmm
from ..ops.broadcast import add, multiply
from ..ops.concat import concatenate, from_padded, to_padded
from ..ops.pool import pool, softmax

_LIBRARY = "fbgemm_gpu"


@cache
def register() -> tuple[str, ...]:
    """Define the operators as `torch.ops.fbgemm.…`; return their names. A second call changes nothing.

    FBGEMM itself cannot be loaded into the same process, before or after: one name has one operator.

    Raises:
        NotUsable: FBGEMM, or somebody else, has defined some of them.
    """
    taken = [name for name in _OPERATORS if hasattr(torch.ops.fbgemm, name)]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise NotUsable(f"torch.ops.fbgemm.{taken[0]}{more} exist already: ours cannot stand in for {_LIBRARY} "
                        f"in a process that has loaded it")
    library = torch.library.Library("fbgemm", "FRAGMENT")
    _LIBRARIES.append(library)
    for name, (signature, compute) in _OPERATORS.items():
        library.define(name + signature)
        library.impl(name, compute, "CompositeImplicitAutograd")
    sys.meta_path.insert(0, _Finder())
    return tuple(_OPERATORS)


_LIBRARIES: list[torch.library.Library] = []  # what they define goes with them


class _Finder(MetaPathFinder):
    """Finds FBGEMM where it is installed, but lets nobody load it: two operators of a name end the process."""

    def find_spec(self, fullname: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == _LIBRARY else None
        if spec is not None:
            spec.loader = _Refusing()
        return spec


class _Refusing(Loader):
    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(f"{_LIBRARY} cannot be loaded: serrate.interop.fbgemm.register() has defined its operators")


# --- truncation ---


def _longer(offsets: Tensor, most: int) -> bool:
    """Whether a row may be longer than `most`: on an accelerator nobody looks."""
    return not readable(offsets) or bool((offsets.diff() > most).any())


def _cut(x: Tensor, offsets: Tensor, most: int) -> Tensor:
    """Return events `(T, *)`, 0 where they are not among the first `most` of their row."""
    if x.shape[0] <= most or not _longer(offsets, most):
        return x
    first = torch.ones((), dtype=torch.bool, device=x.device).expand(offsets.shape[0] - 1, most)
    inside = from_padded(first, offsets, num_events=x.shape[0])
    return x.where(inside.view(-1, *[1] * (x.dim() - 1)), 0)


def _apart(offsets: Tensor, events: int, most: int) -> Tensor:
    """Return offsets of rows that end after `most` events, the rest of each a row of its own: they do not mix."""
    if events <= most or not _longer(offsets, most):
        return offsets
    begins = offsets[:-1]
    both = torch.stack([begins, begins + offsets.diff().clamp(max=most)], 1)
    return torch.cat([both.flatten(), offsets[-1:]])


def _pairs_cut(x: Tensor, offsets: Tensor, most: int, fill: float = 0.0) -> Tensor:
    """Return pairs `(P,)`, `fill` where one event is not among the first `most` of their row."""
    if x.shape[0] <= most * most or not _longer(offsets, most):
        return x
    first = torch.ones((), dtype=torch.bool, device=x.device).expand(offsets.shape[0] - 1, most, most)
    return x.where(from_padded_blocks(first, offsets, pairs=x.shape[0]), fill)


# --- sequence learning ---


def _sll_jagged_dense_bmm(x: Tensor, y: Tensor, x_offsets: Tensor, most: int, *_: bool) -> Tensor:
    return jagged_dense_bmm(_cut(x, x_offsets, most), y, x_offsets)


def _sll_jagged_jagged_bmm(x: Tensor, y: Tensor, x_offsets: Tensor, most: int, *_: bool) -> Tensor:
    return jagged_jagged_bmm(_cut(x, x_offsets, most), _cut(y, x_offsets, most), x_offsets)


def _sll_jagged_softmax(x: Tensor, x_offsets: Tensor, most: int, *_: bool) -> Tensor:
    return _cut(softmax(x, _apart(x_offsets, x.shape[0], most)), x_offsets, most)


def _sll_jagged2_softmax(x: Tensor, offsets: Tensor, offsets_total: Tensor, most: int, transpose: bool) -> Tensor:
    """Take the softmax of each query over keys, of each key over queries where `transpose`."""
    seen = _pairs_cut(x, offsets, most, -torch.inf)
    return block_softmax(seen, offsets, over="queries" if transpose else "keys")


def _sll_array_jagged_bmm_jagged_out(x: Tensor, y: Tensor, x_lengths: Tensor, x_offsets: Tensor, y_lengths: Tensor,
                                     y_offsets: Tensor, *rest: Any) -> Tensor:
    _, _, most, _ = rest  # of the result: lengths, offsets
    return _cut(block_matmul(x, _cut(y, y_offsets, most), y_offsets), y_offsets, most)


def _sll_jagged_jagged_bmm_jagged_out(x: Tensor, y: Tensor, x_lengths: Tensor, x_offsets: Tensor, *rest: Any) -> Tensor:
    _, _, _, z_offsets, most, _ = rest  # of the keys and the result: lengths, offsets
    x, y = (_cut(each, x_offsets, most) for each in (x, y))
    return block_products(x, y, x_offsets, pairs=int(z_offsets[-1]))


def _sll_jagged_flash_attention_basic(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, most: int,
                                      use_mask: bool = False, allow_tf32: bool = True) -> Tensor:
    """Attend by `softmax(Q Kᵀ) / most`; with `use_mask` what is before the query is left out after the softmax."""
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))
    if not use_mask:
        return _attended(q, k, v, offsets, most).squeeze(1)
    rows = _apart(offsets, q.shape[0], most)
    _, every = attention(q, k, v, rows, scale=1.0, return_lse=True)
    out, later = attention(q, k, v, rows, scale=1.0, mask=Mask(window=(0, None)), return_lse=True)
    share = (later - every).exp() / max(most, 1)  # of the weights, that those have which stay
    return _cut((out * share[:, :, None]).to(q.dtype).squeeze(1), offsets, most)


def _sll_multi_head_jagged_flash_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, most: int,
                                           allow_tf32: bool = True) -> Tensor:
    """The same of heads `(H, T, D)`."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return _attended(q, k, v, offsets, most).transpose(0, 1)


def _attended(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, most: int) -> Tensor:
    out = attention(q, k, v, _apart(offsets, q.shape[0], most), scale=1.0)
    return _cut(out / max(most, 1), offsets, most)


def _sll_jagged_dense_flash_attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor, offsets: Tensor, most: int,
                                      allow_tf32: bool = True) -> Tensor:
    """Attend from dense queries `k` `(B, D, K)` over events: the softmax of each goes over those of its row."""
    scores = jagged_dense_bmm(q, k.to(q.dtype), offsets)
    scores = _sll_jagged_dense_elementwise_add(scores, offsets, attn_bias.to(q.dtype), most)
    weights = _sll_jagged_softmax(scores, offsets, most)
    return jagged_jagged_bmm(weights, _cut(v, offsets, most).to(weights.dtype), offsets)


def _sll_jagged_dense_elementwise_add(x: Tensor, x_offsets: Tensor, y: Tensor, most: int, *_: bool) -> Tensor:
    return _with_cells(x, [x_offsets], y[:, :most], add)


def _sll_jagged_dense_elementwise_mul_jagged_out(x: Tensor, y: Tensor, x_seq_lengths: Tensor, x_offsets: Tensor,
                                                 most: int) -> Tensor:
    square = y[:most, :most] if y.dtype == torch.bool else y[:most, :most].to(x.dtype)
    offsets = offsets_from_lengths(x_seq_lengths.long())
    if x.is_cpu:  # where block_multiply refuses a square smaller than the longest row
        every = square.expand(offsets.shape[0] - 1, *square.shape)
        return x * from_padded_blocks(every, offsets, pairs=x.shape[0])
    return block_multiply(x, square, offsets)


def _sll_jagged2_to_padded_dense(values: Tensor, offsets: Tensor, max_length: int, padding_value: float) -> Tensor:
    sides = offsets.diff().double().sqrt().round().long()  # exact: of squares below 2**52
    return to_padded_blocks(values, offsets_from_lengths(sides), max_length, fill=padding_value)


def _sll_dense_jagged_cat_jagged_out(a: Tensor, b: Tensor, b_offsets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    return concatenate([a[:, None], _cut(b, b_offsets, most)], [None, b_offsets])


def _sll_jagged_self_substraction_jagged_out(a: Tensor, offsets_a: Tensor, offsets_b: Tensor, most: int) -> Tensor:
    """Subtract from every event but the last of its row every event but the first."""
    lengths = (offsets_a.diff() - 1).clamp(min=0)
    events, pairs = torch.stack([lengths.sum(), offsets_b[-1]]).tolist()
    begins, rows = offsets_a[:-1], JaggedTensor.trusted(a, offsets_a)
    left, right = (take_events(rows, first, lengths, events) for first in (begins, begins + 1))
    out = block_differences(left.values, right.values, left.offsets, pairs=pairs)
    return _pairs_cut(out, left.offsets, max(most - 1, 0))


# --- jagged tensors of one and more jagged axes ---


def _jagged_to_padded_dense(values: Tensor, offsets: Sequence[Tensor], max_lengths: Sequence[int],
                            padding_value: float = 0.0) -> Tensor:
    for own, length in zip(reversed(offsets), reversed(max_lengths), strict=True):  # from the inside out
        values = to_padded(values, own, length, fill=padding_value)
    return values


def _dense_to_jagged(dense: Tensor, x_offsets: Sequence[Tensor],
                     total_L: int | None = None) -> tuple[Tensor, list[Tensor]]:  # noqa: N803
    return _taken(dense, x_offsets, int(x_offsets[-1][-1]) if total_L is None else total_L), list(x_offsets)


def _taken(dense: Tensor, offsets: Sequence[Tensor], events: int) -> Tensor:
    """Return events `(T, *)` from cells `(B, N, …, *)`."""
    rows = [*(own.shape[0] - 1 for own in offsets[1:]), events]
    for own, count in zip(offsets, rows, strict=True):
        dense = from_padded(dense, own, num_events=count)
    return dense


def _with_cells(x: Tensor, offsets: Sequence[Tensor], y: Tensor, operation: Callable[..., Tensor]) -> Tensor:
    """Add or multiply events with cells `(B, N, …, *)`, which count as 0 past the last: see `ops.broadcast`."""
    if x.is_cpu or len(offsets) > 1 or not x.is_floating_point():  # on a CPU rows longer than N are refused there
        cells = _taken(y, offsets, x.shape[0])
        return x + cells if operation is add else x * cells
    return operation(x, y, offsets[0], along="both")


def _jagged_1d_to_dense(values: Tensor, offsets: Tensor, max_sequence_length: int, padding_value: int) -> Tensor:
    return to_padded(values, offsets, max_sequence_length, fill=padding_value)


def _jagged_2d_to_dense(values: Tensor, offsets: Tensor, max_sequence_length: int) -> Tensor:
    return to_padded(values, offsets, max_sequence_length)


def _stacked_jagged_to_dense(values: Tensor, lengths: Tensor, offset_per_key: Sequence[int],
                             max_lengths_per_key: Sequence[int], padding_value: int = 0) -> list[Tensor]:
    """Return one padded tensor a key; `lengths` `(keys, B)`, key `i` has the events from `offset_per_key[i]` on."""
    return [to_padded(values[begin:end], offsets_from_lengths(own), most, fill=padding_value)
            for own, begin, end, most in zip(lengths, offset_per_key[:-1], offset_per_key[1:], max_lengths_per_key,
                                             strict=True)]


def _jagged_dense_elementwise_add(x_values: Tensor, x_offsets: Sequence[Tensor], y: Tensor) -> Tensor:
    return _jagged_to_padded_dense(x_values, x_offsets, y.shape[1:1 + len(x_offsets)]) + y


def _jagged_dense_elementwise_add_jagged_output(x_values: Tensor, x_offsets: Sequence[Tensor],
                                                y: Tensor) -> tuple[Tensor, list[Tensor]]:
    return _with_cells(x_values, x_offsets, y, add), list(x_offsets)


def _jagged_dense_dense_elementwise_add_jagged_output(x_values: Tensor, x_offsets: Sequence[Tensor], y_0: Tensor,
                                                      y_1: Tensor) -> tuple[Tensor, list[Tensor]]:
    return _with_cells(_with_cells(x_values, x_offsets, y_0, add), x_offsets, y_1, add), list(x_offsets)


def _jagged_dense_elementwise_mul(x_values: Tensor, x_offsets: Sequence[Tensor],
                                  y: Tensor) -> tuple[Tensor, list[Tensor]]:
    return _with_cells(x_values, x_offsets, y, multiply), list(x_offsets)


def _batched_dense_vec_jagged_2d_mul(v: Tensor, a_values: Tensor, a_offsets: Tensor) -> Tensor:
    """Return for each row and head the sum of its events `(T, H D)`, weighted by `v` `(B H, N)`: `(B H, D)`."""
    rows, events = a_offsets.shape[0] - 1, a_values.shape[0]
    heads = v.shape[0] // rows if rows else 1
    weights = from_padded(v.view(rows, heads, v.shape[1]).transpose(1, 2), a_offsets, num_events=events)
    return pool(a_values.unflatten(1, (heads, -1)), a_offsets, how="sum", weights=weights).flatten(0, 1)


def _jagged_softmax(values: Tensor, x_offsets: Tensor, max_L: int) -> tuple[Tensor, Tensor]:  # noqa: N803
    return _sll_jagged_softmax(values, x_offsets, max_L), x_offsets


def _jagged_jagged_bmm(x_values: Tensor, y_values: Tensor, x_offsets: Tensor, max_L: int) -> Tensor:  # noqa: N803
    return _sll_jagged_jagged_bmm(x_values, y_values, x_offsets, max_L)


def _jagged_dense_bmm(x_values: Tensor, x_offsets: Tensor, y: Tensor,
                      max_L: int) -> tuple[Tensor, Tensor]:  # noqa: N803
    return _sll_jagged_dense_bmm(x_values, y, x_offsets, max_L), x_offsets


# --- rows and events that are chosen ---


def _jagged_index_select(values: Tensor, lengths: Tensor, indices: Tensor,
                         num_dense_output_rows: int | None = None) -> list[Tensor]:
    rows = JaggedTensor.trusted(values, offsets_from_lengths(lengths))
    return [gather_rows(rows, indices, num_events=num_dense_output_rows).values, lengths[indices]]


def _jagged_1d_to_truncated_values(values: Tensor, lengths: Tensor, max_truncated_length: int) -> Tensor:
    return oldest(JaggedTensor.trusted(values, offsets_from_lengths(lengths)), max_truncated_length).values


def _masked_select_jagged_1d(values: Tensor, lengths: Tensor, mask: Tensor,
                             check_length: bool | None = False) -> tuple[Tensor, Tensor]:
    before = offsets_from_lengths(mask.long())
    return values[mask], before[offsets_from_lengths(lengths.long())].diff().to(lengths.dtype)


def _jagged_slice(x_values: Tensor, x_lengths: Tensor, start: Tensor, slice_length: int) -> tuple[Tensor, Tensor]:
    begins = offsets_from_lengths(x_lengths)
    lengths = (x_lengths - start).clamp(min=0, max=slice_length)
    rows = take_events(JaggedTensor.trusted(x_values, begins), begins[:-1] + start, lengths)
    return rows.values, lengths


def _asynchronous_complete_cumsum(t_in: Tensor) -> Tensor:
    return F.pad(t_in.cumsum(-1, dtype=t_in.dtype), (1, 0))


def _asynchronous_inclusive_cumsum(t_in: Tensor) -> Tensor:
    return t_in.flatten().cumsum(0, dtype=t_in.dtype).view(t_in.shape)


def _asynchronous_exclusive_cumsum(t_in: Tensor) -> Tensor:
    return _asynchronous_inclusive_cumsum(t_in) - t_in


# name → the published signature, ours
_BLOCK_BMM = ("(Tensor x, Tensor y, Tensor x_lengths, Tensor x_offsets, Tensor y_lengths, Tensor y_offsets, "
              "Tensor z_lengths, Tensor z_offsets, int max_seq_len, bool allow_tf32) -> Tensor")
_STACKED = ("(Tensor values, Tensor lengths, int[] offset_per_key, int[] max_lengths_per_key, "
            "int padding_value{}) -> Tensor[]")
_OPERATORS: dict[str, tuple[str, Callable[..., Any]]] = {
    "sll_jagged_dense_bmm": (
        "(Tensor x, Tensor y, Tensor x_offsets, int N, bool allow_tf32, bool use_fbgemm_kernel=True) -> Tensor",
        _sll_jagged_dense_bmm),
    "sll_jagged_jagged_bmm": (
        "(Tensor x, Tensor y, Tensor x_offsets, int N, bool allow_tf32, bool use_fbgemm_kernel=True) -> Tensor",
        _sll_jagged_jagged_bmm),
    "sll_jagged_softmax": (
        "(Tensor x, Tensor x_offsets, int max_seq_len, bool use_fbgemm_kernel=True) -> Tensor", _sll_jagged_softmax),
    "sll_jagged2_softmax": (
        "(Tensor x, Tensor offsets, Tensor offsets_total, int max_seq_len, bool transpose) -> Tensor",
        _sll_jagged2_softmax),
    "sll_array_jagged_bmm_jagged_out": (_BLOCK_BMM, _sll_array_jagged_bmm_jagged_out),
    "sll_jagged_jagged_bmm_jagged_out": (_BLOCK_BMM, _sll_jagged_jagged_bmm_jagged_out),
    "sll_jagged_flash_attention_basic": (
        "(Tensor q_weights, Tensor k_weights, Tensor v_weights, Tensor offsets, int max_seq_len, bool use_mask=False, "
        "bool allow_tf32=True) -> Tensor", _sll_jagged_flash_attention_basic),
    "sll_multi_head_jagged_flash_attention": (
        "(Tensor q_weights, Tensor k_weights, Tensor v_weights, Tensor offsets, int max_seq_len, "
        "bool allow_tf32=True) -> Tensor", _sll_multi_head_jagged_flash_attention),
    "sll_jagged_dense_flash_attention": (
        "(Tensor q_weights, Tensor k_weights, Tensor v_weights, Tensor attn_bias, Tensor offsets, int max_seq_len, "
        "bool allow_tf32=True) -> Tensor", _sll_jagged_dense_flash_attention),
    "sll_jagged_dense_elementwise_add": (
        "(Tensor x, Tensor x_offsets, Tensor y, int max_seq_len, bool use_fbgemm_kernel=True) -> Tensor",
        _sll_jagged_dense_elementwise_add),
    "sll_jagged_dense_elementwise_mul_jagged_out": (
        "(Tensor x, Tensor y, Tensor x_seq_lengths, Tensor x_offsets, int max_seq_len) -> Tensor",
        _sll_jagged_dense_elementwise_mul_jagged_out),
    "sll_jagged2_to_padded_dense": (
        "(Tensor values, Tensor offsets, int max_length, float padding_value) -> Tensor", _sll_jagged2_to_padded_dense),
    "sll_dense_jagged_cat_jagged_out": (
        "(Tensor a, Tensor b, Tensor a_offsets, int max_seq_len) -> (Tensor, Tensor)",
        _sll_dense_jagged_cat_jagged_out),
    "sll_jagged_self_substraction_jagged_out": (
        "(Tensor a, Tensor offsets_a, Tensor offsets_b, int max_seq_len) -> Tensor",
        _sll_jagged_self_substraction_jagged_out),
    "dense_to_jagged": (
        "(Tensor dense, Tensor[] x_offsets, SymInt? total_L=None) -> (Tensor, Tensor[])", _dense_to_jagged),
    "jagged_to_padded_dense": (
        "(Tensor values, Tensor[] offsets, SymInt[] max_lengths, float padding_value=0.) -> Tensor",
        _jagged_to_padded_dense),
    "jagged_1d_to_dense": (
        "(Tensor values, Tensor offsets, SymInt max_sequence_length, int padding_value) -> Tensor",
        _jagged_1d_to_dense),
    "jagged_2d_to_dense": (
        "(Tensor values, Tensor offsets, SymInt max_sequence_length) -> Tensor", _jagged_2d_to_dense),
    "stacked_jagged_1d_to_dense": (_STACKED.format(""), _stacked_jagged_to_dense),
    "stacked_jagged_2d_to_dense": (_STACKED.format("=0"), _stacked_jagged_to_dense),
    "jagged_dense_elementwise_add": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y) -> Tensor", _jagged_dense_elementwise_add),
    "jagged_dense_elementwise_add_jagged_output": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y) -> (Tensor, Tensor[])",
        _jagged_dense_elementwise_add_jagged_output),
    "jagged_dense_dense_elementwise_add_jagged_output": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y_0, Tensor y_1) -> (Tensor, Tensor[])",
        _jagged_dense_dense_elementwise_add_jagged_output),
    "jagged_dense_elementwise_mul": (
        "(Tensor x_values, Tensor[] x_offsets, Tensor y) -> (Tensor, Tensor[])", _jagged_dense_elementwise_mul),
    "batched_dense_vec_jagged_2d_mul": (
        "(Tensor v, Tensor a_values, Tensor a_offsets) -> Tensor", _batched_dense_vec_jagged_2d_mul),
    "jagged_softmax": ("(Tensor values, Tensor x_offsets, int max_L) -> (Tensor, Tensor)", _jagged_softmax),
    "jagged_jagged_bmm": (
        "(Tensor x_values, Tensor y_values, Tensor x_offsets, int max_L) -> Tensor", _jagged_jagged_bmm),
    "jagged_dense_bmm": (
        "(Tensor x_values, Tensor x_offsets, Tensor y, int max_L) -> (Tensor, Tensor)", _jagged_dense_bmm),
    "jagged_index_select": (
        "(Tensor values, Tensor lengths, Tensor indices, int? num_dense_output_rows=None) -> Tensor[]",
        _jagged_index_select),
    "jagged_1d_to_truncated_values": (
        "(Tensor values, Tensor lengths, int max_truncated_length) -> Tensor", _jagged_1d_to_truncated_values),
    "masked_select_jagged_1d": (
        "(Tensor values, Tensor lengths, Tensor mask, bool? check_length=False) -> (Tensor, Tensor)",
        _masked_select_jagged_1d),
    "jagged_slice": (
        "(Tensor x_values, Tensor x_lengths, Tensor start, int slice_length) -> (Tensor, Tensor)", _jagged_slice),
    "asynchronous_complete_cumsum": ("(Tensor t_in) -> Tensor", _asynchronous_complete_cumsum),
    "asynchronous_inclusive_cumsum": ("(Tensor t_in) -> Tensor", _asynchronous_inclusive_cumsum),
    "asynchronous_exclusive_cumsum": ("(Tensor t_in) -> Tensor", _asynchronous_exclusive_cumsum),
}
