"""How the host starts kernels: as Triton does, without most of that where the like of a launch has been before.

At every launch Triton finds out what a compiler could make of the arguments, which takes several times as long as the
launch itself. A kernel that is `launched` remembers which compiled one Triton took, under a key that tells arguments
apart wherever Triton does. What it is not sure of it leaves to Triton: another version, an interpreter, hooks of
profilers and debuggers, arguments of other kinds.

Of a computation whose shapes have been there before, all that differs are addresses: `recalled` keeps its launches and
makes them again, without the Python that led to them.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from .direct import INTERPRETED

_KNOWN = triton.__version__.startswith("3.6.") and torch.version.cuda is not None and not INTERPRETED
_MOST = 4096  # launches that a kernel remembers: numbers that never come again could make any number of them
_LIMIT = 2**31  # of numbers that fit 32 bits
_NUMBERS = frozenset((int, float, bool, type(None)))
_ATEN = torch.ops.aten
_MAKERS = frozenset((_ATEN.empty.memory_format, _ATEN.empty_like.default, _ATEN.new_empty.default,
                     _ATEN.zeros.default))


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
        tape = _listening()
        if begun is None or len(grid) != 1:
            if tape is not None:
                tape.whole = False
            self._remember(key, self.kernel[grid](*arguments, **options), len(arguments))
            return
        launch, *fixed = begun
        launch(grid[0], 1, 1, torch._C._cuda_getCurrentRawStream(device), *fixed, None, None, None, *values)
        if tape is not None:
            tape.hear(self.kernel, device, (launch, grid[0], fixed), arguments, values)

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


@lru_cache
def has_gluon(device: torch.device) -> bool:
    """Whether a device is a Hopper, and Triton's Gluon the one that our kernels for these are written in."""
    return torch.cuda.get_device_capability(device) == (9, 0) and triton.__version__.startswith("3.6.")


def launched(kernel: Any) -> Launched:
    """Make the decorated kernel of `triton.jit` or `gluon.jit` one that starts sooner."""
    return Launched(kernel)


def recalled(memory: dict[Hashable, Any] | None, name: Hashable, given: Sequence[Tensor],
             compute: Callable[[], dict[Hashable, Tensor]]) -> dict[Hashable, Tensor]:
    """Compute, or make the launches again that this took.

    Args:
        memory: of computations with the same shapes, strides, dtypes and numbers, on one device; None: there is none.
            Nothing is kept of the first of a `name`, and no tensors of any.
        name: of the computation in this memory.
        given: all tensors that there are before; each that is launched with is one of them, or made by `compute`.
        compute: launches kernels, and asks nothing of torch but memory, empty or zero; returns tensors that it made.
    """
    if memory is None or not _KNOWN:
        return compute()
    tape = memory.get(name)
    if tape is None:  # in which Triton may have to compile
        memory[name] = False
        return compute()
    if tape is False:
        with Tape(given) as tape:
            found = tape.give(compute())
        memory[name] = tape
        return found
    return compute() if (found := tape.again(given)) is None else found


