"""A search by mixture of logits beside brute force: `python -m serrate.ops.mixture_of_logits.bench [workload]`.

Workloads are in `cases.py`; a few of them without a name. Each is checked first: some scores against the float64
oracle, what is found against a sort of all scores, bit by bit; without a right answer no speed is told. Peers are
torch's own operations on as many items at a time as fit, all scores kept, and torch's top-k. Limits are the products at
the rate of a large one, and exponentials at 16 a clock and multiprocessor: one a hidden number and two a pair of
components; reciprocals are not counted, since by `tanh` there is one a score. Rows of figures go to
`mixture-of-logits-<device>.json` under `$OUT`, or `benchmarks` without it, as soon as a workload is measured.

With `--all` every workload is measured, with `--tune [workload]` it tells what each way to cut the work takes, and
`--table benchmarks/mixture-of-logits-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import measure
from ..figures import OURS
from ..measure import TOLERANCE, Figures, Rows, tell
from .api import Filters, Gate, Problem, mixture_of_logits, mixture_of_logits_top_k
from .cases import WORKLOADS, Case
from .reference import permitted

README = Path(__file__).with_name("README.md")
USUAL = ("700k items, k 100", "700k items, k 10,000", "3,706 items, k 100")
_CHECKED = 512  # items from either end, by 8 queries from either end, that the oracle scores too
_PAIRS = 2**19  # that peers score at a time: the hidden numbers of so many take 128 MiB
_EXPONENTIALS = 16  # a clock and multiprocessor, on every device since 2017

Found = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Inputs:
    """One workload on a device: a case, its sides and gate, and its filters."""

    case: Case
    problem: Problem
    filters: Filters


def make(case: Case, device: str = "cuda") -> Inputs:
    """Return the inputs of a workload, the same each time."""
    return Inputs(case, case.problem(case.dtype, device), case.filters(device))


def ours(inputs: Inputs, implementation: str = OURS) -> Callable[[], Found]:
    """Return an implementation of ours, which gives scores and ids `(R, k)`."""
    problem = inputs.problem
    return lambda: mixture_of_logits_top_k(
        *problem[:5], inputs.case.k, temperature=problem.temperature, **inputs.filters._asdict(),
        implementation=implementation)


def brute_force(inputs: Inputs, compiled: bool = False) -> Callable[[], Found]:
    """Return torch's own operations: all scores, of some items at a time, and then the best of them."""
    problem, case = inputs.problem, inputs.case
    score: Callable[..., Tensor] = _compiled() if compiled else eagerly
    step = _at_a_time(case)
    allowed = inputs.filters.allowed
    no_candidate = None if allowed is None else ~permitted(allowed, case.items)

    def run() -> Found:
        scores = torch.empty(case.queries, case.items, dtype=torch.float32, device=problem.item_gate.device)
        for first in range(0, case.items, step):
            some = slice(first, first + step)
            scores[:, some] = score(problem._replace(item_components=problem.item_components[some],
                                                     item_gate=problem.item_gate[some]))
        if no_candidate is not None:
            scores.masked_fill_(no_candidate, -torch.inf)
        if inputs.filters.exclude is not None:
            offsets, ids = inputs.filters.exclude
            rows = torch.arange(case.queries, device=ids.device).repeat_interleave(offsets.diff(), output_size=len(ids))
            scores[rows, ids] = -torch.inf
        best = scores.topk(min(case.k, case.items))
        return best.values, best.indices

    return run


def eagerly(problem: Problem) -> Tensor:
    """Return the scores `(R, V)` of a problem, one of torch's operations after the other."""
    f, a, g, b, gate, temperature = problem
    rows, count, mixed = len(f), len(g), a.shape[1]
    logits = (f.flatten(0, 1) @ g.flatten(0, 1).T).view(rows, f.shape[1], count, g.shape[1])
    logits = logits.transpose(1, 2).reshape(rows * count, mixed) / temperature
    hidden = F.silu(F.linear(logits, gate.first_weight, gate.first_bias))
    z = (a[:, None] * b).view(rows * count, mixed) + F.linear(hidden, gate.second_weight, gate.second_bias)
    return (F.silu(z).softmax(-1) * logits).sum(-1).view(rows, count).float()


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    """Return the same compiled, once for all workloads of a shape."""
    return torch.compile(eagerly, fullgraph=True, dynamic=False)


