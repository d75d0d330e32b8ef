"""How operators of ours are called: whom kernels serve, when operators may be left out, on which device kernels start.

Torch's dispatcher takes half of a small call's time on the host. What it is needed for are tracers, dispatch modes and
tensors of other classes; a call without these can go to the kernels at once.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels as Python on the CPU, for tests
_PLAIN = (Tensor, torch.nn.Parameter)
_HAS_TRITON = find_spec("triton") is not None
_OF_KERNELS = (torch.float32, torch.bfloat16, torch.float16)


def watched(*tensors: Tensor | None) -> bool:
    """Whether a compiler, a dispatch mode or a tensor of another class looks on, which needs operators."""
    return (torch.compiler.is_compiling() or bool(torch._C._len_torch_dispatch_stack())
            or any(x is not None and type(x) not in _PLAIN for x in tensors))


def no_kernel(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why kernels in Triton cannot serve tensors of this device and dtype; None where they can."""
    if device.type != "cuda" and not INTERPRETED:
        return f"needs a CUDA device, got {device.type}"
    if dtype not in _OF_KERNELS:
        return f"needs float32, bfloat16 or float16, got {dtype}"
    return None if _HAS_TRITON else "needs the package triton"


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which Triton launches where `x` is: it would on the current device."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def refuse_tangents(name: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError where a forward-mode derivative is asked for: operators give 0 for it, in silence."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(f"{name} has no forward-mode derivative")


def unit_stride(x: Tensor) -> Tensor:
    """Return the tensor, copied where its last axis is not dense."""
    return x if x.stride(-1) == 1 else x.contiguous()
