"""What the tests of indexes share: similarities whose scores are exact, and the slow truth of a search."""

import torch
from torch import Tensor

from serrate.jagged import JaggedTensor
from serrate.nn.similarity import DotProduct, MixtureOfLogits, MixtureOptions, Sides

INF = float("inf")
SMALL = MixtureOptions(query_components=2, item_components=2, component_width=8, gate_hidden=8, query_hidden=8)


def jagged(rows: list[list[int]]) -> JaggedTensor:
    """Return rows of ids."""
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    return JaggedTensor.from_lengths(values, torch.tensor([len(row) for row in rows], dtype=torch.int64))


class Flat(MixtureOfLogits):
    """A mixture whose gate weighs all components alike, on components of small whole numbers: its scores are exact."""

    def __init__(self):
        super().__init__(4, MixtureOptions(query_components=2, item_components=2, component_width=4, gate_hidden=4,
                                           query_hidden=4, temperature=0.5))
        torch.nn.init.zeros_(self.cross[2].weight)
        self.eval()

    def of(self, components: Tensor) -> Sides:
        """Return the sides of components `(N, 2, 4)`, with a gate of zeros."""
        return {"components": components.float(), "gate": torch.zeros(len(components), 4)}


def whole(seed: int, *shape: int, most: int = 2) -> Tensor:
    """Return whole numbers from `-most` to `most`, so few that scores tie often."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def dot(vectors: Tensor) -> Sides:
    """Return the sides of a dot product."""
    return {"vector": vectors}


def slow_search(scores: Tensor, ids: list[int], k: int, closed: list[set[int]]) -> tuple[list, list]:
    """Sort everything in Python: the oracle of a search over `scores` `(R, V)`."""
    best_scores, best_ids = [], []
    for row, out in zip(scores.tolist(), closed, strict=True):
        order = sorted((-score, item) for score, item in zip(row, ids, strict=True) if item not in out)[:k]
        missing = k - len(order)
        best_scores.append([-score for score, _ in order] + [-INF] * missing)
        best_ids.append([item for _, item in order] + [-1] * missing)
    return best_scores, best_ids


def exact(name: str):
    """Return a similarity with exact scores, `dot` or `mixture`, and a function: seed, number → sides."""
    if name == "dot":
        return DotProduct().eval(), lambda seed, number: dot(whole(seed, number, 5))
    similarity = Flat()
    return similarity, lambda seed, number: similarity.of(whole(seed, number, 2, 4))


def mixture(queries: int = 6, items: int = 300):
    """Return a mixture with random weights, in evaluation mode, and the sides of some queries and items."""
    torch.manual_seed(0)
    similarity = MixtureOfLogits(16, SMALL).eval()
    for parameter in similarity.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    with torch.no_grad():
        return similarity, similarity.queries(torch.randn(queries, 16)), similarity.items(torch.randn(items, 16))
