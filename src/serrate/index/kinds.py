"""The kinds of index by their names, and opening one whose kind its folder tells."""

from pathlib import Path

import torch
from torch import nn

from ..errors import InvalidArgument, suggest
from ..nn.similarity import Similarity
from . import storage
from .ann import FaissIndex
from .base import Index
from .brute import ExactIndex
from .component import ComponentIndex
from .h_indexer import HIndexer
from .two_pass import TwoPassIndex

KINDS: dict[str, type[Index]] = {
    kind.kind: kind for kind in (ExactIndex, ComponentIndex, TwoPassIndex, HIndexer, FaissIndex)}


def kind_named(name: str) -> type[Index]:
    """Return the kind of index called `name`; raise `InvalidArgument` for none of `KINDS`."""
    if name not in KINDS:
        raise InvalidArgument("kind", f"one of {', '.join(KINDS)}{suggest(name, KINDS)}", repr(name))
    return KINDS[name]


def load_index(path: Path | str, similarity: Similarity, *, model: nn.Module | None = None,
               device: torch.device | str = "cpu") -> Index:
    """Open a saved index of any kind; see `Index.load`."""
    name = storage.read_head(Path(path)).get("kind")
    if name not in KINDS:
        raise storage.damaged(path, f"it is of kind {name!r}, this Serrate knows {', '.join(KINDS)}")
    return KINDS[name].load(path, similarity, model=model, device=device)
