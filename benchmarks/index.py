"""A million items on a CPU: indexes of a mixture of logits beside FAISS, each with its recall of the mixture's best.

    python benchmarks/index.py --out benchmarks/index-cpu.json

Items, queries and mixture are those of `planted.py`. FAISS searches the vectors of stage one, alone ("faiss …", which
cannot know the mixture) or as stage one of ours. Needs faiss-cpu (the extra `ann`).
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
from planted import SHAPE, planted, trained
from torch import Tensor

from serrate.index import KINDS, ExactIndex, Index
from serrate.index.h_indexer import stage_one
from serrate.index.measure import recall
from serrate.nn.similarity import Sides
from serrate.ops.measure import milliseconds

LEDGER = Path(__file__).parent / "index-cpu.json"
OURS = [("component", {"each": 100}), ("component", {"each": 50, "mean": 500}), ("two-pass", {}),
        ("h-indexer", {"keep": 10_000}), ("h-indexer", {"keep": 50_000}),
        ("faiss", {"factory": "IVF1024,Flat", "keep": 10_000, "probes": 64})]
FACTORIES = {"Flat": {}, "IVF1024,Flat": {"nprobe": 64}, "HNSW32": {"efSearch": 256}}
PACKAGES = ("torch", "faiss-cpu")


def peers(items: Sides, queries: Sides, k: int) -> Iterator[tuple[str, Callable[[int], Tensor], float]]:
    """Yield FAISS's indexes of the vectors of stage one: a name, a search of the first queries, seconds."""
    vectors, asked = (np.ascontiguousarray(stage_one(sides).numpy()) for sides in (items, queries))
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
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--out", type=Path, default=LEDGER)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    similarity = trained("cpu")
    items, queries = planted(similarity, arguments.items, arguments.queries, torch.Generator().manual_seed(1))
    exact = ExactIndex.build(similarity, items)
    truth = exact.search(queries, arguments.k).ids
    workload = f"{arguments.items:,} items, mixture {SHAPE}, k {arguments.k}, {arguments.threads} threads"

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
