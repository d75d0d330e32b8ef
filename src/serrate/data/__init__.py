"""From an event log to batches: sources, preparation, histories, splits, token budgets."""

from .ads import synthesize_ads
from .batching import TokenBatches, chunks, history_batch, seen_items, shard, training_batch, with_user_keys
from .config import ColumnMapping, DataConfig, ItemTable, NegativesConfig, SamplesConfig, SplitConfig
from .encoding import CategoricalColumn, DenseColumn, Encoder, MultiColumn
from .features import Entities, Features, FeaturesConfig, SideTable
from .histories import Histories, is_prepared
from .inspect import Inspection, inspect
from .of_run import DATA, data_of
from .prepare import prepare
from .ranking import RankingData, samples_batch
from .samples import Samples, SampleSplit, make_samples
from .selection import Selection, select
from .split import Examples, Split, split
from .stochastic_length import Sampler, StochasticLength
from .streaming import synthesize_stream
from .synthetic import synthesize
from .vocabulary import Vocabulary

__all__ = [
    "DATA", "CategoricalColumn", "ColumnMapping", "DataConfig", "DenseColumn", "Encoder", "Entities", "Examples",
    "Features", "FeaturesConfig", "Histories", "Inspection", "ItemTable", "MultiColumn", "NegativesConfig",
    "RankingData", "SampleSplit", "Sampler", "Samples", "SamplesConfig", "Selection", "SideTable", "Split",
    "SplitConfig", "StochasticLength", "TokenBatches", "Vocabulary", "chunks", "data_of", "history_batch", "inspect",
    "is_prepared", "make_samples", "prepare", "samples_batch", "seen_items", "select", "shard", "split", "synthesize",
    "synthesize_ads", "synthesize_stream", "training_batch", "with_user_keys",
]
