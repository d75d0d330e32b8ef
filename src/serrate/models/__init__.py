"""Whole models. Each turns an `EventBatch` or a `RankingBatch` into scores and carries its own typed config."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from .hstu import HSTU, HSTUConfig, HSTURanker, HSTURankingConfig
from .next_item import NextItemConfig, NextItemModel
from .ranking import RankingConfig, RankingModel
from .similarity import MixtureOfLogitsConfig
from .transformer import Transformer, TransformerConfig


def _with_kind(values: Any) -> Any:
    """A model that is not said to be another is a transformer."""
    return {"kind": "transformer", **values} if isinstance(values, dict) else values


ModelConfig = Annotated[TransformerConfig | HSTUConfig, Field(discriminator="kind"), BeforeValidator(_with_kind)]


def build(config: TransformerConfig | HSTUConfig, num_items: int) -> NextItemModel:
    """Build the model that `config` describes over a catalogue of `num_items`."""
    return HSTU(config, num_items) if isinstance(config, HSTUConfig) else Transformer(config, num_items)


__all__ = ["HSTU", "HSTUConfig", "HSTURanker", "HSTURankingConfig", "MixtureOfLogitsConfig", "ModelConfig",
           "NextItemConfig", "NextItemModel", "RankingConfig", "RankingModel", "Transformer", "TransformerConfig",
           "build"]
