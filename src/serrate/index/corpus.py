"""The items of an index at one moment: immutable segments, what they hold by row, and which rows are open."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..jagged import JaggedTensor
from ..jagged.tensor import offsets_from_lengths
from ..nn.similarity import Sides

_INFINITY = float("inf")


@dataclass(frozen=True, eq=False)
class Segment:
    """Items that came together, in ascending order of id. What it holds may be mapped from a file.

    Attributes:
        ids: `(V,)` int64, ascending, each once.
        sides: of the items, as their similarity made them: `(V, …)` each.
        derived: what the index itself keeps of each item: `(V, …)` each.
        alive: `(V,)` bool, False for an item that was removed; None: none was.
    """

    ids: Tensor
    sides: Sides
    derived: Sides
    alive: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_alive(self) -> int:
        """How many items were not removed."""
        return len(self) if self.alive is None else int(self.alive.sum())

    def kept(self, part: Tensor) -> Tensor:
        """Return what `part` `(V, …)` has of the items that were not removed."""
        return part if self.alive is None else part[self.alive]

    def find(self, ids: Tensor) -> Tensor:
        """Return the row of each id, int64 in their shape; -1 for one that is not here or was removed."""
        if len(self) == 0:
            return torch.full_like(ids, -1)
        rows = torch.searchsorted(self.ids, ids.contiguous()).clamp(max=len(self) - 1)
        there = self.ids[rows] == ids
        return torch.where(there if self.alive is None else there & self.alive[rows], rows, -1)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Neighbouring rows of one segment.

    Attributes:
        number: of the segment.
        start: the first row within the segment.
        base: the first row within the corpus.
        ids: `(C,)` int64, ascending.
        sides: `(C, …)` each.
        derived: `(C, …)` each.
    """

    number: int
    start: int
    base: int
    ids: Tensor
    sides: Sides
    derived: Sides

    def __len__(self) -> int:
        return len(self.ids)


