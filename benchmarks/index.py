"""A million items on a CPU: indexes of a mixture of logits beside FAISS, each with its recall of the mixture's best.

    python benchmarks/index.py --out benchmarks/index-cpu.json

Items and queries are planted around cluster centres, component by component; the gate is random, and as diffuse as
trained ones were found to be. FAISS searches the mean components by their dot product, alone ("faiss …", which cannot
know the gate) or as stage one of ours. Needs faiss-cpu (the extra `ann`).
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import ledger
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from serrate.index import KINDS, ExactIndex, Index
from serrate.index.measure import recall
from serrate.index.sides import mean_component
from serrate.nn.similarity import MixtureOfLogits, MixtureOptions, Sides
from serrate.ops.measure import milliseconds

LEDGER = Path(__file__).parent / "index-cpu.json"
OPTIONS = MixtureOptions()  # 8 x 4 components of 64, gate 128
A_CLUSTER = 1_000  # items
OURS = [("component", {"each": 100}), ("component", {"each": 50, "mean": 500}), ("two-pass", {}),
        ("h-indexer", {"keep": 10_000}), ("h-indexer", {"keep": 50_000}),
        ("faiss", {"factory": "IVF1024,Flat", "keep": 10_000, "probes": 64})]
FACTORIES = {"Flat": {}, "IVF1024,Flat": {"nprobe": 64}, "HNSW32": {"efSearch": 256}}
PACKAGES = ("torch", "faiss-cpu")


def planted(number: int, components: int, clusters: int, spread: float, draw: torch.Generator) -> Sides:
    """Return the sides of `number` queries or items: components around those of a cluster each, and a random gate."""
    centres = torch.randn(clusters, OPTIONS.item_components, OPTIONS.component_width,
                          generator=torch.Generator().manual_seed(0))
    made = torch.empty(number, components, OPTIONS.component_width)
    for start in range(0, number, 2**16):
        part = made[start : start + 2**16]
        cluster = torch.randint(clusters, (len(part),), generator=draw)
        of = centres[cluster][:, torch.arange(components) % OPTIONS.item_components]
        part.copy_(F.normalize(of + spread * torch.randn(part.shape, generator=draw), dim=-1))
    return {"components": made, "gate": torch.randn(number, OPTIONS.logits, generator=draw)}


def peers(items: Sides, queries: Sides, k: int) -> Iterator[tuple[str, Callable[[int], Tensor], float]]:
    """Yield FAISS's indexes of the mean components: a name, a search of the first queries, the seconds of building."""
    vectors, asked = (np.ascontiguousarray(mean_component(sides).numpy()) for sides in (items, queries))
    for factory, settings in FACTORIES.items():
        began = time.perf_counter()
        made = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        made.train(vectors)
        made.add(vectors)
        for name, value in settings.items():
            faiss.ParameterSpace().set_index_parameter(made, name, value)
        yield (f"faiss {factory}", lambda batch, made=made: torch.from_numpy(made.search(asked[:batch], k)[1]),
               time.perf_counter() - began)


def ours(exact: Index, queries: Sides, k: int) -> Iterator[tuple[str, Callable[[int], Tensor], float, Index]]:
    """Yield our indexes over the items of an exact one: a name, a search of the first queries, seconds, the index."""
    for kind, config in [("exact", {}), *OURS]:
        began = time.perf_counter()
        index = KINDS[kind].over(exact, config)
        name = " ".join([f"serrate {kind}", *(f"{key}={value}" for key, value in config.items())])

        def search(batch: int, index: Index = index) -> Tensor:
            return index.search({part: side[:batch] for part, side in queries.items()}, k).ids

        search(1)  # FAISS's structure is made at the first search
        yield name, search, time.perf_counter() - began, index


def main() -> None:
    """Build, search, compare, print, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--spread", type=float, default=0.5, help="of items around their cluster, to its own length")
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--out", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    torch.manual_seed(0)
    similarity = MixtureOfLogits(64, OPTIONS).eval()
    for layer, gain in ((similarity.cross[0], 1.0), (similarity.cross[2], 0.1)):
        torch.nn.init.xavier_normal_(layer.weight, gain)  # the mean entropy of the gate is then 2.9 of ln 32 = 3.5
    draw = torch.Generator().manual_seed(1)
    clusters = -(-arguments.items // A_CLUSTER)
    items = planted(arguments.items, OPTIONS.item_components, clusters, arguments.spread, draw)
    queries = planted(arguments.queries, OPTIONS.query_components, clusters, arguments.spread, draw)
    exact = ExactIndex.build(similarity, items)
    truth = exact.search(queries, arguments.k).ids
    shape = f"{OPTIONS.query_components}x{OPTIONS.item_components}x{OPTIONS.component_width}"
    workload = f"{arguments.items:,} items, mixture {shape}, k {arguments.k}, {arguments.threads} threads"

    def told(name: str, search: Callable[[int], Tensor], seconds: float, index: Index | None = None) -> None:
        figures = {"recall": (float(recall(search(arguments.queries), truth).mean()), "share"),
                   "build_s": (seconds, "s")}
        for batch in arguments.batches:
            figures[f"batch_{batch}_ms"] = (
                milliseconds(lambda batch=batch: search(min(batch, arguments.queries)), "cpu", arguments.seconds), "ms")
        if index is not None:
            found = index.search(queries, arguments.k)
            figures["scored"] = (float(found.share.mean()), "share")
            figures["certified"] = (float(found.certified.double().mean()), "share")
        shown = "  ".join(f"{metric} {value:.4g}" for metric, (value, _) in figures.items())
        print(f"{name:48} {shown}", flush=True)
        ledger.write(arguments.out, [
            ledger.row("index", workload, name, metric, round(value, 5), unit, packages=PACKAGES)
            for metric, (value, unit) in figures.items() if math.isfinite(value)])

    for each in ours(exact, queries, arguments.k):
        told(*each)
    for each in peers(items, queries, arguments.k):
        told(*each)


if __name__ == "__main__":
    main()
