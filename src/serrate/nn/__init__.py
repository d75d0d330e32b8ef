"""Modules on jagged batches: layers and losses that are useful without our models."""

from .attention import AttentionPooling, JaggedMultiheadAttention, TargetAttention, TransformerBlock
from .hstu import HSTULayer, HSTUOptions
from .losses import BinaryCrossEntropy, FullSoftmax, SampledSoftmax
from .position import ages

__all__ = [
    "AttentionPooling",
    "BinaryCrossEntropy",
    "FullSoftmax",
    "HSTULayer",
    "HSTUOptions",
    "JaggedMultiheadAttention",
    "SampledSoftmax",
    "TargetAttention",
    "TransformerBlock",
    "ages",
]