class Corpus:
    """Segments end to end; row `r` of the corpus counts through them. Never changes: a change makes another one.

    Attributes:
        segments: at least one.
        starts: the first row of each segment, and the number of all rows.
    """

    def __init__(self, segments: Sequence[Segment]):
        self.segments = tuple(segments)
        sizes = [0, *(len(segment) for segment in self.segments)]
        self.starts = torch.tensor(sizes).cumsum(0).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def device(self) -> torch.device:
        """Where the items lie."""
        return self.segments[0].ids.device

    @property
    def num_alive(self) -> int:
        """How many items have not been removed."""
        return sum(segment.num_alive for segment in self.segments)

    def chunks(self, rows: int, only: int | None = None) -> Iterator[Chunk]:
        """Yield all rows, or those of one segment, at most `rows` at a time."""
        for number, (segment, base) in enumerate(zip(self.segments, self.starts, strict=False)):
            if only not in (None, number):
                continue
            for start in range(0, len(segment), rows):
                part = slice(start, start + rows)
                yield Chunk(number, start, base + start, segment.ids[part], _at(segment.sides, part),
                            _at(segment.derived, part))

    def find(self, ids: Tensor) -> Tensor:
        """Return the row of each id, int64 in their shape; -1 for one that is not here or was removed."""
        found = torch.full_like(ids, -1)
        for segment, start in zip(self.segments, self.starts, strict=False):
            rows = segment.find(ids)
            found = torch.where(rows >= 0, rows + start, found)
        return found

    def ids_at(self, rows: Tensor) -> Tensor:
        """Return the id of each row, int64 in their shape; -1 for row -1."""
        return self.at([segment.ids for segment in self.segments], rows.clamp(min=0)).masked_fill(rows < 0, -1)

    def sides_at(self, rows: Tensor) -> Sides:
        """Return the sides of items, each in the shape of `rows` and then its own; any item for row -1."""
        return {name: self.at([segment.sides[name] for segment in self.segments], rows.clamp(min=0))
                for name in self.segments[0].sides}

    def derived_at(self, rows: Tensor) -> Sides:
        """Return what the index keeps of items; see `sides_at`."""
        return {name: self.at([segment.derived[name] for segment in self.segments], rows.clamp(min=0))
                for name in self.segments[0].derived}

    def at(self, parts: Sequence[Tensor | None], rows: Tensor, default: Any = 0) -> Tensor:
        """Return what `parts`, `(V, …)` of each segment, have at rows of the corpus; `default` where one is None."""
        filled = [(part, start, len(segment)) for part, start, segment in
                  zip(parts, self.starts, self.segments, strict=False) if len(segment)]
        like = next((part for part in parts if part is not None), None)
        if len(filled) == 1 and filled[0][0] is not None:
            return filled[0][0][rows - filled[0][1]]
        shape, dtype = ((), torch.tensor(default).dtype) if like is None else (like.shape[1:], like.dtype)
        out = torch.full((*rows.shape, *shape), default, dtype=dtype, device=rows.device)
        for part, start, length in filled:
            if part is not None:
                inside = (rows >= start) & (rows < start + length)
                out[inside] = part[rows[inside] - start]
        return out

    def with_segment(self, segment: Segment) -> "Corpus":
        """Return a corpus with one segment more.

        The last segments are merged while one is at most twice as long as the one after it, so that `n` additions
        leave about `log n` segments, and copy each item about `log n` times.
        """
        segments = [*self.segments, segment]
        while len(segments) > 1 and len(segments[-2]) <= 2 * len(segments[-1]):
            segments[-2:] = [merged(segments[-2:])]
        return Corpus(segments)

    def without(self, ids: Tensor) -> "Corpus":
        """Return a corpus in which these ids are marked as removed; they are in it."""
        segments = []
        for segment in self.segments:
            rows = segment.find(ids)
            rows = rows[rows >= 0]
            if len(rows):
                alive = torch.ones_like(segment.ids, dtype=torch.bool) if segment.alive is None else segment.alive
                alive = alive.index_fill(0, rows, False)
                segment = replace(segment, alive=alive)
            segments.append(segment)
        return Corpus(segments)

    def compacted(self) -> "Corpus":
        """Return a corpus of one segment, in memory, without what was removed."""
        return Corpus([merged(self.segments)])


def merged(segments: Sequence[Segment]) -> Segment:
    """Return the living items of segments as one segment, in memory."""
    ids = torch.cat([segment.kept(segment.ids) for segment in segments])
    ids, order = ids.sort()

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat([segment.kept(part) for part, segment in zip(parts, segments, strict=True)])[order]

    first = segments[0]
    return Segment(ids, {name: joined([segment.sides[name] for segment in segments]) for name in first.sides},
                   {name: joined([segment.derived[name] for segment in segments]) for name in first.derived})


class Filter:
    """Which items may come back: for all queries together, and less those that each of them excludes.

    Ids that are not in the corpus filter nothing.

    Args:
        corpus: the items.
        allow: `(A,)` the only ids that may come back; None for all, empty for none.
        deny: `(D,)` ids that may not come back.

    Attributes:
        open: `(V,)` bool of each segment; None where all of its items are open.
    """

    def __init__(self, corpus: Corpus, allow: Tensor | None = None, deny: Tensor | None = None):
        self._corpus = corpus
        self.open: list[Tensor | None] = []
        for segment in corpus.segments:
            open_ = segment.alive
            if allow is not None:
                rows = segment.find(item_ids("allow", allow, corpus.device))  # living items
                open_ = torch.zeros_like(segment.ids, dtype=torch.bool).index_fill(0, rows[rows >= 0], True)
            if deny is not None:
                rows = segment.find(item_ids("deny", deny, corpus.device))
                open_ = torch.ones_like(segment.ids, dtype=torch.bool) if open_ is None else open_
                open_ = open_.index_fill(0, rows[rows >= 0], False)
            self.open.append(open_)
        self.num_open = sum(len(segment) if part is None else int(part.sum())
                            for segment, part in zip(corpus.segments, self.open, strict=True))

    def open_rows(self, places: Tensor) -> Tensor:
        """Return rows of the corpus: the `places`-th of those that are open, both int64."""
        if all(part is None for part in self.open):
            return places
        marks = [torch.ones_like(segment.ids, dtype=torch.bool) if part is None else part
                 for segment, part in zip(self._corpus.segments, self.open, strict=True)]
        return torch.cat(marks).nonzero()[:, 0][places]

    def of(self, exclude: JaggedTensor | None, queries: int) -> "QueryFilter":
        """Return the filter of some queries, whose excluded ids are the rows of `exclude`."""
        return QueryFilter(self._corpus, self, exclude, queries)


