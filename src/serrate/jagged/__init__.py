"""Rows of unequal length as values + offsets: the type that every floor above shares."""

from .batch import EventBatch
from .convert import (
    from_arrow,
    from_keyed,
    from_lists,
    from_masked,
    from_nested,
    from_numpy,
    from_padded,
    to_arrow,
    to_keyed,
    to_lists,
    to_masked,
    to_nested,
    to_numpy,
    to_padded,
)
from .edit import (
    concatenate_events,
    concatenate_rows,
    deinterleave_events,
    gather_rows,
    interleave_events,
    newest,
    oldest,
    reverse,
    split_events,
    split_rows,
)
from .ranking_batch import RankingBatch
from .tensor import JaggedTensor, offsets_from_lengths

__all__ = [
    "EventBatch",
    "JaggedTensor",
    "RankingBatch",
    "concatenate_events",
    "concatenate_rows",
    "deinterleave_events",
    "from_arrow",
    "from_keyed",
    "from_lists",
    "from_masked",
    "from_nested",
    "from_numpy",
    "from_padded",
    "gather_rows",
    "interleave_events",
    "newest",
    "offsets_from_lengths",
    "oldest",
    "reverse",
    "split_events",
    "split_rows",
    "to_arrow",
    "to_keyed",
    "to_lists",
    "to_masked",
    "to_nested",
    "to_numpy",
    "to_padded",
]
