"""FBGEMM's operators by their published names: each against its definition, row by row in float64, and its defects."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from serrate.interop.fbgemm import register
from serrate.testing import assert_within_budget

LENGTHS = (3, 0, 7, 1, 5)
OUTER = (0, 2, 5)  # offsets of two rows over these
EVERY, CUT = 7, 4  # max_seq_len: of the longest row, and one that cuts two

every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

if find_spec("fbgemm_gpu") is not None:
    pytest.skip("fbgemm_gpu is installed, and other tests of this process may load it", allow_module_level=True)


@pytest.fixture(scope="module")
def fbgemm():
    register()
    return torch.ops.fbgemm


def batch(most: int = EVERY, device: str = "cpu", dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Return tensors of these rows by the names that the calls below use; those of floating dtype ask for gradients."""
    generator = torch.Generator().manual_seed(3)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    rows, events, pairs = len(LENGTHS), sum(LENGTHS), sum(n * n for n in LENGTHS)
    lengths = torch.tensor(LENGTHS, device=device)
    squares, less = lengths * lengths, (lengths - 1).clamp(min=0)
    return SimpleNamespace(
        most=most, lengths=lengths, squares=squares, offsets=offsets_of(lengths), blocks=offsets_of(squares),
        smaller_blocks=offsets_of(less * less), outer=torch.tensor(OUTER, device=device), spans=list(spans(LENGTHS)),
        x=made(events, 6), w=made(events, 6), v=made(events, 6), z=made(events, 3), one=made(events),
        first=made(rows), y=made(rows, 6, 3), p=made(pairs), square=made(most, most), heads=made(3, 2, events, 5),
        bias=made(rows, most, 3), dense=made(rows, most, 6), other=made(rows, most, 6), vectors=made(rows * 2, most),
        nested=made(2, 2, most, 6))


def offsets_of(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0))


def spans(lengths) -> Iterator[tuple[int, int]]:
    return zip(accumulate(lengths, initial=0), lengths, strict=False)


def events(b: SimpleNamespace, of_row: Callable[[int, slice], Tensor]) -> Tensor:
    """Join what `of_row(i, events)` gives of the first `most` events of each row, zeros for the others."""
    parts = [of_row(i, slice(begin, begin + min(n, b.most))) for i, (begin, n) in enumerate(b.spans)]
    return torch.cat([torch.cat([part, part.new_zeros(n - len(part), *part.shape[1:])])
                      for part, (_, n) in zip(parts, b.spans, strict=True)])


