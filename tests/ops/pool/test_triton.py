"""What the Triton implementation promises beyond the suite of `test_pool.py`; needs a CUDA device."""

import pytest
import torch

from serrate.jagged import offsets_from_lengths
from serrate.ops.pool import bench, pool, softmax
from serrate.ops.pool.cases import HOWS, Case, run
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu

ROWS = (700, 0, 3, 5000, 1, 64, 0)
KINDS = [*((how, None, None) for how in (*HOWS, "softmax")), ("sum", (), None), ("sum", (), "softmax")]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "attention" if kind[2] else
                                     "weighted sum" if kind[1] is not None else kind[0])


def made(kind, shape=(64,), rows=ROWS, **others) -> Case:
    return Case("", rows, shape, *kind, **others)


@every_kind
@pytest.mark.parametrize("width", [1, 3, 8, 50, 64, 100, 128, 300, 1024])
def test_every_width_over_chunks_of_rows(kind, width):
    case = made(kind, (width,))
    found = []
    for dtype, name in ((torch.bfloat16, "triton"), (torch.float64, "reference"), (torch.bfloat16, "reference")):
        leaves = [x.to(dtype).requires_grad_() for x in case.tensors(torch.bfloat16, "cuda")]
        out = run(case, leaves, case.offsets("cuda"), name)
        found.append([out.detach(), *torch.autograd.grad(out.nan_to_num(neginf=0).sin().sum(), leaves)])
    for i, (actual, exact, rough) in enumerate(zip(*found, strict=True)):
        assert_within_budget(actual, exact, rough, gradient=i > 0)


@every_kind
def test_a_captured_graph_follows_new_rows_and_nothing_waits(kind):
    case = made(kind, rows=(300, 0, 20, 1))
    leaves, offsets = [x.requires_grad_() for x in case.tensors(device="cuda")], case.offsets("cuda")

    def both():
        out = run(case, leaves, offsets, "triton")
        return out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))

    def changes():
        for rows in ((0, 1, 0, 320), (80, 80, 80, 81)):
            offsets.copy_(offsets_from_lengths(torch.tensor(rows)))
            yield

    assert_captured(both, changes())


@every_kind
def test_inductor_compiles_it_whole(kind):
    def loss(offsets, *leaves):
        return (run(made(kind), [x * 2 for x in leaves], offsets, "triton").nan_to_num(neginf=0) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in ((5, 2), (12, 0, 7), (300, 2, 1, 9)):
            case = made(kind, rows=rows)
            leaves, offsets = [x.requires_grad_() for x in case.tensors(device="cuda")], case.offsets("cuda")
            eager = torch.autograd.grad(loss(offsets, *leaves), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(offsets, *leaves), leaves), eager)


def test_elements_past_the_range_of_int32():
    events = 2**25 + 3
    x = torch.ones(events, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    assert x.numel() > 2**31
    offsets = torch.tensor([0, events - 9, events], device="cuda")
    for how, expected in (("mean", 1.0), ("max", 1.0)):
        out = pool(x, offsets, how=how, implementation="triton")
        assert torch.equal(out, torch.full_like(out, expected))
        grad, = torch.autograd.grad(out[1].sum(), x)
        first = 1 if how == "max" else 1 / 9
        torch.testing.assert_close(grad[-9], torch.full_like(grad[-9], first))
        assert not grad[:-9].any()
    tail = softmax(x.detach(), offsets, implementation="triton")[-9:]
    torch.testing.assert_close(tail, torch.full_like(tail, 1 / 9))


def test_the_benchmark_checks_and_measures():
    rows = bench.compare(Case("small", (50, 0, 30, 9), (48,), weights=(), activation="softmax", dtype=torch.bfloat16))
    assert {"batch", "limit", "triton", "padded", "compiled"} <= {row["implementation"] for row in rows}
    assert all(row["value"] > 0 for row in rows)
