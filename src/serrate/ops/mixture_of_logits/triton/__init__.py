"""Mixture of logits on CUDA in Triton: custom operators, whose kernels are imported at the first call.

A program has a tile of items and scores some queries with it. From the components to the score everything of a pair
stays in registers; README.md tells how.
"""

import torch
from torch import Tensor

from ...direct import no_kernel, on_device_of
from ..api import Call, Filters, Problem
from ..operators import Operators, registered
from ..stream import best

MOST = 256  # components
_SCORES = 2**25  # that top-k looks at together: 128 MiB


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision with up to 256 pairs of components, where Triton is installed."""
    if call.components > MOST:
        return f"needs at most {MOST} pairs of components, got {call.components}"
    return no_kernel(call.device, call.dtype)


def _scores(problem: Problem) -> Tensor:
    """Score every query with every item, `(R, V)`."""
    from .scores import Scorer

    out = problem.item_gate.new_empty((len(problem.query_gate), len(problem.item_gate)), dtype=torch.float32)
    if out.numel():
        with on_device_of(out):
            Scorer.of(problem).every(0, out)
    return out


def _each(problem: Problem, ids: Tensor) -> Tensor:
    """Score each query with the items `ids` `(R, K)`."""
    from .scores import Scorer

    out = problem.item_gate.new_full(ids.shape, -torch.inf, dtype=torch.float32)
    if out.numel() and len(problem.item_gate):
        with on_device_of(out):
            Scorer.of(problem).each(ids.contiguous(), out)
    return out


def _top_k(problem: Problem, k: int, filters: Filters) -> tuple[Tensor, Tensor]:
    """Return scores and ids of the best items, `(R, k)`."""
    from .scores import Scorer
    from .selection import keep

    allowed = None if filters.allowed is None else filters.allowed.contiguous()
    with on_device_of(problem.item_gate):
        scorer = Scorer.of(problem)
        return best(problem, k, filters, _SCORES // max(1, len(problem.query_gate)),
                    lambda first, last, out: scorer.every(first, out, allowed, candidates=True), keep)


mixture_of_logits, mixture_of_logits_each, mixture_of_logits_top_k = registered(
    "triton", Operators(_scores, _each, _top_k))