def pairs(b: SimpleNamespace, of_row: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Join what `of_row(square, events)` gives of the first `most` events of each row, zeros for the other pairs."""
    blocks = [block.view(n, n) for block, n in zip(b.p.split([n * n for n in LENGTHS]), LENGTHS, strict=True)]
    parts = [of_row(block[:b.most, :b.most], slice(begin, begin + min(n, b.most)))
             for block, (begin, n) in zip(blocks, b.spans, strict=True)]
    return torch.cat([F.pad(part, (0, n - len(part)) * 2).flatten()
                      for part, n in zip(parts, LENGTHS, strict=True)])


def stacked(b: SimpleNamespace, of_row: Callable[[int, slice], Tensor]) -> Tensor:
    return torch.stack([of_row(i, slice(begin, begin + min(n, b.most))) for i, (begin, n) in enumerate(b.spans)])


def padded(b: SimpleNamespace, x: Tensor, fill: float = 0.0) -> Tensor:
    return stacked(b, lambda _, span: torch.cat([x[span], x.new_full((b.most - len(x[span]), *x.shape[1:]), fill)]))


def attended(b: SimpleNamespace, q: Tensor, k: Tensor, v: Tensor, masked: bool = False) -> Tensor:
    def of_row(_: int, span: slice) -> Tensor:
        weights = (q[span] @ k[span].T).softmax(1) / b.most
        return (weights.triu() if masked else weights) @ v[span]

    return events(b, of_row)


def of_two(b: SimpleNamespace, join: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Join what `join(cells, row)` gives of two rows of two rows of cells `(most, 6)`; a third of the second is cut."""
    nothing = torch.zeros_like(b.nested[0, 0])
    return torch.cat([join(b.nested[i, j] if j < 2 else nothing, first + j)
                      for i, (first, end) in enumerate(pairwise(OUTER)) for j in range(end - first)])


def taken(b: SimpleNamespace, cells: Tensor, row: int) -> Tensor:
    n = LENGTHS[row]
    return F.pad(cells[:n], (0, 0, 0, n - len(cells[:n])))


def nested(b: SimpleNamespace, fill: float) -> Tensor:
    """Return x as two rows of two rows of `most` events."""
    rows = padded(b, b.x, fill)
    return torch.stack([rows[:2], rows[2:4]])


# name → arguments, and what they give by definition
CALLS: dict[str, Callable[[SimpleNamespace], tuple[tuple, Callable[[], Tensor | list[Tensor]]]]] = {
    "sll_jagged_dense_bmm": lambda b: (
        (b.x, b.y, b.offsets, b.most, False), lambda: events(b, lambda i, span: b.x[span] @ b.y[i])),
    "sll_jagged_jagged_bmm": lambda b: (
        (b.x, b.z, b.offsets, b.most, False), lambda: stacked(b, lambda _, span: b.x[span].T @ b.z[span])),
    "sll_jagged_softmax": lambda b: (
        (b.x, b.offsets, b.most), lambda: events(b, lambda _, span: b.x[span].softmax(0))),
    "sll_jagged2_softmax": lambda b: (
        (b.p, b.offsets, b.blocks, b.most, False), lambda: pairs(b, lambda square, _: square.softmax(1))),
    "sll_jagged2_softmax, transposed": lambda b: (
        (b.p, b.offsets, b.blocks, b.most, True), lambda: pairs(b, lambda square, _: square.softmax(0))),
    "sll_array_jagged_bmm_jagged_out": lambda b: (
        (b.p, b.x, b.lengths, b.blocks, b.lengths, b.offsets, b.lengths, b.offsets, b.most, False),
        lambda: events(b, lambda i, span: (b.p[b.blocks[i]:b.blocks[i + 1]].view(LENGTHS[i], -1)[:b.most, :b.most]
                                           if LENGTHS[i] else b.p.new_zeros(0, 0)) @ b.x[span])),
    "sll_jagged_jagged_bmm_jagged_out": lambda b: (
        (b.x, b.w, b.lengths, b.offsets, b.lengths, b.offsets, b.squares, b.blocks, b.most, False),
        lambda: pairs(b, lambda _, span: b.x[span] @ b.w[span].T)),
    "sll_jagged_flash_attention_basic": lambda b: (
        (b.x, b.w, b.v, b.offsets, b.most), lambda: attended(b, b.x, b.w, b.v)),
    "sll_jagged_flash_attention_basic, masked": lambda b: (
        (b.x, b.w, b.v, b.offsets, b.most, True), lambda: attended(b, b.x, b.w, b.v, masked=True)),
    "sll_multi_head_jagged_flash_attention": lambda b: (
        (*b.heads, b.offsets, b.most),
        lambda: torch.stack([attended(b, *(x[head] for x in b.heads)) for head in range(2)])),
    "sll_jagged_dense_flash_attention": lambda b: (
        (b.x, b.y, b.v, b.bias, b.offsets, b.most),
        lambda: stacked(b, lambda i, span: (b.x[span] @ b.y[i] + b.bias[i, :len(b.x[span])]).softmax(0).T @ b.v[span])),
    "sll_jagged_dense_elementwise_add": lambda b: (
        (b.x, b.offsets, b.dense, b.most), lambda: b.x + events(b, lambda i, span: b.dense[i, :len(b.x[span])])),
    "sll_jagged_dense_elementwise_mul_jagged_out": lambda b: (
        (b.p, b.square, b.lengths, b.blocks, b.most),
        lambda: pairs(b, lambda square, _: square * b.square[:len(square), :len(square)])),
    "sll_jagged2_to_padded_dense": lambda b: (
        (b.p, b.blocks, b.most, 0.5), lambda: torch.stack([
            F.pad(block.view(n, n)[:b.most, :b.most], (0, max(b.most - n, 0)) * 2, value=0.5)
            for block, n in zip(b.p.split([n * n for n in LENGTHS]), LENGTHS, strict=True)])),
    "sll_dense_jagged_cat_jagged_out": lambda b: (
        (b.first, b.one, b.offsets, b.most), lambda: [
            torch.cat([torch.cat([b.first[i:i + 1], row]) for i, row in enumerate(
                events(b, lambda _, span: b.one[span]).split(LENGTHS))]),
            b.offsets + torch.arange(6, device=b.offsets.device)]),
    "sll_jagged_self_substraction_jagged_out": lambda b: (
        (b.one, b.offsets, b.smaller_blocks, b.most), lambda: torch.cat([
            F.pad(row[:min(n, b.most) - 1, None] - row[None, 1:min(n, b.most)], (0, n - min(n, b.most)) * 2).flatten()
            for row, n in zip(b.one.split(LENGTHS), LENGTHS, strict=True) if n])),
    "dense_to_jagged": lambda b: (
        (b.dense, [b.offsets]), lambda: [events(b, lambda i, span: b.dense[i, :len(b.x[span])]), b.offsets]),
    "dense_to_jagged, counted": lambda b: (
        (b.dense, [b.offsets], 16), lambda: [events(b, lambda i, span: b.dense[i, :len(b.x[span])]), b.offsets]),
    "dense_to_jagged, two axes": lambda b: (
        (b.nested, [b.outer, b.offsets], 16),
        lambda: [of_two(b, lambda cells, row: taken(b, cells, row)), b.outer, b.offsets]),
    "jagged_to_padded_dense": lambda b: (
        (b.x, [b.offsets], [b.most], 2.5), lambda: padded(b, b.x, 2.5)),
    "jagged_to_padded_dense, two axes": lambda b: (
        (b.x, [b.outer, b.offsets], [2, b.most], 2.5), lambda: nested(b, 2.5)),
    "jagged_1d_to_dense": lambda b: ((b.one, b.offsets, b.most, 3), lambda: padded(b, b.one, 3)),
    "jagged_2d_to_dense": lambda b: ((b.x, b.offsets, b.most), lambda: padded(b, b.x)),
    "stacked_jagged_1d_to_dense": lambda b: (
        (torch.cat([b.one, b.one]), torch.stack([b.lengths, b.lengths]), [0, 16, 32], [b.most, b.most], 3),
        lambda: [padded(b, b.one, 3)] * 2),
    "stacked_jagged_2d_to_dense": lambda b: (
        (torch.cat([b.x, b.w]), torch.stack([b.lengths, b.lengths]), [0, 16, 32], [b.most, b.most]),
        lambda: [padded(b, b.x), padded(b, b.w)]),
    "jagged_dense_elementwise_add": lambda b: ((b.x, [b.offsets], b.dense), lambda: padded(b, b.x) + b.dense),
    "jagged_dense_elementwise_add_jagged_output": lambda b: (
        (b.x, [b.offsets], b.dense),
        lambda: [b.x + events(b, lambda i, span: b.dense[i, :len(b.x[span])]), b.offsets]),
    "jagged_dense_elementwise_add_jagged_output, two axes": lambda b: (
        (b.x, [b.outer, b.offsets], b.nested),
        lambda: [b.x + of_two(b, lambda cells, row: taken(b, cells, row)), b.outer, b.offsets]),
    "jagged_dense_dense_elementwise_add_jagged_output": lambda b: (
        (b.x, [b.offsets], b.dense, b.other),
        lambda: [b.x + events(b, lambda i, span: (b.dense + b.other)[i, :len(b.x[span])]), b.offsets]),
    "jagged_dense_elementwise_mul": lambda b: (
        (b.x, [b.offsets], b.dense),
        lambda: [events(b, lambda i, span: b.x[span] * b.dense[i, :len(b.x[span])]), b.offsets]),
    "batched_dense_vec_jagged_2d_mul": lambda b: (
        (b.vectors, b.x, b.offsets), lambda: torch.cat([
            b.vectors.view(5, 2, -1)[i, :, :min(n, b.most), None].mul(
                b.x[begin:begin + min(n, b.most)].unflatten(1, (2, 3)).transpose(0, 1)).sum(1)
            for i, (begin, n) in enumerate(b.spans)])),
    "jagged_softmax": lambda b: (
        (b.x, b.offsets, b.most), lambda: [events(b, lambda _, span: b.x[span].softmax(0)), b.offsets]),
    "jagged_jagged_bmm": lambda b: (
        (b.x, b.z, b.offsets, b.most), lambda: stacked(b, lambda _, span: b.x[span].T @ b.z[span])),
    "jagged_dense_bmm": lambda b: (
        (b.x, b.offsets, b.y, b.most), lambda: [events(b, lambda i, span: b.x[span] @ b.y[i]), b.offsets]),
    "jagged_index_select": lambda b: (
        (b.x, b.lengths, torch.tensor([4, 0, 0, 1], device=b.x.device)),
        lambda: [torch.cat([b.x[11:], b.x[:3], b.x[:3]]), torch.tensor([5, 3, 3, 0], device=b.x.device)]),
    "jagged_index_select, counted": lambda b: (
        (b.x, b.lengths, torch.tensor([4, 0, 0, 1], device=b.x.device), 11),
        lambda: [torch.cat([b.x[11:], b.x[:3], b.x[:3]]), torch.tensor([5, 3, 3, 0], device=b.x.device)]),
    "jagged_1d_to_truncated_values": lambda b: (
        (b.one, b.lengths, b.most),
        lambda: torch.cat([b.one[begin:begin + min(n, b.most)] for begin, n in b.spans])),
    "masked_select_jagged_1d": lambda b: (
        (b.one, b.lengths, b.one > 0),
        lambda: [b.one[b.one > 0], torch.stack([(row > 0).sum() for row in b.one.split(LENGTHS)])]),
    "jagged_slice": lambda b: (
        (b.one, b.lengths, torch.tensor([1, 0, 2, 0, 3], device=b.x.device), b.most),
        lambda: [torch.cat([b.one[begin:begin + min(n, b.most)] for begin, n in ((1, 2), (5, 5), (10, 1), (14, 2))]),
                 torch.tensor([2, 0, 5, 1, 2], device=b.x.device).clamp(max=b.most)]),
    "asynchronous_complete_cumsum": lambda b: (
        (torch.stack([b.lengths, b.squares]),), lambda: torch.stack([b.offsets, b.blocks])),
    "asynchronous_inclusive_cumsum": lambda b: ((b.lengths,), lambda: b.offsets[1:]),
    "asynchronous_exclusive_cumsum": lambda b: ((b.lengths,), lambda: b.offsets[:-1]),
}
every_call = pytest.mark.parametrize("name", CALLS)


def operator_of(name: str) -> str:
    return name.partition(",")[0]


def parts(result) -> list[Tensor]:
    """Return the tensors of a result in their order."""
    return [result] if isinstance(result, Tensor) else [part for each in result for part in parts(each)]


def leaves(b: SimpleNamespace) -> list[Tensor]:
    return [x for x in vars(b).values() if isinstance(x, Tensor) and x.is_floating_point()]


def with_gradients(b: SimpleNamespace, result) -> list[Tensor]:
    """Return the tensors of a result, and the gradients of all leaves for waves that come in."""
    outputs = [x for x in parts(result) if x.requires_grad]
    if not outputs:
        return parts(result)
    waves = [torch.arange(x.numel(), device=x.device).add(1).cos().view(x.shape).to(x.dtype) for x in outputs]
    return [*parts(result), *torch.autograd.grad(outputs, leaves(b), waves, materialize_grads=True)]


@pytest.mark.parametrize("most", [EVERY, CUT, 1, 30])
@every_device
@every_call
def test_results_and_gradients_are_those_of_the_definition(fbgemm, name, device, most):
    b = batch(most, device)
    arguments, definition = CALLS[name](b)
    found = with_gradients(b, getattr(fbgemm, operator_of(name))(*arguments))
    expected = with_gradients(b, definition())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_device
@every_call
def test_int32_offsets(fbgemm, name, device):
    b = batch(CUT, device)
    expected = getattr(fbgemm, operator_of(name))(*CALLS[name](b)[0])
    for key, value in vars(b).items():
        if isinstance(value, Tensor) and value.dtype == torch.int64:
            setattr(b, key, value.int())
    found = getattr(fbgemm, operator_of(name))(*CALLS[name](b)[0])
    for one, other in zip(parts(found), parts(expected), strict=True):
        torch.testing.assert_close(one, other, check_dtype=False)


def test_every_operator_has_a_call():
    assert {operator_of(name) for name in CALLS} == set(register())


WAITING = {"sll_jagged_jagged_bmm_jagged_out", "sll_jagged_self_substraction_jagged_out", "dense_to_jagged",
           "jagged_index_select", "jagged_1d_to_truncated_values", "masked_select_jagged_1d", "jagged_slice"}


@pytest.mark.parametrize("name", [name for name in CALLS if name not in WAITING])
def test_what_does_not_wait_is_traced_whole(fbgemm, name):
    operator = getattr(fbgemm, operator_of(name))
    b = batch(CUT)
    torch.compiler.reset()
    compiled = torch.compile(lambda *arguments: operator(*arguments), fullgraph=True, dynamic=True, backend="aot_eager")
    found, expected = (with_gradients(b, run(*CALLS[name](b)[0])) for run in (compiled, operator))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_arguments_by_name_and_defaults(fbgemm):
    b = batch()
    by_place = fbgemm.sll_jagged_flash_attention_basic(b.x, b.w, b.v, b.offsets, EVERY, False, True)
    by_name = fbgemm.sll_jagged_flash_attention_basic(offsets=b.offsets, max_seq_len=EVERY, q_weights=b.x,
                                                      v_weights=b.v, k_weights=b.w)
    assert torch.equal(by_place, by_name)
    assert torch.equal(fbgemm.jagged_to_padded_dense(b.x, [b.offsets], max_lengths=[EVERY]), padded(b, b.x))


# --- what was wrong there ---


def forty(score: float, device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Return q, k, v `(T, 4)` and offsets of a row of 40 and an empty one; all scores are about `score`."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(40, 4, generator=generator, dtype=torch.float64) * 0.1 for _ in range(3))
    q[:, 0], k[:, 0] = 10, score / 10
    q, k, v = (x.to(device, dtype).requires_grad_() for x in (q, k, v))
    return q, k, v, torch.tensor([0, 40, 40], device=device)


@every_device
@pytest.mark.parametrize("score", [-91.0, -150.0, -1000.0])
@pytest.mark.parametrize("kind", ["basic", "masked", "heads", "dense"])
def test_low_scores_in_a_row_longer_than_a_tile_give_no_nan(fbgemm, kind, score, device):
    q, k, v, offsets = forty(score, device, torch.float32)
    keys = k[:2].T[None].expand(2, 4, 2)
    bias = torch.zeros(2, 40, 2, device=device)
    calls = {"basic": lambda: fbgemm.sll_jagged_flash_attention_basic(q, k, v, offsets, 40),
             "masked": lambda: fbgemm.sll_jagged_flash_attention_basic(q, k, v, offsets, 40, True),
             "heads": lambda: fbgemm.sll_multi_head_jagged_flash_attention(q[None], k[None], v[None], offsets, 40)[0],
             "dense": lambda: fbgemm.sll_jagged_dense_flash_attention(q, keys, v, bias, offsets, 40)[0]}
    found = calls[kind]()
    wide = [x.detach().double() for x in (q, k, v)]
    if kind == "dense":
        expected = (wide[0] @ wide[1][:2].T).softmax(0).T @ wide[2]
    else:
        weights = (wide[0] @ wide[1].T).softmax(1) / 40
        expected = (weights.triu() if kind == "masked" else weights) @ wide[2]
    torch.testing.assert_close(found.detach().double(), expected, rtol=2e-3, atol=2e-4 * float(expected.abs().max()))
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(found.sum(), (q, k, v)))


@every_device
def test_gradients_of_many_heads_in_half_precision_are_as_good_as_plain_ones(fbgemm, device):
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 40, 40, 57], device=device)
    qkv = [(torch.randn(2, 57, 16, generator=generator) * 0.5).to(device, torch.float16) for _ in range(3)]
    grad = torch.randn(2, 57, 16, generator=generator).to(device, torch.float16)

    def plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([(q[:, part] @ k[:, part].mT).softmax(-1) / 40 @ v[:, part]
                          for part in (slice(0, 40), slice(40, 57))], 1)

    def results(run: Callable, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in qkv]
        out = run(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(dtype))]

    found = results(lambda *x: fbgemm.sll_multi_head_jagged_flash_attention(*x, offsets, 40), torch.float16)
    exact, rough = results(plainly, torch.float64), results(plainly, torch.float16)
    for i, three in enumerate(zip(found, exact, rough, strict=True)):
        assert_within_budget(*three, gradient=i > 0)


