"""Kernels on tensors and offsets: one room per operation. Importing this loads torch and nothing else."""

from . import attention, bmm, concat, norm_gate, pool
from .select import implementations

__all__ = ["attention", "bmm", "concat", "implementations", "norm_gate", "pool"]
