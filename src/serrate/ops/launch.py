"""How the host starts kernels: as Triton does, without most of that where the like of a launch has been before.

At every launch Triton finds out what a compiler could make of the arguments, which takes several times as long as the
launch itself. A kernel that is `launched` remembers which compiled one Triton took, under a key that tells arguments
apart wherever Triton does. What it is not sure of it leaves to Triton: another version, an interpreter, hooks of
profilers and debuggers, arguments of other kinds.
"""

import marshal
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from .direct import INTERPRETED

_KNOWN = triton.__version__.startswith("3.6.") and torch.version.cuda is not None and not INTERPRETED
_MOST = 4096  # launches that a kernel remembers: numbers that never come again could make any number of them
_LIMIT = 2**31  # of numbers that fit 32 bits
_DTYPES = [x for x in vars(torch).values() if isinstance(x, torch.dtype)]
_ALIGNED, _ODD = ({dtype: f"{kind}{i}".encode() for i, dtype in enumerate(_DTYPES)} for kind in "ao")


class Launched:
    """A kernel of `triton.jit` that is launched as ever, `kernel[(programs,)](*arguments, **options)`, but sooner.

    Arguments are tensors, tensor descriptors, numbers, None, and tuples of these; constants may be strings too. Options
    are Triton's.
    """

    def __init__(self, kernel: Any):
        self.kernel = kernel
        parameters = getattr(kernel, "params", ())  # Triton's interpreter has none
        self._count, self._dynamic = len(parameters), [each.num for each in parameters if not each.is_constexpr]
        self._names = {each.name for each in parameters}
        self._nested: list[int] = []  # which of them have been tuples with tensors
        self._begun: dict[bytes, tuple] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return partial(self._launch, grid) if _KNOWN else self.kernel[grid]

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        device = torch._C._cuda_getDevice()
        key, values = self.told(arguments, options, device)
        begun = None if _looked_at(self.kernel) else self._begun.get(key)
        if begun is None or len(grid) != 1:
            self._remember(key, self.kernel[grid](*arguments, **options), len(arguments), options)
            return
        launch, *fixed = begun
        launch(grid[0], 1, 1, torch._C._cuda_getCurrentRawStream(device), *fixed, None, None, None, *values)

    def told(self, arguments: tuple, options: dict[str, Any], device: int) -> tuple[bytes, list]:
        """Return what tells this launch from others, and the arguments with addresses in the place of tensors.

        The key is empty where an argument is of another kind. Keys are equal only where Triton's own are: tensors by
        dtype and by whether 16 divides their address, whole numbers by whether it divides them, by whether they are 1
        and by their type, other numbers by their type, constants and what stands in tuples by value.
        """
        values, told = list(arguments), list(arguments)
        for i in self._dynamic:
            x = values[i]
            kind = type(x)
            if kind is Tensor or kind is torch.nn.Parameter:
                values[i] = address = x.data_ptr()
                told[i] = (_ODD if address & 15 else _ALIGNED)[x.dtype]
            elif kind is int and x != 1 and -_LIMIT <= x < _LIMIT:
                told[i] = b"n" if x & 15 else b"m"
            elif kind is float:
                told[i] = b"f"
            elif kind is not tuple and x is not None:
                told[i] = _told(x)
        for i in self._nested:
            told[i] = _told(told[i])
        try:
            return marshal.dumps((device, told, options), 2), values
        except ValueError:
            nested = [i for i in self._dynamic if type(told[i]) is tuple and _told(told[i]) != told[i]]
            if not nested:
                return b"", values
        self._nested = sorted({*self._nested, *nested})
        return self.told(arguments, options, device)

    def _remember(self, key: bytes, compiled: Any, count: int, options: dict[str, Any]) -> None:
        """Keep the compiled kernel that Triton has launched, where all of its arguments were given in their places."""
        launcher = getattr(compiled, "_run", None)
        if not key or launcher is None or count != self._count or not self._names.isdisjoint(options):
            return
        if launcher.global_scratch_size or launcher.profile_scratch_size:
            return
        if len(self._begun) >= _MOST:
            self._begun.clear()
        self._begun[key] = (launcher.launch, compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl,
                            None, None, compiled.packed_metadata)


def launched(kernel: Any) -> Launched:
    """Make the decorated kernel of `triton.jit` or `gluon.jit` one that starts sooner."""
    return Launched(kernel)


def _told(x: Any) -> Any:
    """Return what tells an argument from others: a tensor, alone or in tuples, or its description; all else is told."""
    kind = type(x)
    if kind is tuple:
        return tuple([_told(each) for each in x])
    if kind is Tensor or kind is torch.nn.Parameter:
        return (_ODD if x.data_ptr() & 15 else _ALIGNED)[x.dtype]
    if kind.__name__ == "TensorDescriptor":  # of Triton or of Gluon, which says how shared memory is laid out too
        layout = getattr(x, "layout", None)
        return kind.__module__, _ALIGNED[x.base.dtype], x.block_shape, type(layout).__name__, \
            None if layout is None else list(vars(layout).values())
    return x


def _looked_at(kernel: Any) -> bool:
    """Whether somebody wants to hear of launches, or kernels other than those that are remembered."""
    knobs = triton.knobs  # pyright: ignore[reportAttributeAccessIssue]
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or knobs.runtime.debug
                or kernel.pre_run_hooks or knobs.compilation.instrumentation_mode)