@every_device
def test_blocks_of_rows_that_are_cut_keep_their_layout(fbgemm, device):
    """Written with the cut length as the row stride, pairs came to stand elsewhere."""
    offsets = torch.tensor([0, 3], device=device)
    blocks = torch.tensor([0, 9], device=device)
    lengths, squares = offsets.diff(), blocks.diff()
    x = torch.tensor([[1.0], [2.0], [3.0]], device=device)
    rows = lengths, offsets
    products = fbgemm.sll_jagged_jagged_bmm_jagged_out(x, x, *rows, *rows, squares, blocks, 2, False)
    assert products.tolist() == [1, 2, 0, 2, 4, 0, 0, 0, 0]
    every = torch.arange(9.0, device=device, requires_grad=True)
    ones = torch.ones(2, 2, device=device)
    kept = fbgemm.sll_jagged_dense_elementwise_mul_jagged_out(every, ones, lengths, blocks, 2)
    assert kept.tolist() == [0, 1, 0, 3, 4, 0, 0, 0, 0]
    dense = fbgemm.sll_jagged2_to_padded_dense(every, blocks, 2, 0.0)
    assert dense.tolist() == [[[0, 1], [3, 4]]]
    # the gradient of pairs that were cut is 0, where it was memory that nobody had written
    assert torch.autograd.grad(dense.sum(), every)[0].tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 0]


