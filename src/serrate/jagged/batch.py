"""`EventBatch`: the events of a batch of users, named jagged fields that share one `offsets`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import InvalidArgument, suggest
from .tensor import JaggedTensor, named_parts, readable

Parts = Mapping[str, Tensor | JaggedTensor]


class EventBatch:
    """`B` histories: jagged fields over the same rows, plus context that has one entry a row.

    Immutable. Like `JaggedTensor` it is checked when built through its name and unchecked through `trusted`;
    on an accelerator only the shapes of the fields are compared. (A plain class, because torch.compile cannot
    return a frozen dataclass whose constructor makes objects.)

    Args:
        events: name → `JaggedTensor`; all have the same rows and come to share one `offsets`. Field `item`
            holds dense item ids.
        context: name → a tensor `(B, *)`, or a `JaggedTensor` of `B` rows with offsets of its own.

    Raises:
        InvalidArgument: no field, fields whose rows differ, context whose first axis is not `B`.
    """

    __slots__ = ("context", "events")
    events: Mapping[str, JaggedTensor]
    context: Mapping[str, Tensor | JaggedTensor]

    def __init__(self, events: Mapping[str, JaggedTensor],
                 context: Mapping[str, Tensor | JaggedTensor] | None = None):
        if not events:
            raise InvalidArgument("events", "at least one jagged field", "none")
        for name, jagged in events.items():
            if not isinstance(jagged, JaggedTensor):
                raise InvalidArgument(f"events[{name!r}]", "a JaggedTensor", type(jagged).__name__)
        head, first = next(iter(events.items()))
        for name, jagged in events.items():
            if not in_same_rows(jagged, first):
                raise InvalidArgument(f"events[{name!r}]", f"the rows of {head!r}", "other rows")
        context = dict(context or {})
        require_rows("context", context, row_count(first))
        longest = next((jagged.longest for jagged in events.values() if jagged.longest is not None), None)
        shared = {name: JaggedTensor.trusted(jagged.values, first.offsets, longest)
                  for name, jagged in events.items()}
        object.__setattr__(self, "events", MappingProxyType(shared))
        object.__setattr__(self, "context", MappingProxyType(context))

    @classmethod
    def trusted(cls, events: dict[str, JaggedTensor],
                context: dict[str, Tensor | JaggedTensor]) -> "EventBatch":
        """Build without checks from fields that share one `offsets` object and context of as many rows."""
        made = object.__new__(cls)
        object.__setattr__(made, "events", MappingProxyType(events))
        object.__setattr__(made, "context", MappingProxyType(context))
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an EventBatch is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("an EventBatch is immutable")

    def __reduce__(self):  # a mapping proxy does not pickle
        return EventBatch.trusted, (dict(self.events), dict(self.context))

    def __getitem__(self, name: str) -> JaggedTensor:
        """Return the jagged field `name`."""
        if name not in self.events:
            known = ", ".join(self.events)
            raise InvalidArgument("field", f"one of {known}{suggest(name, self.events)}", repr(name))
        return self.events[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the jagged fields."""
        return iter(self.events)

    def __len__(self) -> int:
        return len(self._first)

    @property
    def _first(self) -> JaggedTensor:
        return next(iter(self.events.values()))

    @property
    def num_events(self) -> int:
        """`T`, the events of all rows together."""
        return self._first.num_events

    @property
    def offsets(self) -> Tensor:
        """`(B + 1,)` the offsets that all fields share."""
        return self._first.offsets

    @property
    def lengths(self) -> Tensor:
        """`(B,)` the length of each row, in the dtype of `offsets`."""
        return self._first.lengths

    @property
    def longest(self) -> int | None:
        """Length of the longest row (`N`), or None when it is not known on the host."""
        return self._first.longest

    @property
    def device(self) -> torch.device:
        """The device of the events."""
        return self._first.device

    def to(self, device: torch.device | str | None = None, non_blocking: bool = False) -> "EventBatch":
        """Return with every part on `device`; the shared offsets move once."""
        return self._moved(lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "EventBatch":
        """Return a copy in page-locked host memory, for asynchronous moves to a GPU."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "EventBatch":
        offsets = move(self.offsets)
        events = {name: JaggedTensor.trusted(move(jagged.values), offsets, jagged.longest)
                  for name, jagged in self.events.items()}
        context = {name: move(value) if isinstance(value, Tensor) else
                   JaggedTensor.trusted(move(value.values), move(value.offsets), value.longest)
                   for name, value in self.context.items()}
        return EventBatch.trusted(events, context)

    def __repr__(self) -> str:
        context = f"; context: {', '.join(self.context)}" if self.context else ""
        return f"EventBatch({len(self)} rows, {self.num_events} events: {', '.join(self.events)}{context})"


def row_count(part: Tensor | JaggedTensor | EventBatch) -> int:
    """Return how many rows a part has, in a way that leaves it free in torch.export (`len()` would fix it there)."""
    return part.shape[0] if isinstance(part, Tensor) else part.offsets.shape[0] - 1


def require_rows(argument: str, parts: Parts, rows: int | None = None) -> None:
    """Check that each of `parts`, told as an entry of `argument`, has one entry for each of `rows` rows (None: of any).

    Raises:
        InvalidArgument: it is neither a tensor nor jagged, or has another number of rows.
    """
    for name, part in parts.items():
        if not isinstance(part, (Tensor, JaggedTensor)):
            raise InvalidArgument(f"{argument}[{name!r}]", "a tensor or JaggedTensor", type(part).__name__)
        scalar = isinstance(part, Tensor) and part.dim() < 1
        if scalar or rows not in (None, row_count(part)):
            got = "a scalar" if scalar else f"{row_count(part)}"
            raise InvalidArgument(f"{argument}[{name!r}]", "rows" if rows is None else f"{rows} rows", got)


def in_same_rows(a: JaggedTensor, b: JaggedTensor) -> bool:
    """Whether two have the same rows; on an accelerator only their shapes are compared."""
    if a.offsets is b.offsets:
        return True
    if a.offsets.shape != b.offsets.shape or a.num_events != b.num_events or a.device != b.device:
        return False
    if not (readable(a.offsets) and readable(b.offsets)):  # comparing contents would wait for the device
        return True
    return bool((a.offsets == b.offsets).all())


def _flatten(batch: EventBatch) -> tuple[list[Any], None]:
    return [batch.offsets, {name: batch[name].values for name in batch}, dict(batch.context)], None


def _unflatten(parts: Iterable[Any], _: None) -> EventBatch:
    offsets, values, context = parts
    events = {name: JaggedTensor.trusted(part, offsets) for name, part in values.items()}
    return EventBatch.trusted(events, context)


pytree.register_pytree_node(  # so that an EventBatch goes whole through torch.export and tree_map
    EventBatch, _flatten, _unflatten,
    flatten_with_keys_fn=lambda batch: named_parts(("offsets", "events", "context"), _flatten(batch)[0]),
    serialized_type_name="serrate.EventBatch",
)
