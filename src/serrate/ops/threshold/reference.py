"""The oracle: all scores at once, products in float64, which holds them exactly."""

import torch
from torch import Tensor

from .api import Call, Problem


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def select_above(problem: Problem, capacity: int) -> tuple[Tensor, Tensor]:
    """Select the items that reach a threshold; see `api.select_above`."""
    products = (problem.queries.double() @ problem.items.double().T).float()
    scores = products * problem.item_scales * problem.query_scales[:, None]
    reached = scores >= problem.threshold[:, None]
    if problem.allowed is not None:
        reached &= problem.allowed
    ids = torch.full((len(scores), capacity), -1, device=scores.device)
    for query, found in enumerate(reached):
        first = found.nonzero()[:capacity, 0]
        ids[query, :len(first)] = first
    return ids, reached.sum(1)
