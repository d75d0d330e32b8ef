"""The similarity of most recommenders: one product of two vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Sides, Similarity


class DotProduct(Similarity):
    """The dot product of the two vectors, or their cosine. Both sides are `{"vector": (·, E)}`.

    Args:
        normalise: bring both vectors to length 1, which makes it the cosine; a vector of zeros stays.
        part: what the vectors are called in the sides.
    """

    def __init__(self, normalise: bool = False, part: str = "vector"):
        super().__init__()
        self.normalise = normalise
        self.part = part

    def queries(self, x: Tensor, users: Tensor | None = None) -> Sides:
        """Return the vectors of queries `(R, E)`."""
        return {self.part: self._vectors(x)}

    def items(self, table: Tensor) -> Sides:
        """Return the vectors of items `(V, E)`."""
        return {self.part: self._vectors(table)}

    def score(self, queries: Sides, items: Sides) -> Tensor:
        """Return `(R, V)`, every query with every item, float32 (float64 of float64)."""
        return _wide(queries[self.part] @ items[self.part].T)

    def score_each(self, queries: Sides, items: Sides) -> Tensor:
        """Return `(R, K)`, each query with the items `(R, K, E)` of its own, float32 (float64 of float64)."""
        return _wide(torch.einsum("re,rke->rk", queries[self.part], items[self.part]))

    def extra_repr(self) -> str:
        """Say whether it is the cosine."""
        return f"normalise={self.normalise}"

    def _vectors(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.normalise else x


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
