"""Selection by a threshold beside torch's own operations: `python -m serrate.ops.threshold.bench [workload ...]`.

Workloads are in `cases.py`; all of them without a name. The answers to smaller calls are checked first, against the
oracle, then each workload's against torch's own; without a right answer no speed is told. The limit is reading items
and scales once, at the measured rate of a copy; beside it stands what a sum of the items takes, which reads alone. Rows
of figures go to `threshold-<device>.json` under `$OUT`, or `benchmarks` without it, as soon as a workload is measured.

`python -m serrate.ops.threshold.bench --table benchmarks/threshold-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .. import measure
from ..figures import OURS
from ..measure import Figures, Rows, ceilings, tell
from .api import Problem, select_above
from .cases import CHECKED, WORKLOADS, Case

README = Path(__file__).with_name("README.md")
_ITEMS = 2_000_000  # of a chunk, for peers that write their scores

Run = Callable[[], object]


def selected(problem: Problem, capacity: int, implementation: str = OURS) -> tuple[Tensor, Tensor]:
    """Return ids `(R, capacity)` and counts `(R,)` by an implementation of ours."""
    return select_above(*problem[:5], allowed=problem.allowed, capacity=capacity, implementation=implementation)


def reached(items: Tensor, item_scales: Tensor, queries: Tensor, query_scales: Tensor, threshold: Tensor) -> Tensor:
    """Return which items of a chunk reach a threshold, `(C, R)` bool, by torch's own product of integers."""
    products = torch._int_mm(items, queries.T)[:, :len(query_scales)]  # pyright: ignore[reportPrivateImportUsage]
    return products * item_scales[:, None] * query_scales >= threshold


def plainly(problem: Problem, test: Callable[..., Tensor] = reached) -> tuple[Tensor, Tensor]:
    """Return queries and items of all pairs that reach a threshold, chunk by chunk; the filter is left out."""
    queries, query_scales, items, item_scales, threshold, _ = problem
    wide = torch.nn.functional.pad(queries, (0, 0, 0, -len(queries) % 8))  # the product wants multiples of 8
    found = []
    for first in range(0, len(items), _ITEMS):
        part = slice(first, first + _ITEMS)
        item, query = test(items[part], item_scales[part], wide, query_scales, threshold).nonzero(as_tuple=True)
        found.append((query, item + first))
    query, item = (torch.cat(each) for each in zip(*found, strict=True))
    return query, item


def eager(problem: Problem) -> Run:
    """Return torch's own operations, one after the other."""
    return lambda: plainly(problem)


def compiled(problem: Problem) -> Run:
    """Return the same with product, scales and comparison through `torch.compile`."""
    test = torch.compile(reached, fullgraph=True, dynamic=False)
    return lambda: plainly(problem, test)


PEERS: dict[str, Callable[[Problem], Run]] = {"eager": eager, "compiled": compiled}


def agree(found: tuple[Tensor, Tensor], query: Tensor, item: Tensor) -> bool:
    """Whether ids `(R, capacity)` and counts `(R,)` are those of all pairs of query and item, as many as have place."""
    ids, counts = found
    rows, capacity = ids.shape
    query, order = query.sort(stable=True)
    number = torch.bincount(query, minlength=rows)
    place = torch.arange(len(query), device=query.device) - (number.cumsum(0) - number)[query]
    fits = place < capacity
    expected = torch.full_like(ids, -1)
    expected[query[fits], place[fits]] = item[order][fits]
    return torch.equal(counts, number) and torch.equal(ids, expected)


def require(what: str, right: bool) -> None:
    """Stop where an answer is wrong: AssertionError."""
    if not right:
        raise AssertionError(f"{what}: other items than expected: no speed is told")


@lru_cache(maxsize=1)
def check(device: str, implementation: str) -> None:
    """Compare an implementation with the oracle on every case that is for this; AssertionError where it is wrong."""
    for case in CHECKED:
        problem = case.problem(device)
        found, expected = (selected(problem, case.capacity, name) for name in (implementation, "reference"))
        require(f"{case.name}, {implementation}", all(torch.equal(*both) for both in zip(found, expected, strict=True)))
    tell(f"right on {len(CHECKED)} smaller calls")


def compare(case: Case, copied: float, device: str = "cuda", implementation: str = OURS) -> Rows:
    """Check ours, then measure it and its peers; return rows of figures. A peer that fails is told and left out.

    copied: bytes a millisecond of a copy. Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    check(device, implementation)
    problem = case.problem(device)

    def ours() -> tuple[Tensor, Tensor]:
        return selected(problem, case.capacity, implementation)

    found = ours()
    require(f"{case.name}, {implementation}", agree(found, *plainly(problem)))
    tell(f"{case.name}: {case.items:,} items, {int(found[1].min()):,} to {int(found[1].max()):,} selected")
    figures: dict[str, Figures] = {"batch": {"events": case.items}, "limit": limit(problem, copied, device)}
    torch.compiler.reset()
    runs: dict[str, Callable[[], Run]] = {implementation: lambda: ours}
    runs |= {name: lambda prepare=prepare: prepare(problem) for name, prepare in PEERS.items()}
    for name, prepare in runs.items():
        is_ours = name == implementation
        figures[name] = measure.taken(
            name, lambda prepare=prepare, is_ours=is_ours: everything(prepare(), is_ours, device), is_ours)
    queries, items = problem[:2], problem[2:4]
    figures[implementation]["sample_threshold_ms"] = measure.milliseconds(
        lambda: case.threshold(queries, items, problem.allowed), device)
    return measure.rows_of("threshold", case.name, figures, device)


def limit(problem: Problem, copied: float, device: str) -> Figures:
    """Return the least time of reading items and scales: at the rate of a copy, and as a sum of the items takes it."""
    given = problem.items.nbytes + problem.item_scales.nbytes
    numbers = problem.items.view(torch.float32)
    return {"limit_ms": given / copied, "sum_of_items_ms": measure.milliseconds(numbers.sum, device)}


def everything(run: Run, is_ours: bool, device: str) -> Figures:
    """Return the time of a call, on a GPU also the memory that it takes, and of ours the time of a replayed graph."""
    run()
    found: Figures = {}
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        found["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    found["forward_ms"] = measure.milliseconds(run, device)
    if is_ours and device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        found["graph_forward_ms"] = measure.milliseconds(graph.replay)
    return found


# --- the command line ---


def main(names: list[str]) -> None:
    """Measure the workloads of these names, or all, and write their rows as they come."""
    parts = {case.name: [lambda case=case: compare(case, ceilings()[0])] for case in WORKLOADS}
    measure.main("threshold", parts, names, readme=README)


if __name__ == "__main__":
    main(sys.argv[1:])
