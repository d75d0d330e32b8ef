"""Modules on jagged batches: layers and losses that are useful without our models."""

from .attention import AttentionPooling, JaggedMultiheadAttention, TargetAttention, TransformerBlock
from .hstu import HSTULayer, HSTUOptions
from .interactions import CrossNetwork, Dice, DINAttention, DotInteraction
from .losses import BinaryCrossEntropy, FullSoftmax, SampledSoftmax
from .position import ages
from .tables import Column, EmbeddingTables, RowwiseAdagrad, TableReader

__all__ = [
    "AttentionPooling",
    "BinaryCrossEntropy",
    "Column",
    "CrossNetwork",
    "DINAttention",
    "Dice",
    "DotInteraction",
    "EmbeddingTables",
    "FullSoftmax",
    "HSTULayer",
    "HSTUOptions",
    "JaggedMultiheadAttention",
    "RowwiseAdagrad",
    "SampledSoftmax",
    "TableReader",
    "TargetAttention",
    "TransformerBlock",
    "ages",
]
