"""Kernels that are launched while the one before them runs: what they read is all there, at once and in graphs."""

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402 - needs the line above

from serrate.ops.launch import launched  # noqa: E402
from serrate.ops.overlap import let_next_begin, overlaps, wait_for_previous  # noqa: E402
from serrate.testing.graphs import assert_captured  # noqa: E402

_BLOCK = 256
_PROGRAMS = 4096  # several times as many as run at a time


@launched
@triton.jit
def _first(x, out, turns, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):  # noqa: N803
    let_next_begin(OVERLAP)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(x + at)
    for _ in range(turns):  # late programs end long after the next kernel could begin
        found = found * 0.5 + tl.load(x + at)
    tl.store(out + at, found)


@launched
@triton.jit
def _next(x, out, count, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):  # noqa: N803
    wait_for_previous(OVERLAP)
    at = count - 1 - (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))  # the last that were stored
    tl.store(out + at, tl.load(x + at) + 1)


def _both(x: torch.Tensor, overlap: bool) -> torch.Tensor:
    between, out = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    _first[(_PROGRAMS,)](x, between, 500, _BLOCK, overlap)
    _next[(_PROGRAMS,)](between, out, x.numel(), _BLOCK, overlap, launch_pdl=overlap)
    return out


def test_only_devices_that_can_overlap():
    assert not overlaps(torch.zeros(1))


@pytest.mark.gpu
def test_the_next_kernel_reads_all_that_the_first_has_stored():
    x = torch.randn(_PROGRAMS * _BLOCK, device="cuda")
    if not overlaps(x):
        pytest.skip("kernels do not overlap before compute capability 9.0")
    expected = _both(x, overlap=False)
    assert expected.isfinite().all()
    for _ in range(20):
        assert torch.equal(_both(x, overlap=True), expected)
    assert_captured(lambda: [_both(x, overlap=True)], (x.normal_() for _ in range(5)))
