"""How operators of ours are called: whom kernels serve, when operators may be left out, on which device kernels start.

Torch's dispatcher takes most of a small call's time on the host. What it is needed for are tracers, dispatch modes and
tensors of other classes; a call without these can go to the kernels at once. `operator` makes operators that do so.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from itertools import islice
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels as Python on the CPU, for tests
_NOTHING = nullcontext()
_HAS_TRITON = find_spec("triton") is not None
_OF_KERNELS = (torch.float32, torch.bfloat16, torch.float16)


def watched(*tensors: Tensor | None) -> bool:
    """Whether a compiler, a dispatch mode or a tensor of another class looks on, which needs operators."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:  # in this order: compilers follow it
        return True
    for x in tensors:
        kind = type(x)
        if kind is not Tensor and x is not None and kind is not torch.nn.Parameter:
            return True
    return False


def no_triton(device: torch.device) -> str | None:
    """Return why kernels in Triton cannot serve tensors of this device; None where they can."""
    if device.type != "cuda" and not INTERPRETED:
        return f"needs a CUDA device, got {device.type}"
    return None if _HAS_TRITON else "needs the package triton"


def no_kernel(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Return why kernels of single and half precision cannot serve a device and dtypes; None where they can."""
    if (reason := no_triton(device)) is not None:
        return reason
    other = [dtype for dtype in dtypes if dtype not in _OF_KERNELS]
    return f"needs float32, bfloat16 or float16, got {other[0]}" if other else None


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which Triton launches where `x` is: it would on the current device."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return _NOTHING


def refuse_tangents(name: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError where a forward-mode derivative is asked for: operators give 0 for it, in silence."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(f"{name} has no forward-mode derivative")


def unit_stride(x: Tensor) -> Tensor:
    """Return the tensor, copied where its last axis is not dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


# --- operators that are left out where nobody looks on ---


class Operator:
    """A computation as a custom operator of torch, called without it where neither tracer nor mode looks on.

    Fake results and gradients are registered as with `torch.library.custom_op`, and are the same on both ways: so a
    gradient of gradients is right, or refused where none is registered. Arguments are tensors, lists of them, None and
    plain values; results are new tensors. A forward-mode derivative is refused.

    Args:
        name: `serrate::<operation>_<implementation>`, under which torch knows it.
        compute: what it does, with types that torch can read a schema from.
        device_types: on which devices; None: all.
    """

    def __init__(self, name: str, compute: Callable[..., Any], device_types: str | None = None):
        self.operation = name.rpartition("::")[2].rpartition("_")[0]
        self.compute = compute
        self.gives_list = get_origin(get_type_hints(compute)["return"]) is list
        self.registered = torch.library.custom_op(name, compute, mutates_args=(), device_types=device_types)
        self.register_fake = self.registered.register_fake
        self.gradients: Callable[..., Any] | None = None
        self.keep: Callable[..., None] | None = None

    def register_autograd(self, gradients: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Say what the gradients are, `gradients(ctx, *grads)`, and what they need, `setup_context(ctx, inputs, out)`.

        `ctx.needs_input_grad` begins with what `inputs` are; one of a list of tensors is not to be read.
        """
        self.registered.register_autograd(gradients, setup_context=setup_context)
        self.gradients, self.keep = gradients, setup_context

    def __call__(self, *arguments: Any) -> Any:
        """Compute, through torch's dispatcher where something looks on."""
        if torch.compiler.is_compiling():
            return self.registered(*arguments)
        flat = _flat(arguments)
        tensors = [x for x in flat if isinstance(x, Tensor)]
        refuse_tangents(self.operation, *tensors)
        if watched(*tensors):
            return self.registered(*arguments)
        if not torch.is_grad_enabled() or True not in [x.requires_grad for x in tensors]:
            return self.compute(*arguments)
        if self.gradients is None:  # torch's operator refuses to be differentiated
            return self.registered(*arguments)
        lengths = [len(x) if type(x) is list else None for x in arguments]
        found = _Direct.apply(*flat, self, lengths)  # pyright: ignore[reportGeneralTypeIssues]
        return list(found) if self.gives_list else found


def operator(name: str, device_types: str | None = None) -> Callable[[Callable[..., Any]], Operator]:
    """Make the decorated computation an `Operator` of this name."""
    return lambda compute: Operator(name, compute, device_types)


class _Direct(torch.autograd.Function):
    """An operator without torch's dispatcher: the same computation, what is kept of it, and the same gradients.

    It takes tensors one by one, so lists of arguments are told apart by their lengths, None of what is no list.
    """

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> Tensor | tuple[Tensor, ...]:
        *arguments, called, lengths = flat
        ctx.called, given = (called, lengths), iter(arguments)
        inputs = tuple(next(given) if length is None else list(islice(given, length)) for length in lengths)
        found = called.compute(*inputs)
        called.keep(ctx, inputs, found)
        return tuple(found) if called.gives_list else found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        called, lengths = ctx.called
        found = called.gradients(ctx, *([list(grads)] if called.gives_list else grads))
        return *_flat(x if length is None else x or [None] * length
                      for x, length in zip(found, lengths, strict=True)), None, None


def _flat(arguments: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for x in arguments:
        flat.extend(x) if type(x) is list else flat.append(x)
    return flat
