"""What the Triton implementation promises beyond the suite of `test_bmm.py`; needs a CUDA device."""

import pytest
import torch

from serrate.jagged import offsets_from_lengths
from serrate.ops.bmm import jagged_dense_bmm, jagged_jagged_bmm
from serrate.ops.bmm.cases import Case
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu


def lengths_about(rows: int, mean: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 2 * mean + 1, (rows,), generator=torch.Generator().manual_seed(0)).tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("width", "columns"), [
    (1, 1), (8, 16), (50, 30), (64, 64), (64, 128), (128, 64), (128, 128), (200, 72), (256, 300), (512, 64)])
@pytest.mark.parametrize(("rows", "mean"), [(700, 4), (70, 30), (20, 300), (4, 3000)])
def test_every_width_and_length(dtype, width, columns, rows, mean):
    case = Case("", lengths_about(rows, mean), width, columns)
    offsets = case.offsets("cuda")
    for tensors, product in ((case.dense(dtype, "cuda"), "dense"), (case.jagged(dtype, "cuda"), "jagged")):
        found = []
        for to, name in ((dtype, "triton"), (torch.float64, "reference"), (dtype, "plain")):
            leaves = [x.to(to).requires_grad_() for x in tensors]
            out = plain(product, leaves, case.lengths) if name == "plain" else (
                jagged_dense_bmm(*leaves[:2], offsets, bias=leaves[2], implementation=name) if product == "dense"
                else jagged_jagged_bmm(*leaves, offsets, implementation=name))
            grad = torch.randn(out.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(dtype)
            found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(to))])
        for i, (actual, exact, rough) in enumerate(zip(*found, strict=True)):
            assert_within_budget(actual, exact, rough, gradient=i > 0, name=f"{product} {i}")


def plain(product: str, leaves: list[torch.Tensor], lengths: tuple[int, ...]) -> torch.Tensor:
    """Return the same by torch's own product of each row."""
    rows = leaves[0].split(lengths)
    if product == "jagged":
        return torch.stack([x.T @ y for x, y in zip(rows, leaves[1].split(lengths), strict=True)])
    return torch.cat([x @ y + bias for x, y, bias in zip(rows, leaves[1], leaves[2], strict=True)])


def test_a_captured_graph_follows_other_offsets_and_nothing_waits():
    case = Case("", (100, 0, 200, 30, 3000), 64, 32, heads=2)
    x, y, bias = (each.requires_grad_() for each in case.dense(device="cuda"))
    offsets, z = case.offsets("cuda"), torch.randn(case.events, 2, 32, device="cuda")

    def run():
        out = jagged_dense_bmm(x, y, offsets, bias=bias, implementation="triton")
        product = jagged_jagged_bmm(x, z, offsets, implementation="triton")
        grads = torch.autograd.grad((out.sin().sum(), product.sin().sum()), (x, y, bias))
        return out.detach(), product.detach(), *grads

    def changes():
        for lengths in ((3330, 0, 0, 0, 0), (0, 1, 2, 3, 3324), (666,) * 5):
            offsets.copy_(offsets_from_lengths(torch.tensor(lengths)))
            yield

    assert_captured(run, changes())


def test_inductor_compiles_it_whole():
    def loss(x, y, offsets):
        return (jagged_dense_bmm(x * 2, y, offsets, implementation="triton") ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((5, 0, 3), (12, 1, 4, 2), (0, 70, 9, 3, 1)):
            case = Case("", lengths, biased=False)
            leaves, offsets = [each.requires_grad_() for each in case.dense(device="cuda")], case.offsets("cuda")
            eager = torch.autograd.grad(loss(*leaves, offsets), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, offsets), leaves), eager)


def test_more_rows_than_a_grid_has_blocks():
    case = Case("", tuple(1 + i % 3 for i in range(70_000)), 16, 16)
    x, y, bias = case.dense(device="cuda")
    out = jagged_dense_bmm(x, y, case.offsets("cuda"), bias=bias, implementation="triton")
    row = torch.repeat_interleave(torch.tensor(case.lengths)).cuda()
    torch.testing.assert_close(out, torch.einsum("td,tdf->tf", x, y[row]) + bias[row], rtol=1e-4, atol=1e-4)
    product = jagged_jagged_bmm(x, out, case.offsets("cuda"), implementation="triton")
    expected = torch.zeros(70_000, 16, 16, device="cuda").index_add_(0, row, x[:, :, None] * out[:, None])
    torch.testing.assert_close(product, expected, rtol=1e-3, atol=1e-3)


def test_elements_past_the_range_of_int32():
    events = 2**22 + 300
    x = torch.randn(events, 512, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    y = torch.randn(2, 512, 16, device="cuda", dtype=torch.bfloat16)
    offsets = torch.tensor([0, events - 9, events], device="cuda")
    out = jagged_dense_bmm(x, y, offsets, implementation="triton")
    torch.testing.assert_close(out[-9:], x[-9:] @ y[1])
    product = jagged_jagged_bmm(x, out, offsets, implementation="triton")
    torch.testing.assert_close(product[1], x[-9:].T @ out[-9:])