@every_device
def test_the_side_of_a_block_is_exact(fbgemm, device):
    """By a square root in float32 the side of 4099² = 16801801 may come out as another."""
    values = torch.zeros(4099**2, dtype=torch.int8, device=device)
    values[-1] = 1
    dense = fbgemm.sll_jagged2_to_padded_dense(values, torch.tensor([0, 4099**2], device=device), 4099, 0.0)
    assert dense[0, 4098, 4098] == 1


@every_device
@pytest.mark.parametrize("transpose", [False, True])
def test_softmax_of_blocks_knows_empty_rows_and_any_scores(fbgemm, transpose, device):
    offsets, blocks = torch.tensor([0, 0, 2, 2], device=device), torch.tensor([0, 0, 4, 4], device=device)
    scores = torch.tensor([1000.0, 0.0, -1000.0, -1001.0], device=device, requires_grad=True)
    weights = fbgemm.sll_jagged2_softmax(scores, offsets, blocks, 2, transpose)
    few = 1 / (1 + math.e)
    expected = [1, 1, 0, 0] if transpose else [1, 0, 1 - few, few]
    torch.testing.assert_close(weights, torch.tensor(expected, device=device, dtype=torch.float32))
    grad, = torch.autograd.grad((weights * torch.tensor([3.0, 1.0, 2.0, 5.0], device=device)).sum(), scores)
    slope = 0 if transpose else 3 * few * (1 - few)
    torch.testing.assert_close(grad, torch.tensor([0.0, 0.0, -slope, slope], device=device))


