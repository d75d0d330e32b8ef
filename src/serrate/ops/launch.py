"""How the host starts kernels: as Triton does, without most of that where the like of a launch has been before.

At every launch Triton finds out what a compiler could make of the arguments, which takes several times as long as the
launch itself. A kernel that is `launched` remembers which compiled one Triton took, under a key that tells arguments
apart wherever Triton does. What it is not sure of it leaves to Triton: another version, an interpreter, hooks of
profilers and debuggers, arguments of other kinds.
"""

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
_NUMBERS = frozenset((int, float, bool, type(None)))


class Launched:
    """A kernel of `triton.jit` that is launched as ever, `kernel[(programs,)](*arguments, **options)`, but sooner.

    Arguments are tensors, tensor descriptors, numbers, None, and tuples of these; constants may be strings too. Options
    are Triton's.
    """

    def __init__(self, kernel: Any):
        self.kernel = kernel
        parameters = getattr(kernel, "params", ())  # Triton's interpreter has none
        self._names = [each.name for each in parameters]
        self._dynamic = [each.num for each in parameters if not each.is_constexpr]
        self._begun: dict[tuple, tuple] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return partial(self._launch, grid) if _KNOWN else self.kernel[grid]

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        missing = self._names[len(arguments):]
        if missing and all(name in options for name in missing):
            arguments += tuple([options.pop(name) for name in missing])
        device = torch._C._cuda_getDevice()
        key, values = self.told(arguments, options, device)
        begun = None if key is None or _looked_at(self.kernel) else self._begun.get(key)
        if begun is None or len(grid) != 1:
            self._remember(key, self.kernel[grid](*arguments, **options), len(arguments))
            return
        launch, *fixed = begun
        launch(grid[0], 1, 1, torch._C._cuda_getCurrentRawStream(device), *fixed, None, None, None, *values)

    def told(self, arguments: tuple, options: dict[str, Any], device: int) -> tuple[tuple | None, list]:
        """Return what tells this launch from others, and the arguments with addresses in the place of tensors.

        The first is None where an argument is of another kind. It is equal only where Triton's own is: tensors are told
        apart by dtype and by whether 16 divides their address, whole numbers by whether it divides them, by whether
        they are 1 and by whether they fit 32 bits, other numbers by their type, constants and tuples by value.
        """
        values, told = list(arguments), list(arguments)
        for i in self._dynamic:
            x = values[i]
            kind = type(x)
            if kind is Tensor or kind is torch.nn.Parameter:
                values[i] = address = x.data_ptr()
                told[i] = (x.dtype,) if address & 15 else x.dtype
            elif kind is int:
                told[i] = x if not -_LIMIT <= x < _LIMIT else "one" if x == 1 else "odd" if x & 15 else "whole"
            elif kind is tuple and _NUMBERS.issuperset(kinds := tuple(map(type, x))):
                told[i] = x, kinds
            elif x is not None and (found := _told(x)) is not None:
                told[i] = found
            elif x is not None:
                return None, values
        return (device, *told, *options.items()), values

    def _remember(self, key: tuple | None, compiled: Any, count: int) -> None:
        """Keep the compiled kernel that Triton has launched, where all of its arguments were given."""
        launcher = getattr(compiled, "_run", None)
        if key is None or launcher is None or count != len(self._names):
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
    """Return what tells an argument from others, a number in a tuple by its value; None of another kind."""
    kind = type(x)
    if kind is float or kind is bool:
        return kind
    if isinstance(x, tuple):
        told = kind, *((each, type(each)) if type(each) in _NUMBERS else _told(each) for each in x)
        return None if None in told else told
    if kind is Tensor or kind is torch.nn.Parameter:
        return (x.dtype,) if x.data_ptr() & 15 else x.dtype
    if kind.__name__ == "TensorDescriptor":  # of Triton or of Gluon, which says how shared memory is laid out too
        return kind, x.base.dtype, tuple(x.block_shape), repr(getattr(x, "layout", None))
    return None


def _looked_at(kernel: Any) -> bool:
    """Whether somebody wants to hear of launches, or kernels other than those that are remembered."""
    knobs = triton.knobs  # pyright: ignore[reportAttributeAccessIssue]
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or knobs.runtime.debug
                or kernel.pre_run_hooks or knobs.compilation.instrumentation_mode)
