"""What the Triton implementation promises beyond the suite of `test_blocks.py`; needs a CUDA device."""

import pytest
import torch

from serrate.ops.blocks import (
    bench,
    block_differences,
    block_matmul,
    block_multiply,
    block_offsets,
    block_products,
    block_softmax,
    from_padded_blocks,
    to_padded_blocks,
)
from serrate.ops.blocks.cases import OPERATIONS, Case
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu

every_operation = pytest.mark.parametrize("kind", OPERATIONS)


@every_operation
@pytest.mark.parametrize("lengths", [(700, 65, 1030), (64, 128, 512), (4500, 3), (4096,)], ids=str)
def test_long_rows(kind, lengths):
    case, found = Case("", lengths, width=32), []
    tensors = case.tensors(OPERATIONS[kind].inputs, torch.bfloat16, "cuda")
    for dtype, name in ((torch.bfloat16, "triton"), (torch.float64, "reference"), (torch.bfloat16, "reference")):
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        out = OPERATIONS[kind].run(case, leaves, name)
        found.append([out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)])
    for i, (actual, exact, rough) in enumerate(zip(*found, strict=True)):
        assert_within_budget(actual, exact, rough, gradient=i > 0)


@pytest.mark.parametrize("width", [1, 3, 16, 50, 64, 100, 128, 130, 256, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_every_width(width, dtype):
    case = Case("", (70, 0, 131, 8), width=width, heads=2)
    for kind in ("products", "matmul", "matmul, transposed"):
        tensors, found = case.tensors(OPERATIONS[kind].inputs, dtype, "cuda"), []
        for of, name in ((dtype, "triton"), (torch.float64, "reference"), (dtype, "reference")):
            leaves = [x.to(of).requires_grad_() for x in tensors]
            out = OPERATIONS[kind].run(case, leaves, name)
            found.append([out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))])
        for i, (actual, exact, rough) in enumerate(zip(*found, strict=True)):
            assert_within_budget(actual, exact, rough, gradient=i > 0, name=kind)


LONG = ((500, 1003, 7, 0, 64, 1500, 259), (512, 1001, 3, 300, 1498), (63, 1200, 1204, 1202, 1201, 40, 254), (4096,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [72, 96, 128])
@pytest.mark.parametrize("more", [0, 3000])
@pytest.mark.parametrize("lengths", LONG, ids=str)
def test_products_of_wide_events_in_long_rows(lengths, more, width, dtype):
    from serrate.ops.blocks.triton import products
    from serrate.ops.launch import has_gluon

    case = Case("", lengths, width=width, more=more)
    x, y = (torch.cat([each, each], 1)[:, :width] for each in case.tensors("xy", dtype, "cuda"))  # lines with a gap
    assert products._on_hopper(x[:, None], y[:, None], case.offsets()) == has_gluon(x.device)
    found, exact, rough = (OPERATIONS["products"].run(case, [x.to(of), y.to(of)], name) for of, name in (
        (dtype, "triton"), (torch.float64, "reference"), (dtype, "reference")))
    assert_within_budget(found, exact, rough)
    assert torch.equal(found, OPERATIONS["products"].run(case, [x, y], "triton"))


@pytest.mark.parametrize("side", [1, 33, 128, 200])
def test_a_square_counts_as_0_past_its_side(side):
    case = Case("", (259, 8, 131), heads=2)
    a, offsets = case.tensors("a", device="cuda")[0].requires_grad_(), case.offsets("cuda")
    square = torch.randn(side, side, device="cuda", requires_grad=True)
    padded = torch.nn.functional.pad(square, (0, 259 - side, 0, 259 - side))
    outs = [block_multiply(a, each, offsets) for each in (square, padded)]
    assert torch.equal(*outs)
    for found, right in zip(*(torch.autograd.grad(out.sin().sum(), (a, square)) for out in outs), strict=True):
        torch.testing.assert_close(found, right)


def chain(x, y, square, offsets, pairs):
    """Return what goes through every operation, and its gradients."""
    scores = block_products(x, y, offsets, pairs=pairs) + block_differences(x[:, 0], None, offsets, pairs=pairs)
    weights = block_softmax(scores, offsets) + block_softmax(scores, offsets, over="queries")
    padded = to_padded_blocks(block_multiply(weights, square, offsets), offsets, square.shape[0])
    weights = from_padded_blocks(padded, offsets, pairs=pairs)
    out = block_matmul(weights, y, offsets) + block_matmul(weights, x, offsets, transposed=True)
    return out.detach(), *torch.autograd.grad(out.square().sum(), (x, y, square))


def test_a_captured_graph_follows_new_offsets_and_nothing_waits():
    case = Case("", (100, 30, 170), width=16)
    x, y = (each.requires_grad_() for each in case.tensors("xy", device="cuda"))
    square = torch.randn(300, 300, device="cuda", requires_grad=True)
    offsets, pairs = case.offsets("cuda"), 300**2
    def changes():
        for changed in ([0, 10, 250, 300], [0, 300, 300, 300], [0, 100, 200, 300]):
            offsets.copy_(torch.tensor(changed))
            yield

    assert_captured(lambda: chain(x, y, square, offsets, pairs), changes())


def test_inductor_compiles_it_whole():
    torch.compiler.reset()

    def loss(x, y, offsets, pairs):
        weights = block_softmax(block_products(x, y, offsets, pairs=pairs), offsets)
        return (block_matmul(weights, y, offsets) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((5, 3), (12, 7), (2, 40)):
            case = Case("", lengths)
            leaves = [each.requires_grad_() for each in case.tensors("xy", device="cuda")]
            given = *leaves, case.offsets("cuda"), case.pairs
            eager = torch.autograd.grad(loss(*given), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*given), leaves), eager)