@every_device
def test_a_prefix_and_rows_that_are_cut_give_the_same_everywhere(fbgemm, device):
    first, rows = torch.tensor([9, 8], device=device), torch.tensor([1, 2, 3, 4], device=device)
    values, offsets = fbgemm.sll_dense_jagged_cat_jagged_out(first, rows, torch.tensor([0, 3, 4], device=device), 2)
    assert (values.tolist(), offsets.tolist()) == ([9, 1, 2, 0, 8, 4], [0, 4, 6])


@every_device
def test_differences_of_rows_longer_than_4096(fbgemm, device):
    times = torch.arange(4200, device=device)
    offsets, blocks = torch.tensor([0, 4200], device=device), torch.tensor([0, 4199**2], device=device)
    found = fbgemm.sll_jagged_self_substraction_jagged_out(times, offsets, blocks, 5000).view(4199, 4199)
    assert (int(found[0, 0]), int(found[4198, 0]), int(found[0, 4198])) == (-1, 4197, -4199)


@every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dense_attention_in_half_precision_and_any_width(fbgemm, dtype, device):
    b, exact = batch(CUT, device, dtype), batch(CUT, device)
    found, expected = (with_gradients(each, fbgemm.sll_jagged_dense_flash_attention(
        each.x, each.y, each.v, each.bias, each.offsets, CUT)) for each in (b, exact))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0.1, atol=0.1)


