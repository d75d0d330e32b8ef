"""Named calls of mixture of logits: one table for tests, and the corpora to measure."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import Filters, Gate, Problem


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        queries, items: R and V.
        query_components, item_components, width, hidden: P_Q, P_X, d and G.
        k: how many are asked for.
        temperature: of the logits.
        sharpness: how far the gate is from weighing all logits alike.
        copies: how often each item stands there, which makes ties.
        excluded: ids that each query must not get, drawn with repetition.
        allowed: share of the items that may come back; None: no such filter.
        bits: whether that filter comes as bits.
        packed: whether tensors are contiguous; else they are part of larger ones.
        dtype: of the items to measure.
    """

    name: str
    queries: int
    items: int
    query_components: int = 2
    item_components: int = 2
    width: int = 8
    hidden: int = 16
    k: int = 5
    temperature: float = 0.05
    sharpness: float = 1.0
    copies: int = 1
    excluded: int = 0
    allowed: float | None = None
    bits: bool = False
    packed: bool = True
    dtype: torch.dtype = torch.bfloat16

    @property
    def mixed(self) -> int:
        """P, the pairs of components."""
        return self.query_components * self.item_components

    def problem(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
        """Return random sides and gate of a dtype, components of length 1; the same for a device."""
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            whole = (*shape[:-1], shape[-1] if self.packed else 2 * shape[-1])
            return torch.randn(whole, generator=generator, device=device)[..., :shape[-1]]

        def side(count: int, components: int) -> tuple[Tensor, Tensor]:
            vectors = F.normalize(random(count, components, self.width), dim=-1)
            return vectors.to(dtype), (self.sharpness * random(count, self.mixed)).to(dtype)

        alone = -(-self.items // self.copies)
        items = [x.repeat(self.copies, *[1] * (x.dim() - 1))[:self.items] for x in side(alone, self.item_components)]
        gate = Gate(random(self.hidden, self.mixed) * (self.temperature / self.mixed**0.5), random(self.hidden),
                    self.sharpness * random(self.mixed, self.hidden) / self.hidden**0.5, random(self.mixed))
        queries = side(self.queries, self.query_components)
        return Problem(*queries, items[0], items[1], Gate(*(x.to(dtype) for x in gate)), self.temperature)

    def filters(self, device: str = "cpu") -> Filters:
        """Return what is excluded and allowed, at random."""
        generator, exclude, allowed = torch.Generator().manual_seed(1), None, None
        if self.excluded:  # every second query has some
            lengths = torch.arange(self.queries) % 2 * self.excluded
            ids = torch.randint(self.items, (int(lengths.sum()),), generator=generator)
            exclude = F.pad(lengths.cumsum(0), (1, 0)).to(device), ids.to(device)
        if self.allowed is not None:
            may = torch.rand(self.items, generator=generator) < self.allowed
            allowed = (packed_bits(may) if self.bits else may).to(device)
        return Filters(exclude, allowed)


def packed_bits(allowed: Tensor) -> Tensor:
    """Return `(V,)` bool as bits `(⌈V / 8⌉,)` uint8, the lowest first."""
    whole = F.pad(allowed, (0, -len(allowed) % 8)).view(-1, 8)
    return (whole * 2 ** torch.arange(8, device=allowed.device)).sum(1).to(torch.uint8)


CASES = [
    Case("no queries", 0, 7),
    Case("no items", 3, 0),
    Case("one item", 2, 1),
    Case("nothing asked for", 2, 9, k=0),
    Case("fewer items than asked for", 3, 4, k=9),
    Case("all items asked for", 3, 20, k=20),
    Case("one pair of components", 3, 33, 1, 1, 3, 1),
    Case("odd sizes", 5, 70, 3, 2, 25, 20, k=17),
    Case("published", 3, 130, 8, 4, 64, 128, k=40),
    Case("more components", 2, 40, 8, 8, 32, 24),
    Case("many components", 2, 20, 13, 10, 4, 40),
    Case("wide components", 2, 20, 2, 3, 200, 16),
    Case("wide gate", 2, 20, 2, 2, 8, 150),
    Case("sharp", 3, 50, 4, 2, sharpness=3.0),
    Case("low temperature", 3, 50, 4, 2, temperature=0.007),
    Case("every item three times", 4, 90, k=20, copies=3),
    Case("all items alike", 3, 50, k=20, copies=50),
    Case("excluded", 5, 60, k=12, excluded=15),
    Case("nearly all excluded", 4, 12, k=9, excluded=60),
    Case("allowed", 3, 70, k=12, allowed=0.5),
    Case("allowed by bits", 3, 77, k=12, allowed=0.5, bits=True),
    Case("few allowed", 3, 150, k=12, allowed=0.03, bits=True),
    Case("none allowed", 3, 20, allowed=0.0),
    Case("both filters, ties", 5, 90, k=30, copies=4, excluded=20, allowed=0.7),
    Case("parts of larger tensors", 3, 40, packed=False),
]

_PUBLISHED = 8, 4, 64, 128  # P_Q, P_X, d and G of MovieLens

WORKLOADS = {case.name: case for case in [  # of the sizes of public logs: MovieLens-1M, and Amazon Books
    Case("700k items, k 100", 32, 700_000, *_PUBLISHED, k=100),
    Case("700k items, k 10,000", 32, 700_000, *_PUBLISHED, k=10_000),
    Case("700k items, k 100, one query", 1, 700_000, *_PUBLISHED, k=100),
    Case("700k items, k 100, filtered", 32, 700_000, *_PUBLISHED, k=100, excluded=200, allowed=0.5, bits=True),
    Case("700k items, 8 x 8 x 32, k 100", 32, 700_000, 8, 8, 32, 128, k=100),
    Case("3,706 items, k 100", 32, 3_706, *_PUBLISHED, k=100),
    Case("3,706 items, k 100, 1,024 queries", 1_024, 3_706, *_PUBLISHED, k=100),
]}
