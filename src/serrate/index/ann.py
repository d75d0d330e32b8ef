"""Approximate search with FAISS as stage one: its neighbours by a dot product, then the similarity on them."""

import importlib
import threading
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..errors import InvalidArgument, InvalidConfig, NotUsable
from ..nn.similarity import Sides, Similarity
from .base import Index
from .best import Found
from .corpus import Corpus, QueryFilter, Segment
from .h_indexer import stage_one
from .sides import require


class FaissConfig(Config):
    """Which structure FAISS makes, and how much of it is searched."""

    factory: str = Field(default="IVF1024,Flat", description="as of faiss.index_factory, such as Flat or HNSW32")
    keep: int = Field(default=1_000, ge=1, description="how many items stage one passes on")
    probes: int = Field(default=32, ge=1, description="lists of an IVF that a query visits")
    effort: int = Field(default=256, ge=1, description="candidates that the walk through an HNSW keeps")


class FaissIndex(Index):
    """The `keep` neighbours that FAISS finds by a dot product, on the CPU, scored by the similarity.

    What is multiplied is what the h-indexer's stage one reads. FAISS's own structure is made from these vectors at the
    first search of a segment, also after loading: only the vectors are saved. `Found.gap` is infinite unless every
    open item was passed on.

    Needs faiss-cpu (the extra `ann`); it is imported when the first structure is made.
    """

    kind = "faiss"
    config_type = FaissConfig
    config: FaissConfig

    def __init__(self, similarity: Similarity, config: Any = None):
        super().__init__(similarity, config)
        self._faiss = _imported()
        self._made: WeakKeyDictionary[Segment, Any] = WeakKeyDictionary()
        self._making = threading.Lock()

    def _check(self, argument: str, sides: Sides) -> None:
        require(argument, sides, self.kind, ("stage_one", "components", "vector"))

    def _derive(self, items: Sides) -> Sides:
        return {"vectors": stage_one(items)}

    def _search(self, corpus: Corpus, queries: Sides, k: int, closed: QueryFilter) -> Found:
        if self.config.keep < k:
            raise InvalidArgument("k", f"at most {self.config.keep:,}, which stage one keeps", k)
        asked = np.ascontiguousarray(stage_one(queries).cpu().numpy())
        parts = [torch.full((len(asked), 1), -1)]
        for segment, open_, start in zip(corpus.segments, closed.shared.open, corpus.starts, strict=False):
            if len(segment) and len(asked):
                rows = self._neighbours(segment, asked, open_)
                parts.append(torch.where(rows >= 0, rows + start, -1))
        rows = torch.cat(parts, 1).to(corpus.device).sort(dim=1).values
        return self._passed_on(corpus, queries, rows, k, closed)

    def _neighbours(self, segment: Segment, asked: np.ndarray, open_: Tensor | None) -> Tensor:
        """Return the rows `(R, keep)` of the segment that FAISS finds, -1 for none."""
        made, faiss = self._structure(segment), self._faiss
        settings: dict[str, Any] = {}
        if open_ is not None:
            bits = np.packbits(open_.cpu().numpy(), bitorder="little")
            settings["sel"] = faiss.IDSelectorBitmap(len(segment), faiss.swig_ptr(bits))
        if isinstance(made, faiss.IndexIVF):
            how = faiss.SearchParametersIVF(nprobe=self.config.probes, **settings)
        elif isinstance(made, faiss.IndexHNSW):
            how = faiss.SearchParametersHNSW(efSearch=max(self.config.effort, self.config.keep), **settings)
        else:
            how = faiss.SearchParameters(**settings)
        _, rows = made.search(asked, min(self.config.keep, len(segment)), params=how)
        return torch.from_numpy(rows)

    def _structure(self, segment: Segment) -> Any:
        with self._making:
            if segment not in self._made:
                vectors = np.ascontiguousarray(segment.derived["vectors"].cpu().numpy())
                try:
                    made = self._faiss.index_factory(
                        vectors.shape[1], self.config.factory, self._faiss.METRIC_INNER_PRODUCT)
                    made.train(vectors)
                    made.add(vectors)
                except RuntimeError as error:  # of FAISS: a factory that it does not know, or too few items for it
                    reason = str(error).rpartition("Error: ")[2] or str(error)
                    raise InvalidConfig(f"config: factory: {self.config.factory!r} cannot be made of {len(segment):,} "
                                        f"items ({reason})") from None
                self._made[segment] = made
            return self._made[segment]


def _imported() -> ModuleType:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise NotUsable(f"the index of kind 'faiss' needs faiss-cpu, which cannot be imported ({error}); "
                        f"install serrate[ann]") from None