def test_tensors_without_memory_are_served(fbgemm):
    """Of the attention of many heads there was no implementation for the CPU, nor one that knows shapes alone."""
    b = batch()
    given = [*b.heads, b.offsets]
    assert fbgemm.sll_multi_head_jagged_flash_attention(*given, EVERY).shape == (2, 16, 5)
    with FakeTensorMode() as mode:
        q, k, v, offsets = map(mode.from_tensor, given)
        assert fbgemm.sll_multi_head_jagged_flash_attention(q, k, v, offsets, EVERY).shape == (2, 16, 5)


@pytest.mark.gpu
def test_more_rows_than_a_grid_has(fbgemm):
    lengths = torch.arange(70_000, device="cuda") % 2  # the last row has one event
    offsets, blocks = offsets_of(lengths), offsets_of(lengths * lengths)
    x = torch.randn(int(offsets[-1]), 16, device="cuda")
    rows, squares = (lengths, offsets), (lengths**2, blocks)
    pairs = fbgemm.sll_jagged_jagged_bmm_jagged_out(x, x, *rows, *rows, *squares, 2, False)
    torch.testing.assert_close(pairs[-1], x[-1] @ x[-1], rtol=1e-4, atol=1e-4)
    out = fbgemm.sll_array_jagged_bmm_jagged_out(pairs, x, *squares, *rows, *rows, 2, False)
    torch.testing.assert_close(out[-1], pairs[-1] * x[-1], rtol=1e-3, atol=1e-3)
    heads = fbgemm.sll_multi_head_jagged_flash_attention(x[None], x[None], x[None], offsets, 2)
    torch.testing.assert_close(heads[0, -1], x[-1] / 2, rtol=1e-3, atol=1e-3)


