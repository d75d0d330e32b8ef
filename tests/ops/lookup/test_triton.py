"""What the Triton implementation promises beyond the suite of `test_lookup.py`; needs a CUDA device."""

import pytest
import torch

from serrate.ops.lookup import bench, lookup
from serrate.ops.lookup.cases import Case
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("often", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("width", [1, 7, 64, 100, 256])
def test_many_places(width, often):
    case = Case("", 3000, width, 200_000, 2, how="sum", often=often)
    assert bench.wrong(case, case.tensors(device="cuda")) < bench.TOLERANCE[torch.float32]


def test_a_captured_graph_follows_new_rows_and_nothing_waits():
    table, rows, _ = Case("", 100, 64, 5000, 4, how="sum").tensors(device="cuda")
    table.requires_grad_()
    grad = torch.randn(5000, 64, device="cuda")

    def run():
        out = lookup(table, rows, how="sum", implementation="triton")
        return out.detach(), *torch.autograd.grad(out, table, grad)

    def changes():
        for size in (3, 100):
            rows.copy_(torch.randint_like(rows, size))
            yield

    assert_captured(run, changes())


def test_inductor_compiles_it_whole():
    def loss(table, rows):
        return (lookup(table * 2, rows, how="sum", implementation="triton") ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for lines in (5, 12, 700):
        table, rows, _ = Case("", 50, 32, lines, 3).tensors(device="cuda")
        table.requires_grad_()
        eager = torch.autograd.grad(loss(table, rows), table)
        torch.testing.assert_close(torch.autograd.grad(compiled(table, rows), table), eager)


def test_the_benchmark_checks_and_measures():
    rows = bench.compare(Case("small", 100, 48, 500, 2, how="sum"))
    assert {row["implementation"] for row in rows} == {"batch", "limit", "triton", "eager"}
    assert all(row["value"] > 0 for row in rows)
