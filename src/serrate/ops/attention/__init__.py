"""Exact attention, softmax or pointwise, within the rows of a jagged batch."""

from .. import select
from . import cpu, reference, triton, varlen
from .api import Call, Rows, Settings, attention, candidate_attention, pooling_attention, target_attention
from .bias import Bias
from .mask import Mask
from .weights import Weights

select.register("attention", [
    select.Implementation("triton", triton.attention, triton.unusable),
    select.Implementation("varlen", varlen.attention, varlen.unusable),
    select.Implementation("cpu", cpu.attention, cpu.unusable),
    select.Implementation("reference", reference.attention, reference.unusable),
])

__all__ = ["Bias", "Call", "Mask", "Rows", "Settings", "Weights", "attention", "candidate_attention",
           "pooling_attention", "target_attention"]
