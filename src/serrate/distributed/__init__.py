"""Several processes working on one batch: who they are, and sums over them. Knows tensors only."""

from .world import World, start, stop, sum_gradients

__all__ = ["World", "start", "stop", "sum_gradients"]
