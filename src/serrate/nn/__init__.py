"""Modules on jagged batches: layers and losses that are useful without our models."""

from .attention import JaggedMultiheadAttention, TransformerBlock
from .losses import BinaryCrossEntropy, FullSoftmax, SampledSoftmax
from .position import ages

__all__ = [
    "BinaryCrossEntropy",
    "FullSoftmax",
    "JaggedMultiheadAttention",
    "SampledSoftmax",
    "TransformerBlock",
    "ages",
]
