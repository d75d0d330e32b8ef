"""What the Triton implementation promises beyond the suite of `test_target_unit.py`; needs a CUDA device."""

import pytest
import torch

from serrate.jagged import offsets_from_lengths
from serrate.ops.target_unit import Reading, target_unit
from serrate.ops.target_unit.cases import Case
from serrate.ops.target_unit.reference import pairs
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu
# of float32 two kernels find the gradients of events and of matrices, in half precision one does where it can
both_passes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def lengths_about(rows: int, mean: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 2 * mean + 1, (rows,), generator=torch.Generator().manual_seed(0)).tolist())


def plain(q, k, weight, bias, offsets, rows, read):
    """Return the same by torch's own product of the features, which are rounded as the tensors are."""
    lengths = offsets.diff() if rows is None else offsets.diff()[rows]
    targets, events = pairs(Reading(offsets, rows, offsets_from_lengths(lengths), read))
    q, k = q[targets], k[events]
    return torch.cat([q, k, q - k, q * k], 1) @ weight + bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("width", "columns"), [(1, 1), (8, 36), (50, 30), (64, 64), (128, 80), (200, 72), (64, 300)])
@pytest.mark.parametrize(("rows", "mean"), [(300, 4), (40, 30), (12, 300), (3, 3000)])
@pytest.mark.parametrize("shared", [False, True])
def test_every_width_and_length(dtype, width, columns, rows, mean, shared):
    read = tuple(i * 7 % rows for i in range(2 * rows)) if shared else None
    case = Case("", lengths_about(rows, mean), read, width, columns)
    offsets, rows_of = case.where("cuda")
    found = []
    for to, name in ((dtype, "triton"), (torch.float64, "reference"), (dtype, "plain")):
        leaves = [x.to(to).requires_grad_() for x in case.tensors(dtype, "cuda")]
        out = plain(*leaves, offsets, rows_of, case.read) if name == "plain" else target_unit(
            *leaves, offsets, rows=rows_of, num_events=case.read if shared else None, implementation=name)
        grad = torch.randn(out.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(dtype)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(to))])
    for i, (actual, exact, rough) in enumerate(zip(*found, strict=True)):
        assert_within_budget(actual, exact, rough, gradient=i > 0, name=("output", "q", "k", "weight", "bias")[i])


@both_passes
@pytest.mark.parametrize("shared", [False, True])
def test_a_captured_graph_follows_other_offsets_and_nothing_waits(shared, dtype):
    case = Case("", (100, 0, 200, 30, 70), (4, 4, 0, 2, 1) if shared else None, 64, 32)
    leaves = [each.requires_grad_() for each in case.tensors(dtype, "cuda")]
    offsets, rows = case.where("cuda")
    grad = torch.randn(case.read, 32, device="cuda").to(dtype)

    def run():
        out = target_unit(*leaves, offsets, rows=rows, num_events=case.read if shared else None,
                          implementation="triton")
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    def changes():
        # as many events are read: by rows 4, 4, 0, 2 and 1, or by each row its own
        for lengths in ((100, 0, 200, 30, 70), (100, 60, 100, 50, 90) if shared else (0, 0, 399, 1, 0)):
            offsets.copy_(offsets_from_lengths(torch.tensor(lengths)))
            yield

    assert_captured(run, changes())


@both_passes
def test_inductor_compiles_it_whole(dtype):
    def loss(q, k, weight, offsets):
        return (target_unit(q * 2, k, weight, None, offsets, implementation="triton") ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((5, 0, 3), (12, 1, 4, 2), (0, 70, 9, 3, 2)):
            case = Case("", lengths, biased=False)
            leaves, offsets = [each.requires_grad_() for each in case.tensors(dtype, "cuda")], case.where("cuda")[0]
            eager = torch.autograd.grad(loss(*leaves, offsets), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*leaves, offsets), leaves), eager)


def test_more_targets_than_a_grid_has_blocks_share_one_history():
    case = Case("", (3, 2), (0, 1) * 35_000, 16, 16)
    q, k, weight, bias = case.tensors(device="cuda")
    offsets, rows = case.where("cuda")
    out = target_unit(q, k, weight, bias, offsets, rows=rows, num_events=case.read, implementation="triton")
    torch.testing.assert_close(out, plain(q, k, weight, bias, offsets, rows, case.read), rtol=1e-3, atol=1e-3)


def test_elements_past_the_range_of_int32():
    events = 2**22 + 300
    k = torch.randn(events, 512, device="cuda", dtype=torch.bfloat16)
    assert k.numel() > 2**31
    q, weight = torch.randn(2, 512, device="cuda").bfloat16(), torch.randn(2048, 16, device="cuda").bfloat16()
    out = target_unit(q, k, weight, None, torch.tensor([0, events - 9, events], device="cuda"), implementation="triton")
    alone = target_unit(q[1:], k[-9:], weight, None, torch.tensor([0, 9], device="cuda"), implementation="triton")
    torch.testing.assert_close(out[-9:], alone)
