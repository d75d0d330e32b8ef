"""`EventBatch`: the events of a batch of users, named jagged fields that share one `offsets`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import InvalidArgument, suggest
from .tensor import JaggedTensor


@dataclass(frozen=True, eq=False, repr=False)
class EventBatch:
    """`B` histories: jagged fields over the same rows, plus context that has one entry a row.

    Attributes:
        events: name → `JaggedTensor`; all share one `offsets`. Field `item` holds dense item ids.
        context: name → a tensor `(B, *)`, or a `JaggedTensor` of `B` rows with offsets of its own.

    Raises:
        InvalidArgument: no field, fields whose rows differ, context whose first axis is not `B`.
    """

    events: Mapping[str, JaggedTensor]
    context: Mapping[str, "Tensor | JaggedTensor"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that all parts have the same rows and make them share one `offsets`."""
        if not self.events:
            raise InvalidArgument("events", "at least one jagged field", "none")
        first, *others = self.events.items()
        for name, jagged in others:
            if not _same_rows(jagged.offsets, first[1].offsets):
                raise InvalidArgument(f"events[{name!r}]", f"the offsets of {first[0]!r}", "other offsets")
        shared = {name: JaggedTensor.trusted(jagged.values, first[1].offsets, first[1].longest)
                  for name, jagged in self.events.items()}
        for name, value in self.context.items():
            rows = len(value) if isinstance(value, JaggedTensor) else value.shape[:1].numel()
            if rows != len(self):
                raise InvalidArgument(f"context[{name!r}]", f"{len(self)} rows", rows)
        object.__setattr__(self, "events", MappingProxyType(shared))
        object.__setattr__(self, "context", MappingProxyType(dict(self.context)))

    def __reduce__(self):  # a mapping proxy does not pickle
        return EventBatch, (dict(self.events), dict(self.context))

    def __getitem__(self, name: str) -> JaggedTensor:
        """Return the jagged field `name`."""
        try:
            return self.events[name]
        except KeyError:
            known = ", ".join(self.events)
            raise InvalidArgument("field", f"one of {known}{suggest(name, self.events)}", repr(name)) from None

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the jagged fields."""
        return iter(self.events)

    def __len__(self) -> int:
        return len(next(iter(self.events.values())))

    @property
    def num_events(self) -> int:
        """`T`, the events of all rows together."""
        return next(iter(self.events.values())).num_events

    @property
    def offsets(self) -> Tensor:
        """`(B + 1,)` the offsets that all fields share."""
        return next(iter(self.events.values())).offsets

    def to(self, device: torch.device | str | None = None, non_blocking: bool = False) -> "EventBatch":
        """Return with every part on `device`."""
        events = {name: jagged.to(device=device, non_blocking=non_blocking) for name, jagged in self.events.items()}
        context = {name: value.to(device=device, non_blocking=non_blocking) for name, value in self.context.items()}
        return EventBatch(events, context)

    def pin_memory(self) -> "EventBatch":
        """Return a copy in page-locked host memory, for asynchronous moves to a GPU."""
        return EventBatch({name: jagged.pin_memory() for name, jagged in self.events.items()},
                          {name: value.pin_memory() for name, value in self.context.items()})

    def __repr__(self) -> str:
        context = f"; context: {', '.join(self.context)}" if self.context else ""
        return f"EventBatch({len(self)} rows, {self.num_events} events: {', '.join(self.events)}{context})"


def _same_rows(a: Tensor, b: Tensor) -> bool:
    if a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr()):
        return True
    if a.device.type != "cpu":  # comparing contents would wait for the device
        return a.shape == b.shape
    return a.shape == b.shape and bool((a == b).all())
