"""Whole models. Each turns an `EventBatch` into scores and carries its own typed config."""

from .transformer import Transformer, TransformerConfig

ModelConfig = TransformerConfig  # a union, discriminated by `kind`, when a second model joins


def build(config: ModelConfig, num_items: int) -> Transformer:
    """Build the model that `config` describes over a catalogue of `num_items`."""
    return Transformer(config, num_items)


__all__ = ["ModelConfig", "Transformer", "TransformerConfig", "build"]
