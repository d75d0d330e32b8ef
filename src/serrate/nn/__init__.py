"""Modules on jagged batches: layers, similarities and losses that are useful without our models."""

from .attention import AttentionPooling, JaggedMultiheadAttention, TargetAttention, TransformerBlock
from .hstu import HSTULayer, HSTUOptions
from .interactions import CrossNetwork, Dice, DINAttention, DotInteraction
from .losses import BinaryCrossEntropy, FullSoftmax, SampledSoftmax
from .position import ages
from .similarity import DotProduct, MixtureOfLogits, MixtureOptions, Sides, Similarity
from .tables import Column, EmbeddingTables, RowwiseAdagrad, TableReader

__all__ = [
    "AttentionPooling",
    "BinaryCrossEntropy",
    "Column",
    "CrossNetwork",
    "DINAttention",
    "Dice",
    "DotInteraction",
    "DotProduct",
    "EmbeddingTables",
    "FullSoftmax",
    "HSTULayer",
    "HSTUOptions",
    "JaggedMultiheadAttention",
    "MixtureOfLogits",
    "MixtureOptions",
    "RowwiseAdagrad",
    "SampledSoftmax",
    "Sides",
    "Similarity",
    "TableReader",
    "TargetAttention",
    "TransformerBlock",
    "ages",
]
