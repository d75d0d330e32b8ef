"""What the Triton kernel promises beyond the suite of `test_concat.py`; needs a CUDA device."""

import pytest
import torch

from serrate.ops.concat import bench, concatenate, from_padded, split, to_padded
from serrate.ops.concat.cases import Workload
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu


def rows(lengths, width=16, dtype=torch.float32):
    """Return random events `(T, width)` and their offsets."""
    lengths = torch.as_tensor(lengths)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.randn(int(offsets[-1]), width, device="cuda").to(dtype), offsets.cuda()


def test_a_captured_graph_follows_new_offsets_and_nothing_waits():
    x, first = rows([30, 0, 5, 65])
    y, second = rows([1, 7, 2, 10])
    grad = torch.randn(len(x) + len(y), 16, device="cuda")

    def run():
        a, b = (each.detach().requires_grad_() for each in (x, y))
        values, ends = concatenate([a, b], [first, second], implementation="triton")
        _, tail = split(values, [first, second], num_events=[len(x)], implementation="triton")
        padded = to_padded(values, ends, 80, side="left", implementation="triton")
        again = from_padded(padded, ends, num_events=len(values), side="left", implementation="triton")
        return values.detach(), ends, tail.detach(), again.detach(), *torch.autograd.grad(again, (a, b), grad)

    def changes():
        for lengths in ([0, 50, 50, 0], [10, 20, 30, 40], [1, 2, 3, 4]):  # the last are fewer than there are events
            first.copy_(torch.tensor([0, *torch.tensor(lengths).cumsum(0)]))
            yield

    assert_captured(run, changes())


def test_inductor_compiles_it_whole():
    def loss(x, y, first, second):
        values, ends = concatenate([x * 2, y], [first, second], implementation="triton")
        return (to_padded(values, ends, 9, implementation="triton") ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([2, 3, 0], [5, 7], [100, 3, 8, 1]):  # no two sizes alike, which the compiler would remember
            (x, first), (y, second) = rows(lengths), rows([each // 2 + 2 for each in lengths])
            leaves = [x.requires_grad_(), y.requires_grad_()]
            eager = torch.autograd.grad(loss(x, y, first, second), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(x, y, first, second), leaves), eager)


def test_more_rows_than_a_grid_has():
    x, offsets = rows(torch.arange(70_000) % 3, 2)
    values, ends = concatenate([x, x], [offsets, offsets], implementation="triton")
    expected, expected_ends = concatenate([x.cpu(), x.cpu()], [offsets.cpu(), offsets.cpu()])
    assert torch.equal(values.cpu(), expected)
    assert torch.equal(ends.cpu(), expected_ends)
    padded = to_padded(x, offsets, 2, implementation="triton")
    assert torch.equal(from_padded(padded, offsets, num_events=len(x), implementation="triton"), x)


def test_elements_past_the_range_of_int32():
    x, offsets = rows([2**18, 5], 8192, torch.bfloat16)
    assert x.numel() > 2**31
    values, _ = concatenate([x, x[:2, None]], [offsets, None], implementation="triton")
    assert torch.equal(values[-7:-1], torch.cat([x[:1], x[-5:]]))
    assert torch.equal(values[-1], x[1])
    assert torch.equal(values[:2**18:1000], x[:2**18:1000])


@pytest.mark.parametrize("operation", ["concatenate", "to_padded", "from_padded"])
def test_the_benchmark_checks_and_measures(operation):
    found = bench.compare(Workload(operation, 48, 16, 50, rows=20))
    assert {"batch", "limit", "triton", "edits", "padded"} <= {row["implementation"] for row in found}
    assert all(row["value"] > 0 for row in found)
