"""From an event log to batches: sources, preparation, histories, splits, token budgets."""

from .batching import TokenBatches, chunks, history_batch, seen_items, shard, training_batch
from .config import ColumnMapping, DataConfig, ItemTable, NegativesConfig, SamplesConfig, SplitConfig
from .histories import Histories, is_prepared
from .inspect import Inspection, inspect
from .prepare import prepare
from .samples import Samples, SampleSplit, make_samples
from .selection import Selection, select
from .split import Examples, Split, split
from .stochastic_length import Sampler, StochasticLength
from .streaming import synthesize_stream
from .synthetic import synthesize
from .vocabulary import Vocabulary

__all__ = [
    "ColumnMapping", "DataConfig", "Examples", "Histories", "Inspection", "ItemTable", "NegativesConfig",
    "SampleSplit", "Sampler", "Samples", "SamplesConfig", "Selection", "Split", "SplitConfig", "StochasticLength",
    "TokenBatches", "Vocabulary", "chunks", "history_batch", "inspect", "is_prepared", "make_samples", "prepare",
    "seen_items", "select", "shard", "split", "synthesize", "synthesize_stream", "training_batch",
]