class Tape(TorchDispatchMode):
    """What a computation does while this is its dispatch mode: the tensors that it makes, the kernels that it launches.

    It can be done `again` unless there was something else: other operations, other devices, launches by Triton itself,
    arguments with tensors that were neither given nor made.
    """

    def __init__(self, given: Sequence[Tensor]):
        super().__init__()
        self._tensors = list(given)
        self._places: dict[int, int] = {}
        self._same = [(i, self._places[id(x)]) for i, x in enumerate(given)
                      if self._places.setdefault(id(x), i) < i]  # is one tensor in two places
        self._count = len(given)
        self._made: list[Callable[[], Tensor]] = []
        self._launches: list[tuple] = []
        self._kernels: list[Any] = []
        self._given_back: dict[Hashable, int] = {}
        self._device = torch._C._cuda_getDevice()
        self.whole = not any(x.data_ptr() & 15 for x in given)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do what is asked for, and note it."""
        found = function(*args, **(kwargs or {}))
        if function in _MAKERS:
            self._places[id(found)] = self._count + len(self._made)
            filled = function is _ATEN.zeros.default
            make = partial(torch.zeros, found.shape) if filled else partial(
                torch.empty_strided, found.shape, found.stride())
            self._made.append(partial(make, dtype=found.dtype, device=found.device))
        elif function is _ATEN.detach.default and id(args[0]) in self._places:  # so ends `torch.empty`
            self._places[id(found)] = self._places[id(args[0])]
        else:
            self.whole = False
        self._tensors.append(found)
        return found

    def __exit__(self, *raised: Any) -> None:
        """Keep no tensor."""
        super().__exit__(*raised)
        self._tensors, self._places = [], {}

    def hear(self, kernel: Any, device: int, start: tuple, arguments: tuple, values: list) -> None:
        """Note a launch: `start` is what it took before its values, which are `arguments` with addresses of tensors."""
        addresses, others = [], []
        for place, x in enumerate(arguments):
            if id(x) in self._places:
                addresses.append((place, self._places[id(x)]))
            elif not _is_constant(x):
                others.append((place, self._pattern(x)))
                values[place] = None
        self.whole &= device == self._device and all(pattern is not None for _, pattern in others)
        self._kernels.append(kernel)
        self._launches.append((*start, values, addresses, others))

    def _pattern(self, x: Any) -> Callable[[list[Tensor]], Any] | None:
        """Return what makes the like of a tuple or a tensor descriptor with other tensors."""
        if isinstance(x, tuple) and all(id(each) in self._places or _is_constant(each) for each in x):
            return partial(_tuple_again, [None if id(each) in self._places else each for each in x],
                           [(i, self._places[id(each)]) for i, each in enumerate(x) if id(each) in self._places])
        place = self._places.get(id(getattr(x, "base", None))) if type(x).__name__ == "TensorDescriptor" else None
        return None if place is None else partial(_descriptor_again, type(x), {**vars(x), "base": None}, place)

    def give(self, found: dict[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Note and return the results."""
        places = {key: self._places.get(id(x), -1) for key, x in found.items()}
        self.whole &= all(place >= self._count for place in places.values())
        self._given_back = places
        return found

    def again(self, given: Sequence[Tensor]) -> dict[Hashable, Tensor] | None:
        """Make the launches again with these tensors in place of those that were given; None: do it yourself."""
        if not self.whole or not all(given[i] is given[j] for i, j in self._same):
            return None
        addresses = [x.data_ptr() for x in given]
        device = torch._C._cuda_getDevice()
        if device != self._device or True in [x & 15 != 0 for x in addresses] or _looked_at(*self._kernels):
            return None
        tensors = [*given, *[make() for make in self._made]]
        addresses += [x.data_ptr() for x in tensors[self._count:]]
        stream = torch._C._cuda_getCurrentRawStream(device)
        for launch, programs, fixed, values, places, others in self._launches:
            values = values.copy()
            for place, i in places:
                values[place] = addresses[i]
            for place, pattern in others:
                values[place] = pattern(tensors)
            launch(programs, 1, 1, stream, *fixed, None, None, None, *values)
        return {key: tensors[i] for key, i in self._given_back.items()}


def _tuple_again(fixed: list, places: list[tuple[int, int]], tensors: list[Tensor]) -> tuple:
    values = fixed.copy()
    for place, i in places:
        values[place] = tensors[i]
    return tuple(values)


def _descriptor_again(kind: type, fields: dict[str, Any], place: int, tensors: list[Tensor]) -> Any:
    """Return a descriptor as there has been one, which nobody needs to check."""
    made = object.__new__(kind)
    vars(made).update(fields, base=tensors[place])
    return made


def _listening() -> Tape | None:
    """Return what writes down this thread's launches."""
    mode = _get_current_dispatch_mode() if torch._C._len_torch_dispatch_stack() else None
    return mode if isinstance(mode, Tape) else None


def _is_constant(x: Any) -> bool:
    kind = type(x)
    return kind in _NUMBERS or kind is str or (isinstance(x, tuple) and all(map(_is_constant, x)))


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


def _looked_at(*kernels: Any) -> bool:
    """Whether somebody wants to hear of launches, or kernels other than those that are remembered."""
    knobs = triton.knobs  # pyright: ignore[reportAttributeAccessIssue]
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or knobs.runtime.debug
                or any(kernel.pre_run_hooks for kernel in kernels) or knobs.compilation.instrumentation_mode)
