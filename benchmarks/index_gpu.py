"""Indexes of a mixture of logits on a GPU: candidates by component of 700,000 items, and two stages over 100 million.

    python benchmarks/index_gpu.py candidates corpus --out benchmarks/index-h200.json

Items, queries and mixture are those of `planted.py`, in bfloat16. Recall is the share of the mixture's own best 100,
which are found by scoring every item. Beside candidates stands a brute force by torch's own operations, beside the two
stages the same second stage behind torch's product of the vectors of stage one in bfloat16 and its `topk`: what one
would write who has no index, with as many candidates.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import ledger
import torch
from planted import SHAPE, planted, trained
from torch import Tensor

from serrate.index import ComponentIndex, ExactIndex, HIndexer, Index
from serrate.index.measure import recall
from serrate.index.sides import rows_of
from serrate.nn.similarity import MixtureOfLogits, Sides
from serrate.ops.measure import milliseconds
from serrate.ops.mixture_of_logits.api import Gate, Problem
from serrate.ops.mixture_of_logits.bench import eagerly

LEDGER = Path(__file__).parent / "index-h200.json"
K = 100
COMBINED = [(50, 500), (200, 2_000), (500, 5_000), (1_000, 10_000), (2_000, 20_000)]  # of each component, of the mean
BATCHES = [1, 8, 32, 128]
KEPT = [10_000, 30_000, 100_000, 300_000, 1_000_000]
COMPARED = 100_000
_PAIRS = 2**19  # that the brute force scores at a time: the hidden numbers of so many take 128 MiB

Search = Callable[[Sides], Tensor]


class Bench:
    """One corpus, the exact answers, and the rows of what is measured.

    Args:
        items: how many.
        queries: how many, the largest batch.
        out: the ledger.
        device: where everything is.
    """

    def __init__(self, items: int, queries: int, out: Path, device: str):
        similarity = trained(device)
        self.workload = f"{items:,} items, mixture {SHAPE}, k {K}"
        self.out = out
        self.device = device
        draw = torch.Generator(device).manual_seed(1)
        sides, self.queries = planted(similarity, items, queries, draw, torch.bfloat16)
        self.exact = ExactIndex.build(similarity, sides)
        self.truth = self.exact.search(self.queries, K).ids

    def tell(self, name: str, search: Search, batches: list[int], **more: tuple[float, str]) -> None:
        """Measure a search at some numbers of queries, print it and write the rows."""
        most = max(batches)
        found = torch.cat([search(rows_of(self.queries, row, row + most)) for row in range(0, len(self.truth), most)])
        figures = {"recall": (float(recall(found, self.truth).mean()), "share"), **more}
        for batch in batches:
            some = rows_of(self.queries, 0, batch)
            figures[f"batch_{batch}_ms"] = (milliseconds(lambda some=some: search(some), self.device), "ms")
        shown = "  ".join(f"{metric} {value:.4g}" for metric, (value, _) in figures.items())
        print(f"{name:48} {shown}", flush=True)
        ledger.write(self.out, [ledger.row("index", self.workload, name, metric, round(value, 5), unit)
                                for metric, (value, unit) in figures.items() if math.isfinite(value)])


def candidates(out: Path, items: int = 700_000, device: str = "cuda") -> None:
    """Candidates by component beside exact search and beside brute force."""
    bench = Bench(items, 32, out, device)
    bench.tell("brute force, torch", lambda some: brute_force(bench.exact, some), [32])
    bench.tell("serrate exact", of(bench.exact), [32])
    for each, mean in COMBINED:
        index = ComponentIndex.over(bench.exact, {"each": each, "mean": mean})
        share = float(index.search(bench.queries, K).share.mean())
        bench.tell(f"serrate component each={each} mean={mean}", of(index), [32], scored=(share, "share"))


def corpus(out: Path, items: int = 100_000_000, kept: Sequence[int] = KEPT, device: str = "cuda") -> None:
    """Two stages, by how many candidates and queries."""
    bench = Bench(items, 128, out, device)
    for keep in kept:
        index = HIndexer.over(bench.exact, {"keep": keep})
        more = {"index_gib": (index.num_bytes / 2**30, "GiB")}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        more["scored"] = float(index.search(bench.queries, K).share.mean()), "share"
        if device == "cuda":
            more["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30, "GiB"
        bench.tell(f"serrate h-indexer keep={keep}", of(index), BATCHES if keep == COMPARED else [1, 32], **more)
        del index
    if COMPARED in kept:
        bench.tell(f"product and topk, torch, keep={COMPARED}", lambda some: by_products(bench.exact, some), [1, 8])


def of(index: Index) -> Search:
    """Return the search of an index for its best ids."""
    return lambda some: index.search(some, K).ids


def brute_force(index: Index, queries: Sides) -> Tensor:
    """Return the best ids by torch's own operations: all scores, of some items at a time."""
    assert isinstance(index.similarity, MixtureOfLogits)
    items, rows = index._corpus.segments[0].sides, len(queries["gate"])
    scores = torch.empty(rows, len(index), device=queries["gate"].device)
    with torch.no_grad():
        for start in range(0, len(index), _PAIRS // rows):
            stop = start + _PAIRS // rows
            f, a, g, b, gate = index.similarity._operands(queries, rows_of(items, start, stop))
            low = Gate(*(each.bfloat16() for each in gate))
            scores[:, start:stop] = eagerly(Problem(f, a, g, b, low, index.similarity.temperature))
    return scores.topk(K).indices


def by_products(index: Index, queries: Sides) -> Tensor:
    """Return the best ids of as many candidates as stage one keeps, found by a product with all items."""
    items = index._corpus.segments[0].sides
    with torch.no_grad():
        rows = (queries["stage_one"] @ items["stage_one"].T).topk(COMPARED, sorted=False).indices
        scores = index.similarity.score_rows(queries, items, rows)
    return rows.gather(1, scores.topk(K).indices)


PARTS: dict[str, Callable[[Path], None]] = {"candidates": candidates, "corpus": corpus}


def main() -> None:
    """Measure the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="part", help=", ".join(PARTS) + "; both")
    parser.add_argument("--out", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    for name in arguments.parts or PARTS:
        PARTS[name](arguments.out)


if __name__ == "__main__":
    main()
