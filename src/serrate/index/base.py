"""`Index`: items kept ready for a similarity, searched for the best of each query, changed while it serves."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import InvalidArgument
from ..jagged import JaggedTensor
from ..nn.similarity import Sides, Similarity
from . import storage
from .best import Best, Found
from .corpus import Corpus, Filter, QueryFilter, Segment, item_ids
from .sides import at_a_time, count, require_no_nan, rows_of, to_device

QUERIES_AT_A_TIME = 128
PAIRS_AT_A_TIME = 2**18  # of a query and an item, scored at once
ITEMS_AT_A_TIME = 2**18


class Index:
    """The items of a catalogue, ready to be searched by a similarity.

    Every kind answers with the best items by the similarity's score, equal scores by item id ascending; they differ
    in how many items they score for it, and in what they promise (see `Found`). Searches may run while items come and
    go: each works on the items as they were when it began.

    Attributes:
        kind: what the kind is called in files and on the command line.
        config: the settings of the kind.
        similarity: scores queries and items.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[Config]]

    def __init__(self, similarity: Similarity, config: Config | Mapping[str, Any] | None = None):
        self.similarity = similarity
        self.config = config if isinstance(config, self.config_type) else self.config_type.parse(dict(config or {}))
        self._corpus = Corpus([])
        self._changes = threading.Lock()  # one change at a time; searches take no lock

    @classmethod
    def build(cls, similarity: Similarity, items: Sides, ids: Tensor | None = None,
              config: Config | Mapping[str, Any] | None = None) -> Self:
        """Return an index over items.

        Args:
            similarity: scores queries and items, any that is an `nn.similarity.Similarity`.
            items: what the similarity made of the items, `(V, …)` each. The index keeps these very tensors where they
                are already in ascending order of id.
            ids: `(V,)` integer, the id of each item, each once, 0 or more; `0 … V-1` when None.
            config: the settings of the kind, or a mapping of what differs from their defaults.

        Raises:
            InvalidArgument: ids that are no ids or come twice, sides that do not fit each other or the kind, NaN.
            InvalidConfig: an unknown setting or a wrong value.
        """
        index = cls(similarity, config)
        index._corpus = Corpus([index._segment(items, ids)])
        return index

    @classmethod
    def over(cls, index: "Index", config: Config | Mapping[str, Any] | None = None) -> Self:
        """Return an index of this kind over the items that another one holds now, whose sides both then keep.

        Raises:
            InvalidArgument: sides that do not fit the kind.
            InvalidConfig: an unknown setting or a wrong value.
        """
        made = cls(index.similarity, config)
        for segment in index._corpus.segments:
            made._check("index", segment.sides)
        made._corpus = Corpus([replace(segment, derived=made._derived(segment.sides))
                               for segment in index._corpus.segments])
        return made

    def search(self, queries: Sides, k: int, *, exclude: JaggedTensor | None = None, allow: Tensor | None = None,
               deny: Tensor | None = None) -> Found:
        """Return the best `k` items of each query.

        A query with fewer than `k` open items ends in score `-inf` and id -1; with none at all it is nothing else.
        Filters may name ids that the index does not have.

        Args:
            queries: what the similarity made of `R` queries, `(R, …)` each, on any device.
            k: how many items, at least 1; may exceed the number of items.
            exclude: `R` rows of item ids that this query must not get.
            allow: `(A,)` the only item ids that may come back, for all queries.
            deny: `(D,)` item ids that may not come back, for all queries.

        Raises:
            InvalidArgument: `k` < 1, NaN in a query, sides that do not fit, filters of a wrong shape or dtype, a
                similarity in training mode.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InvalidArgument("k", "a whole number, at least 1", repr(k))
        if self.similarity.training and next(self.similarity.parameters(), None) is not None:
            raise InvalidArgument("similarity", "a module in evaluation mode, which drops nothing", "one that trains")
        rows = count("queries", queries)
        require_no_nan("queries", queries)
        self._check("queries", queries)
        if exclude is not None and len(exclude) != rows:
            raise InvalidArgument("exclude", f"{rows} rows, as queries", len(exclude))
        corpus = self._corpus  # one moment for the whole search
        shared = Filter(corpus, allow, deny)
        parts = []
        with torch.no_grad():
            for start in range(0, max(rows, 1), QUERIES_AT_A_TIME):
                stop = min(start + QUERIES_AT_A_TIME, rows)
                block = to_device(rows_of(queries, start, stop), corpus.device)
                closed = shared.of(None if exclude is None else exclude[start:stop], stop - start)
                parts.append(self._search(corpus, block, k, closed))
        return Found.joined(parts)

    def add(self, ids: Tensor, items: Sides) -> None:
        """Add items while searches go on; those that have begun do not see them.

        Args:
            ids: `(V,)` integer, none of them in the index; one that was removed may come back.
            items: what the similarity made of them, as in `build`.

        Raises:
            InvalidArgument: an id that is there already, and as `build`.
        """
        segment = self._segment(to_device(items, self._corpus.device), ids)
        with self._changes:
            corpus = self._corpus
            there = corpus.find(segment.ids) >= 0
            if bool(there.any()):
                raise InvalidArgument("ids", "ids that the index does not have", int(segment.ids[there][0]))
            self._check_alike(corpus.segments[0], segment)
            self._corpus = corpus.with_segment(segment)

    def remove(self, ids: Tensor) -> None:
        """Remove items while searches go on; those that have begun still see them.

        They are marked, and their place is freed when their segment is merged, by `compact` and by `save`.

        Raises:
            InvalidArgument: an id that the index does not have.
        """
        with self._changes:
            corpus = self._corpus
            ids = item_ids("ids", ids, corpus.device)
            missing = corpus.find(ids) < 0
            if bool(missing.any()):
                raise InvalidArgument("ids", "ids that the index has", int(ids[missing][0]))
            self._corpus = corpus.without(ids)

    def compact(self) -> None:
        """Free the place of removed items and put all others into one segment, in memory."""
        with self._changes:
            self._corpus = self._corpus.compacted()

    def __len__(self) -> int:
        return self._corpus.num_alive

    @property
    def ids(self) -> Tensor:
        """`(V,)` int64: the ids of all items, ascending."""
        return torch.cat([segment.kept(segment.ids) for segment in self._corpus.segments]).sort().values

    @property
    def num_bytes(self) -> int:
        """How many bytes the items take, in memory or mapped from files."""
        return sum(part.numel() * part.itemsize for segment in self._corpus.segments
                   for part in (segment.ids, *segment.sides.values(), *segment.derived.values()))

    def save(self, path: Path | str, *, model: nn.Module | None = None, replace: bool = False) -> None:
        """Write the index to a folder, whole or not at all; what was removed is left out.

        Args:
            path: a folder that does not exist or is empty; with `replace` an index that stands there gives way.
            model: of whose weights the sides were made; the similarity when None. `load` refuses those of another.
            replace: whether something may stand at `path`.

        Raises:
            InvalidArgument: something stands at `path`.
            NotWritable: the disk is full or refuses.
        """
        made_by = storage.fingerprint(self.similarity, model)
        storage.write(Path(path), storage.Saved(self.kind, self.config.plain(), made_by, self._corpus), replace)

    @classmethod
    def load(cls, path: Path | str, similarity: Similarity, *, model: nn.Module | None = None,
             device: torch.device | str = "cpu") -> Self:
        """Open a saved index. On the CPU its items stay in their files and are read as searches need them.

        Args:
            path: the folder.
            similarity: as the one that the index was built with.
            model: as in `save`.
            device: where the items go.

        Raises:
            InvalidData: no index, a damaged one, one of another kind, format or model.
        """
        saved = storage.read(Path(path), torch.device(device))
        if saved.kind != cls.kind:
            raise storage.damaged(path, f"it is of kind {saved.kind!r}, not {cls.kind!r}")
        storage.require_made_by(path, saved, storage.fingerprint(similarity, model))
        index = cls(similarity, storage.parsed(path, cls.config_type, saved.config))
        index._corpus = saved.corpus
        return index

    def _derive(self, items: Sides) -> Sides:
        """Return what the kind keeps of items beside their sides, `(V, …)` each."""
        return {}

    def _check(self, argument: str, sides: Sides) -> None:
        """Raise `InvalidArgument` for sides that the kind cannot use."""

    def _search(self, corpus: Corpus, queries: Sides, k: int, closed: QueryFilter) -> Found:
        """Answer a block of queries on the device of the corpus."""
        raise NotImplementedError

    def _segment(self, items: Sides, ids: Tensor | None) -> Segment:
        """Return items as a segment in ascending order of id, checked."""
        number = count("items", items)
        require_no_nan("items", items)
        self._check("items", items)
        device = next(iter(items.values())).device
        if ids is None:
            found = torch.arange(number, device=device)
        else:
            found = item_ids("ids", ids, device)
            if len(found) != number:
                raise InvalidArgument("ids", f"{number} ids, one an item", len(found))
            if number and int(found.min()) < 0:
                raise InvalidArgument("ids", "ids of at least 0", int(found.min()))
            found, order = found.sort()
            twice = found[1:] == found[:-1]
            if bool(twice.any()):
                raise InvalidArgument("ids", "each id once", f"{int(found[1:][twice][0])} twice")
            if bool((order.diff() != 1).any()):
                items = {name: side[order] for name, side in items.items()}
        items = {name: side.detach() for name, side in items.items()}
        return Segment(found, items, self._derived(items))

    def _derived(self, items: Sides) -> Sides:
        """Return what `_derive` gives, by parts: what it computes on the way may be larger than what it keeps."""
        parts = [self._derive(rows_of(items, start, start + ITEMS_AT_A_TIME))
                 for start in range(0, max(1, count("items", items)), ITEMS_AT_A_TIME)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @staticmethod
    def _check_alike(there: Segment, new: Segment) -> None:
        for name in {**there.sides, **new.sides}:
            kinds = [None if name not in sides else (tuple(sides[name].shape[1:]), sides[name].dtype)
                     for sides in (there.sides, new.sides)]
            if kinds[0] != kinds[1]:
                raise InvalidArgument("items", f"a side {name!r} as the index has it, {kinds[0]}", kinds[1])

    def _passed_on(self, corpus: Corpus, queries: Sides, rows: Tensor, k: int, closed: QueryFilter) -> Found:
        """Return the answer from what a stage one passed on, `rows` as of `_rescored`; certain where that is all."""
        best = self._rescored(corpus, queries, rows, k, closed)
        candidates = (rows >= 0).sum(1)
        gap = torch.where(candidates >= closed.shared.num_open, 0.0, float("inf")).to(best.scores.dtype)
        return Found(best.scores, best.ids, candidates, closed.num_open, gap)

    def _rescored(self, corpus: Corpus, queries: Sides, rows: Tensor, k: int, closed: QueryFilter) -> Best:
        """Return the best of candidates by the similarity.

        `rows` `(R, M)` are rows of the corpus that are open to all queries, ascending, none twice for a query, -1 for
        none wherever it stands.
        """
        best = Best(len(rows), k, rows.device)
        alone = len(corpus.segments) == 1  # whose items are read where they lie; else they are gathered
        most = at_a_time(PAIRS_AT_A_TIME, rows.device) if alone else PAIRS_AT_A_TIME
        width = max(1, most // max(1, len(rows)))
        for start in range(0, rows.shape[1] if len(corpus) else 0, width):
            part = rows[:, start : start + width]
            ids = corpus.ids_at(part)
            if alone:  # ids ascend as rows do
                scores = self.similarity.score_rows(queries, corpus.segments[0].sides, part)
            else:
                ids, order = ids.sort(dim=1)
                part = part.gather(1, order)
                scores = self.similarity.score_each(queries, corpus.sides_at(part))
            best.add(closed.close_rows(part, scores.float()), ids)
        return best
