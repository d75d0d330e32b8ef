"""`RankingBatch`: candidates to score, each pointing at the user state whose histories it is read against."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import InvalidArgument
from .batch import EventBatch, Parts, require_rows, row_count
from .tensor import JaggedTensor, named_parts, readable


class RankingBatch:
    """`M` candidates over `U` user states: each state is kept once, however many candidates point at it.

    A state is a user at one moment: what the histories held then. Candidate `m` is read against row `owner[m]` of every
    history and of the context, in any order. Immutable; checked when built through its name and unchecked through
    `trusted`. On an accelerator the *contents* of `owner` are not checked, because reading them would wait for it.

    Ids are int64 rows of embedding tables, in which row 0 stands for what is unknown: known ones count from 1.

    Args:
        owner: `(M,)` int64, the state of each candidate, from 0 to `U - 1`.
        histories: name → `EventBatch` of `U` rows, oldest event first; fields are those of the features, such as
            `item`, `category`, `action` (ids) and `time` (int64 seconds).
        context: name → what is known of each state: `(U,)`, ids or floating, or a `JaggedTensor` of ids in `U`
            rows. `asked` is `(U,)` int64 in seconds, when the candidates are shown.
        candidates: name → what is known of each candidate: `(M,)` or a `JaggedTensor` of `M` rows.
        labels: name of a field → `(M,)`, what happened; empty where it is to be predicted.

    Attributes:
        pairs: name of a history → how many events its candidates read together, one counted again for each candidate
            that reads it: the sum over `M` of the lengths of their rows. Without those that the host does not know.
        grouped: whether the host knows that candidates lie together by state, in the order of the states: then none are
            sorted on the device.

    Raises:
        InvalidArgument: neither a history nor a context; parts whose rows differ; an owner of another shape, dtype,
            device or, on a CPU, beyond the states.
    """

    __slots__ = ("candidates", "context", "grouped", "histories", "labels", "owner", "pairs")
    owner: Tensor
    histories: Mapping[str, EventBatch]
    context: Mapping[str, Tensor | JaggedTensor]
    candidates: Mapping[str, Tensor | JaggedTensor]
    labels: Mapping[str, Tensor]
    pairs: Mapping[str, int]
    grouped: bool

    def __init__(self, owner: Tensor, histories: Mapping[str, EventBatch], context: Parts | None = None,
                 candidates: Parts | None = None, labels: Mapping[str, Tensor] | None = None):
        for name, history in histories.items():
            if not isinstance(history, EventBatch):
                raise InvalidArgument(f"histories[{name!r}]", "an EventBatch", type(history).__name__)
        context, candidates, labels = context or {}, candidates or {}, labels or {}
        if not histories and not context:
            raise InvalidArgument("histories", "at least one history, or a context", "none")
        if not histories:  # then the context tells how many there are
            require_rows("context", context)
        first = next(iter((*histories.values(), *context.values())))
        states = row_count(first)
        for name, history in histories.items():
            if row_count(history) != states:
                raise InvalidArgument(f"histories[{name!r}]", f"{states} rows", row_count(history))
        require_rows("context", context, states)
        _require_owner(owner, states, first.device)
        require_rows("candidates", candidates, owner.shape[0])
        require_rows("labels", labels, owner.shape[0])
        pairs = {name: int(history.lengths[owner].sum()) for name, history in histories.items()
                 if readable(history.offsets)}
        grouped = readable(owner) and bool((owner[1:] >= owner[:-1]).all())
        self._fill(grouped, pairs, owner, histories, context, candidates, labels)

    @classmethod
    def trusted(cls, owner: Tensor, histories: Mapping[str, EventBatch], context: Parts, candidates: Parts,
                labels: Mapping[str, Tensor], pairs: Mapping[str, int] | None = None,
                grouped: bool = False) -> "RankingBatch":
        """Build without checks from parts that are known to fit."""
        made = object.__new__(cls)
        made._fill(grouped, pairs or {}, owner, histories, context, candidates, labels)
        return made

    def _fill(self, grouped: bool, pairs: Mapping[str, int], owner: Tensor, *named: Mapping[str, Any]) -> None:
        object.__setattr__(self, "grouped", grouped)
        object.__setattr__(self, "owner", owner)
        for name, parts in zip((*_NAMED, "pairs"), (*named, pairs), strict=True):
            object.__setattr__(self, name, MappingProxyType(dict(parts)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a RankingBatch is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a RankingBatch is immutable")

    def __reduce__(self):  # a mapping proxy does not pickle
        return RankingBatch.trusted, (*_flatten(self)[0], dict(self.pairs), self.grouped)

    def __len__(self) -> int:
        return self.owner.shape[0]

    @property
    def num_states(self) -> int:
        """`U`, the user states that the candidates point at."""
        return row_count(next(iter((*self.histories.values(), *self.context.values()))))

    @property
    def candidate_offsets(self) -> Tensor:
        """`(U + 1,)` int64, which candidates are those of each state, where they are `grouped`."""
        states = torch.arange(self.num_states + 1, device=self.device)
        return torch.searchsorted(self.owner, states)

    @property
    def device(self) -> torch.device:
        """The device of the batch."""
        return self.owner.device

    def to(self, device: torch.device | str | None = None, non_blocking: bool = False) -> "RankingBatch":
        """Return with every part on `device`."""
        parts = [{name: part.to(device=device, non_blocking=non_blocking) for name, part in getattr(self, kind).items()}
                 for kind in _NAMED]
        return RankingBatch.trusted(self.owner.to(device=device, non_blocking=non_blocking), *parts, pairs=self.pairs,
                                    grouped=self.grouped)

    def pin_memory(self) -> "RankingBatch":
        """Return a copy in page-locked host memory, for asynchronous moves to a GPU."""
        parts = [{name: part.pin_memory() for name, part in getattr(self, kind).items()} for kind in _NAMED]
        return RankingBatch.trusted(self.owner.pin_memory(), *parts, pairs=self.pairs, grouped=self.grouped)

    def __repr__(self) -> str:
        told = "; ".join(f"{kind}: {', '.join(getattr(self, kind))}" for kind in _NAMED if getattr(self, kind))
        return f"RankingBatch({len(self)} candidates of {self.num_states} states; {told})"


_NAMED = ("histories", "context", "candidates", "labels")


def _require_owner(owner: object, states: int, device: torch.device) -> None:
    if not isinstance(owner, Tensor) or owner.dim() != 1 or owner.dtype != torch.int64:
        got = f"{tuple(owner.shape)} {owner.dtype}" if isinstance(owner, Tensor) else type(owner).__name__
        raise InvalidArgument("owner", "a tensor (M,), int64", got)
    if owner.device != device:
        raise InvalidArgument("owner", f"a tensor on {device}, as the histories", owner.device)
    if readable(owner) and owner.numel():
        for got in (int(owner.min()), int(owner.max())):
            if not 0 <= got < states:
                raise InvalidArgument("owner", f"entries from 0 to below U = {states}", got)


def _flatten(batch: RankingBatch) -> tuple[list[Any], None]:
    return [batch.owner, *(dict(getattr(batch, kind)) for kind in _NAMED)], None


def _unflatten(parts: Iterable[Any], _: None) -> RankingBatch:
    return RankingBatch.trusted(*parts)


pytree.register_pytree_node(  # so that a RankingBatch goes whole through torch.export and tree_map
    RankingBatch, _flatten, _unflatten,
    flatten_with_keys_fn=lambda batch: named_parts(("owner", *_NAMED), _flatten(batch)[0]),
    serialized_type_name="serrate.RankingBatch",
)
