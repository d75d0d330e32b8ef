"""Results that the backward pass computes again instead of keeping them for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..errors import InvalidArgument


class Recompute:
    """A context in which autograd keeps, of results made by calling it, what they were made of.

        with Recompute(x, weight) as again:
            hidden = again(F.silu, x @ weight)  # what comes saves views of `hidden`: `x @ weight` is kept in its place
            out = attention(*hidden.split(64, -1), offsets)

    Unlike `torch.utils.checkpoint` it repeats the functions it is given and nothing between them, and each at most once
    a backward pass. It steps aside where gradients are off, where `torch.compile` decides what is kept, and within
    other hooks on saved tensors, such as those of a checkpoint around the layer.

    Args:
        sources: tensors `(*)` of any shape from outside that the backward pass reads: it is refused once one was
            changed in place, as autograd itself does, which cannot see to it where there are hooks.
    """

    def __init__(self, *sources: Tensor):
        wanted = _wanted()
        self._hooks = saved_tensors_hooks(self._pack, _unpack) if wanted else None
        self._sources = [(source, source._version) for source in sources] if wanted else []  # none in inference mode
        self._made: dict[int, tuple[Tensor, _Again]] = {}  # by their memory, which no other gets until the end

    def __enter__(self) -> "Recompute":
        if self._hooks is not None:
            self._hooks.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._made.clear()
        if self._hooks is not None:
            self._hooks.__exit__(*raised)

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return `function(*inputs)`, a new tensor `(*)`; the function gives the same whenever it is called."""
        result = function(*inputs)
        if self._hooks is not None:
            again = _Again(function, [self._pack(x.detach()) for x in inputs], self._sources, result.device.type)
            self._made[_memory(result)] = result, again
        return result

    def _pack(self, x: Tensor) -> "Tensor | _View":
        """Return what to keep of a tensor."""
        _, again = self._made.get(_memory(x), (None, None))
        return x if again is None else _View(again, x.size(), x.stride(), int(x.storage_offset()))


class _Again:
    """A function and its inputs, in the autocast state in which it was called first."""

    def __init__(self, function: Callable[..., Tensor], inputs: "list[Tensor | _View]",
                 sources: list[tuple[Tensor, int]], device: str):
        self._function, self._inputs, self._sources = function, inputs, sources
        self._autocast = {"device_type": device, "enabled": torch.is_autocast_enabled(device),
                          "dtype": torch.get_autocast_dtype(device)}
        self._result: Tensor | None = None

    def result(self) -> Tensor:
        """Return the result, computed at the first call; it goes with the graph's last node that kept it."""
        if self._result is None:
            if any(source._version != version for source, version in self._sources):
                raise InvalidArgument("events and parameters", "as they were in the forward pass", "changed in place")
            with torch.no_grad(), torch.autocast(**self._autocast):
                self._result = self._function(*map(_unpack, self._inputs))
        return self._result


class _View(NamedTuple):
    """A view of what is computed again."""

    of: _Again
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _wanted() -> bool:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    others = torch._C._autograd._top_saved_tensors_default_hooks(False)  # pyright: ignore[reportAttributeAccessIssue]
    return others is None


def _memory(x: Tensor) -> int:
    """Return what tells the memory of a tensor, shared by its views, from that of all others there are."""
    return x.untyped_storage()._cdata


def _unpack(kept: Tensor | _View) -> Tensor:
    """Return the tensor of which this was kept."""
    return kept if isinstance(kept, Tensor) else kept.of.result().as_strided(kept.size, kept.stride, kept.offset)
