"""Kernels that are launched while the one before them still runs, on devices that have this: compute capability 9.0.

The first says early that the next may be launched, and the next waits for its results before it reads them: that saves
about a microsecond, which is what a launch takes. All programs of the next have to wait, since what is launched after
it waits for it alone.
"""

# ruff: noqa: N803

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def overlaps(x: Tensor) -> bool:
    """Return whether kernels may overlap where `x` is: `OVERLAP` of both, `launch_pdl` of the next one's launch."""
    return x.is_cuda and _overlaps(x.get_device())


@lru_cache
def _overlaps(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """Let the next kernel be launched when all programs of this one have come here."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Wait until the kernel before this one has ended, and all that it stored can be read."""
    if OVERLAP:
        gdc_wait()
