"""Kernels on tensors and offsets: one room per operation. Importing this loads torch and nothing else."""

from . import attention, blocks, bmm, broadcast, concat, mixture_of_logits, norm_gate, pool, target_unit, threshold
from .select import implementations

__all__ = ["attention", "blocks", "bmm", "broadcast", "concat", "implementations", "mixture_of_logits",
           "norm_gate", "pool", "target_unit", "threshold"]