class QueryFilter:
    """Which items may come back for `R` queries.

    Attributes:
        shared: what is open to all of them.
        num_open: `(R,)` int64, how many items are open to each.
    """

    def __init__(self, corpus: Corpus, shared: Filter, exclude: JaggedTensor | None, queries: int):
        self.shared = shared
        self._corpus = corpus
        self._total = len(corpus)
        self.num_open = torch.full((queries,), shared.num_open, device=corpus.device)
        self._keys = torch.empty(0, dtype=torch.int64, device=corpus.device)  # query · total + row, ascending
        if exclude is not None and len(corpus):
            rows = corpus.find(item_ids("exclude", exclude.values, corpus.device))
            query = exclude.row_index().to(corpus.device)
            self._keys = (query * self._total + rows)[rows >= 0].unique()
            open_ = corpus.at(shared.open, self._keys % self._total, True)
            self.num_open = self.num_open - torch.bincount(self._keys[open_] // self._total, minlength=queries)

    def close(self, chunk: Chunk, scores: Tensor) -> Tensor:
        """Set `scores`, `(R, C)` or `(R, P, C)` of a chunk, to `-inf` in place for items that are not open."""
        open_ = self.shared.open[chunk.number]
        if open_ is not None:
            scores.masked_fill_(~open_[chunk.start : chunk.start + len(chunk)], -_INFINITY)
        if len(self._keys):
            query, row = self._keys // self._total, self._keys % self._total - chunk.base
            inside = (row >= 0) & (row < len(chunk))
            scores[query[inside], ..., row[inside]] = -_INFINITY
        return scores

    def excluded(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Return offsets `(R + 1,)` and rows of segment `number`, both int64, that each query excludes; None: none."""
        if not len(self._keys):
            return None
        start, stop = self._corpus.starts[number : number + 2]
        query, row = self._keys // self._total, self._keys % self._total
        inside = (row >= start) & (row < stop)
        lengths = torch.bincount(query[inside], minlength=len(self.num_open))
        return offsets_from_lengths(lengths), row[inside] - start

    def close_rows(self, rows: Tensor, scores: Tensor) -> Tensor:
        """Set `scores` `(R, C)` to `-inf` in place where `rows` is -1 or an item that the query excludes.

        What is closed to all queries is the caller's to leave out of `rows`.
        """
        closed = rows < 0
        if len(self._keys):
            keys = torch.arange(len(rows), device=rows.device)[:, None] * self._total + rows
            at = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
            closed = closed | (self._keys[at] == keys)
        return scores.masked_fill_(closed, -_INFINITY)


def item_ids(argument: str, ids: Tensor, device: torch.device) -> Tensor:
    """Return `ids` `(N,)` as int64 on a device; raise `InvalidArgument` where they are no ids."""
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InvalidArgument(argument, "one axis of integer item ids", f"{tuple(ids.shape)} {ids.dtype}")
    return ids.to(device=device, dtype=torch.int64)


def _at(sides: Sides, rows: slice) -> Sides:
    return {name: side[rows] for name, side in sides.items()}