def test_more_rows_than_a_grid_is_wide():
    lengths = torch.arange(70_000) % 4
    case = Case("", tuple(lengths.tolist()), width=4)
    for kind, operation in OPERATIONS.items():
        given = case.tensors(operation.inputs, device="cuda")
        whole = operation.run(case, given, "triton")
        last = Case("", case.lengths[-9:], width=4)
        sizes = {letter: shape[0] for letter, shape in last.shapes().items()}
        ends = [x if letter == "m" else x[-sizes[letter]:] for letter, x in zip(operation.inputs, given, strict=True)]
        expected = operation.run(last, ends, "reference")
        torch.testing.assert_close(whole[-expected.shape[0]:], expected, msg=lambda told, kind=kind: f"{kind}: {told}")
    squares = block_offsets(case.offsets("cuda"), implementation="triton").cpu()
    assert torch.equal(squares, torch.cat([torch.zeros(1).long(), lengths.square().cumsum(0)]))


@pytest.mark.parametrize("width", [16, 128])
def test_pairs_past_the_range_of_int32(width):
    case = Case("", (33_000, 33_000, 5), width=width)
    x, = case.tensors("x", torch.bfloat16, "cuda")
    offsets = case.offsets("cuda")
    assert case.pairs > 2**31
    scores = block_products(x, x, offsets, pairs=case.pairs)
    torch.testing.assert_close(scores[-25:].view(5, 5), x[-5:] @ x[-5:].T)
    middle = scores[33_000**2:2 * 33_000**2].view(33_000, 33_000)[-3:, -4:]
    torch.testing.assert_close(middle, x[65_997:66_000] @ x[65_996:66_000].T)
    out = block_matmul(scores, x, offsets)
    torch.testing.assert_close(out[-5:], (scores[-25:].view(5, 5) @ x[-5:]), rtol=2e-2, atol=1e-1)
    assert torch.equal(block_softmax(scores, offsets)[-25:], block_softmax(scores[-25:], torch.tensor(
        [0, 5], device="cuda")))


def test_the_benchmark_checks_and_measures():
    rows = bench.compare("products", Case("small", (40, 64, 3), width=16))
    assert {row["implementation"] for row in rows} >= {"batch", "limit", "triton", "padded", "padded compiled"}
    assert all(row["value"] > 0 for row in rows)
