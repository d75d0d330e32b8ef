"""A mixture of logits and a corpus of planted clusters, for the benchmarks of indexes: no log has so many items.

Vectors of items and queries stand around cluster centres. The mixture and its stage one learn, from pairs of a query
and an item of its cluster, that these belong together: of other clusters than those that are searched.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from serrate.nn import SampledSoftmax
from serrate.nn.similarity import MixtureOfLogits, MixtureOptions, Sides

WIDTH = 64
OPTIONS = MixtureOptions(stage_one_width=WIDTH)  # 8 x 4 components of 64, gate 128
SHAPE = f"{OPTIONS.query_components}x{OPTIONS.item_components}x{OPTIONS.component_width}"
A_CLUSTER = 1_000  # items
SPREAD = 0.5  # of vectors around their centre, to its own length
_STEPS, _EVENTS, _NEGATIVES = 150, 256, 256
_AT_A_TIME = 2**18


def vectors(number: int, centres: Tensor, draw: torch.Generator, clusters: Tensor | None = None) -> Tensor:
    """Return vectors `(N, 64)` float32, each around one of the `centres` `(C, 64)`: a random one unless told."""
    device = draw.device
    if clusters is None:
        clusters = torch.randint(len(centres), (number,), generator=draw, device=device)
    noise = torch.randn(number, WIDTH, generator=draw, device=device)
    return F.normalize(centres[clusters] + SPREAD * noise, dim=1)


def trained(device: str) -> MixtureOfLogits:
    """Return a mixture that knows which queries and items belong together, its stage one learnt with it."""
    torch.manual_seed(0)
    draw = torch.Generator(device).manual_seed(0)
    similarity = MixtureOfLogits(WIDTH, OPTIONS).to(device)
    optimizer = torch.optim.AdamW(similarity.parameters(), lr=1e-3)
    loss = SampledSoftmax(torch.ones(_EVENTS, device=device), _NEGATIVES).to(device)
    targets = torch.arange(_EVENTS, device=device)
    for _ in range(_STEPS):
        centres = torch.randn(_EVENTS, WIDTH, generator=draw, device=device)
        queries, items = (vectors(_EVENTS, centres, draw, targets) for _ in range(2))
        (loss(queries, items, targets, similarity=similarity) / _EVENTS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return similarity.eval()


@torch.no_grad()
def planted(similarity: MixtureOfLogits, items: int, queries: int, draw: torch.Generator,
            dtype: torch.dtype = torch.float32) -> tuple[Sides, Sides]:
    """Return the sides of items and of queries around the centres of as many clusters as there are thousand items."""
    centres = torch.randn(-(-items // A_CLUSTER), WIDTH, generator=draw, device=draw.device)
    made: Sides = {}
    for rows in _parts(items):
        part = similarity.items(vectors(len(rows), centres, draw))
        for name, side in part.items():
            whole = made.setdefault(name, torch.empty(items, *side.shape[1:], dtype=dtype, device=draw.device))
            whole[rows.start : rows.stop] = side
    return made, {name: side.to(dtype) for name, side in similarity.queries(vectors(queries, centres, draw)).items()}


def _parts(number: int) -> Iterator[range]:
    for start in range(0, number, _AT_A_TIME):
        yield range(start, min(start + _AT_A_TIME, number))
