"""Kernels on tensors and offsets: one room per operation. Importing this loads torch and nothing else."""

from . import (
    attention,
    blocks,
    bmm,
    broadcast,
    concat,
    lookup,
    mixture_of_logits,
    norm_gate,
    pool,
    target_unit,
    threshold,
    transformer,
)
from .select import implementations

__all__ = ["attention", "blocks", "bmm", "broadcast", "concat", "implementations", "lookup", "mixture_of_logits",
           "norm_gate", "pool", "target_unit", "threshold", "transformer"]
