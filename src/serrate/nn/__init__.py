"""Modules on jagged batches: layers and losses that are useful without our models."""

from .attention import AttentionPooling, JaggedMultiheadAttention, TargetAttention, TransformerBlock
from .losses import BinaryCrossEntropy, FullSoftmax, SampledSoftmax
from .position import ages

__all__ = [
    "AttentionPooling",
    "BinaryCrossEntropy",
    "FullSoftmax",
    "JaggedMultiheadAttention",
    "SampledSoftmax",
    "TargetAttention",
    "TransformerBlock",
    "ages",
]
