"""From scores to the best items: exact top-k with filters, and indexes that search a catalogue by any similarity."""

from .ann import FaissConfig, FaissIndex
from .base import Index
from .best import Found
from .brute import ExactConfig, ExactIndex
from .component import ComponentConfig, ComponentIndex
from .exact import mask_items, top_k
from .h_indexer import HIndexer, HIndexerConfig
from .kinds import KINDS, kind_named, load_index
from .two_pass import TwoPassConfig, TwoPassIndex

__all__ = ["KINDS", "ComponentConfig", "ComponentIndex", "ExactConfig", "ExactIndex", "FaissConfig", "FaissIndex",
           "Found", "HIndexer", "HIndexerConfig", "Index", "TwoPassConfig", "TwoPassIndex", "kind_named", "load_index",
           "mask_items", "top_k"]