def _at_a_time(case: Case) -> int:
    """Return how many items peers score together: parts alike, so that one compiled function serves all."""
    parts = -(-case.queries * case.items // _PAIRS)
    while case.items % parts and parts < case.items:
        parts += 1
    return max(1, case.items // parts)


PEERS: dict[str, Callable[[Inputs], Callable[[], Found]]] = {
    "eager": brute_force, "compiled": partial(brute_force, compiled=True)}


def wrong(inputs: Inputs, implementation: str = OURS) -> float:
    """Return the relative error of scores of the first and last queries and items, against the oracle."""
    case, problem = inputs.case, inputs.problem
    queries, items = _ends(case.queries, 8, problem), _ends(case.items, _CHECKED, problem)
    whole = mixture_of_logits(*problem[:5], temperature=problem.temperature, implementation=implementation)
    part = Problem(problem.query_components[queries].double(), problem.query_gate[queries].double(),
                   problem.item_components[items].double(), problem.item_gate[items].double(),
                   Gate(*(x.double() for x in problem.gate)), problem.temperature)
    oracle = mixture_of_logits(*part[:5], temperature=part.temperature, implementation="reference")
    return measure.relative_error([whole[queries][:, items]], [oracle])


def misplaced(inputs: Inputs, implementation: str = OURS) -> str | None:
    """Return what is wrong with what is found, None where it is what a sort of all scores gives, bit by bit."""
    case, problem, (exclude, allowed) = inputs.case, inputs.problem, inputs.filters
    whole = mixture_of_logits(*problem[:5], temperature=problem.temperature, implementation=implementation)
    if allowed is not None:
        whole[:, ~permitted(allowed, case.items)] = -torch.inf
    if exclude is not None:
        rows = torch.arange(case.queries, device=whole.device).repeat_interleave(exclude[0].diff())
        whole[rows, exclude[1]] = -torch.inf
    scores, ids = ours(inputs, implementation)()
    expected, order = whole.sort(dim=1, descending=True, stable=True)
    order = order.masked_fill(expected == -torch.inf, -1)
    kept = min(case.k, case.items)
    for what, found, right in (("scores", scores, expected), ("ids", ids, order)):
        if not torch.equal(found[:, :kept], right[:, :kept]):
            return f"{case.name}, {implementation}: {what} differ from those of a sort"
    return None


def _ends(count: int, most: int, problem: Problem) -> Tensor:
    """Return the first and last `most` of so many places, each once."""
    places = torch.arange(count, device=problem.item_gate.device)
    return places if count <= 2 * most else torch.cat([places[:most], places[-most:]])


def limit(case: Case) -> Figures:
    """Return the least times on this device: of products, of exponentials, and the larger one."""
    pairs, mixed = case.queries * case.items, case.mixed
    product = 2 * pairs * mixed * (case.width + 2 * case.hidden) / 1e9 / measure.product_rate(case.dtype)
    exponential = pairs * (2 * mixed + case.hidden) / (_EXPONENTIALS * 1e-3 * _clocks_a_second())
    return {"product_ms": product, "exponential_ms": exponential, "limit_ms": max(product, exponential)}


@lru_cache(maxsize=1)
def _clocks_a_second() -> float:
    """Return the clocks of all multiprocessors of this device together, at their highest rate."""
    from triton.runtime import driver  # pyright: ignore[reportMissingImports]

    utils = driver.active.utils  # pyright: ignore[reportAttributeAccessIssue]
    found = utils.get_device_properties(torch.cuda.current_device())
    return 1e3 * found["sm_clock_rate"] * found["multiprocessor_count"]


def compare(case: Case, device: str = "cuda", implementation: str = OURS) -> Rows:
    """Check ours, then measure it and its peers; return rows of figures. A peer that fails is told and left out.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    inputs = make(case, device)
    error = wrong(inputs, implementation)
    measure.require(f"{case.name}, {implementation}", error, TOLERANCE[case.dtype])
    if (told := misplaced(inputs, implementation)) is not None:
        raise AssertionError(told + ": no speed is told")
    tell(f"{case.name}: {case.queries:,} queries, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": case.queries * case.items}}
    if device == "cuda":
        found["limit"] = limit(case)
        tell("  limit                    " + "  ".join(f"{key} {value:.4g}" for key, value in found["limit"].items()))
    ways: dict[str, Callable[[Inputs], Callable[[], Found]]] = {
        implementation: partial(ours, implementation=implementation)} | PEERS
    for name, prepare in ways.items():
        is_ours = name == implementation
        found[name] = measure.taken(
            name, lambda prepare=prepare, is_ours=is_ours: _everything(prepare(inputs), device, is_ours), is_ours)
    return measure.rows_of("mixture_of_logits", case.name, found, device)


@torch.no_grad()
def _everything(run: Callable[[], Found], device: str, is_ours: bool) -> Figures:
    """Return the time of a call, on a GPU also its extra memory, and of ours that of a replayed graph."""
    run()
    if device != "cuda":
        return {"forward_ms": measure.milliseconds(run, device, 0.5)}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    found = {"peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20, "forward_ms": measure.milliseconds(run)}
    return found | (measure.taken("replayed", lambda: _replayed(run), False) if is_ours else {})


def _replayed(run: Callable[[], Found]) -> Figures:
    """Return the time of a replayed CUDA graph, which leaves out what the host takes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return {"graph_forward_ms": measure.milliseconds(graph.replay)}


# --- how to cut the work ---


@torch.no_grad()
def tune(case: Case) -> None:
    """Tell what scoring all pairs takes for each way to cut the work, and what is left beside it of a search."""
    from .triton.scores import Scorer, Tiles

    inputs = make(case)
    problem = inputs.problem
    out = torch.empty(case.queries, case.items, device="cuda")
    for tiles in (Tiles(*sizes, **more) for sizes, more in _WAYS):
        try:
            scorer = Scorer.of(problem, tiles)
            scorer.every(0, out, candidates=True)
            took = measure.milliseconds(lambda scorer=scorer: scorer.every(0, out, candidates=True))
            tell(f"  {tiles}: {took:.4g} ms")
        except measure.failures() as failure:
            tell(f"  {tiles}: failed: {str(failure)[:120]}")
    took = measure.milliseconds(lambda: Scorer.of(problem))
    tell(f"  preparing {took:.4g} ms")
    if case.items > case.k:
        from .triton.selection import keep

        tell(f"  what is kept {measure.milliseconds(lambda: keep(out, case.k)):.4g} ms")
        best = out[:, :case.k].contiguous()
        took = measure.milliseconds(lambda: best.sort(dim=1, descending=True, stable=True))
        tell(f"  its order {took:.4g} ms")


_WAYS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((64, 4, 1), {"registers": 128, "apart": True}), ((64, 4, 1, 512, 32, 4), {"registers": 128, "apart": True}),
    ((64, 4, 1, 512, 128, 1), {"registers": 168, "apart": True}), ((64, 4, 2), {"registers": 128, "apart": True}),
    ((128, 8, 1), {"registers": 128, "apart": True}), ((64, 4, 1), {"apart": True}),
    ((128, 8, 2), {"registers": 128}), ((64, 4, 1), {"registers": 168}), ((64, 4, 2, 512, 32, 4), {})]


# --- the command line ---


def main(names: Sequence[str]) -> None:
    """Measure the workloads of these names, or all, and write their rows as they come."""
    if names[:1] == ["--tune"]:
        tune(WORKLOADS[names[1] if names[1:] else USUAL[0]])
        return
    parts = {name: [partial(compare, case)] for name, case in WORKLOADS.items()}
    measure.main("mixture-of-logits", parts, names, usual=USUAL, readme=README)


if __name__ == "__main__":
    main(sys.argv[1:])
