"""Mixture of logits on CUDA in Triton: custom operators, whose kernels are imported at the first call.

A program has a tile of items and scores some queries with it. From the components to the score everything of a pair
stays in registers; README.md tells how.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...direct import INTERPRETED, no_kernel, on_device_of
from ...sizes import power_of_two
from ..api import Call, Filters, Problem, Terms
from ..operators import Operators, Summed, registered, registered_sum
from ..stream import best

MOST = 256  # components

class Sizes(NamedTuple):
    """P_Q, P_X, d and G, as gradients pad them."""

    query_components: int
    item_components: int
    width: int
    hidden: int

    @classmethod
    def of(cls, query_components: int, item_components: int, width: int, hidden: int) -> "Sizes":
        """Return the sizes for those of a problem: products have 8 columns or more, and sum over 16 or more."""
        p_q = max(8, power_of_two(query_components))
        p_x = max(16 // p_q, power_of_two(item_components))
        return cls(p_q, p_x, max(16, power_of_two(width)), max(16, power_of_two(hidden)))

    @property
    def mixed(self) -> int:
        """P, the pairs of components."""
        return self.query_components * self.item_components

_SCORES = 2**25  # that top-k looks at together: 128 MiB


def whole(most: int) -> int:
    """Return how many queries to look at together, at most so many and one at least: parts begin at whole sectors."""
    return most // 32 * 32 or max(1, most)


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision with up to 256 pairs of components, where Triton is installed."""
    if call.components > MOST:
        return f"needs at most {MOST} pairs of components, got {call.components}"
    return no_kernel(call.device, call.dtype)


def unusable_sum(call: Call) -> str | None:
    """Serve half precision where padded sizes fit: sums of gradients in registers, items of a program on the chip."""
    sizes = Sizes.of(*call[2:])
    if sizes.mixed > 64:
        return f"needs at most 64 pairs of components, padded to powers of two, got {sizes.mixed}"
    if sizes.item_components * sizes.width > 512:
        return f"needs at most 512 numbers an item, padded to powers of two, got {sizes.item_components * sizes.width}"
    if sizes.hidden > 128:
        return f"needs at most 128 hidden numbers, got {call.hidden}"
    if call.dtype == torch.float32 and not INTERPRETED:
        return "needs half precision, got torch.float32"
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


def _log_sums(problem: Problem, terms: Terms) -> Tensor:
    """Return the sums `(R,)`, of some queries at a time, whose scores a buffer holds."""
    from .scores import Scorer
    from .sums import sum_rows

    rows, count = len(problem.query_gate), len(problem.item_gate)
    sums = problem.item_gate.new_full((rows,), -torch.inf, dtype=torch.float32)
    if not count or not rows:
        return sums
    with on_device_of(sums):
        scorer = Scorer.of(problem)
        step = min(rows, whole(_SCORES // count))
        buffer = sums.new_empty(step, count)
        for first in range(0, rows, step):
            some = slice(first, min(first + step, rows))
            scores = buffer[:some.stop - first]
            scorer.some(first, scores, terms.dropped)
            sum_rows(scores, terms, some, sums[some])
    return sums


def _gradients(problem: Problem, terms: Terms, log_sums: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the gradients of the tensors of a problem."""
    from .gradients import gradients

    with on_device_of(log_sums):
        return gradients(problem, terms, log_sums, grad)


mixture_of_logits_logsumexp = registered_sum("triton", Summed(_log_sums, _gradients))