# --- being registered ---


def fresh(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_is_registered_before_it_is_asked_for():
    assert fresh("import torch, serrate.interop.fbgemm; print(hasattr(torch.ops.fbgemm, 'jagged_softmax'))") == "False"


def test_registering_again_changes_nothing():
    assert register() is register()


def test_operators_of_others_are_not_overridden():
    program = ("import torch; lib = torch.library.Library('fbgemm', 'FRAGMENT'); lib.define('{} -> Tensor')\n"
               "from serrate.interop.fbgemm import register\n"
               "try:\n    register()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
               "print(hasattr(torch.ops.fbgemm, 'jagged_dense_bmm'))")
    told = fresh(program.format("jagged_softmax(Tensor x)"))
    assert told == ("NotUsable torch.ops.fbgemm.jagged_softmax exist already: ours cannot stand in for fbgemm_gpu in a "
                    "process that has loaded it\nFalse")


def test_fbgemm_cannot_be_loaded_afterwards(tmp_path):
    (tmp_path / "fbgemm_gpu").mkdir()
    (tmp_path / "fbgemm_gpu" / "__init__.py").write_text("print('loaded')")
    program = (f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
               "from serrate.interop.fbgemm import register\nregister()\n"
               "try:\n    import fbgemm_gpu\nexcept ImportError as error:\n    print(error)")
    told = fresh(program)
    assert told == "fbgemm_gpu cannot be loaded: serrate.interop.fbgemm.register() has defined its operators"
