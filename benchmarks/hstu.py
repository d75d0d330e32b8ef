"""The HSTU layer and stacks of it on one GPU, beside plain PyTorch and beside FlashAttention-2 Transformers.

    python benchmarks/hstu.py [layer] [training] [candidates] [growth]

`layer`: forward and backward of one layer, ours beside the same layer over padded rows, eager and compiled. `training`:
steps of a stack on histories up to 1,024 … 8,192 events, whole and thinned by stochastic length with alpha 1.6, beside
Transformers of the same width, heads and depth: jagged through torch's FlashAttention-2 of variable lengths, and padded
through its dense one. `candidates`: how many candidates a second are scored after one history: one by one, together, in
microbatches, and in microbatches behind a history that is cached. `growth`: new events of a history whose keys are
cached, beside all of it computed anew. All under bfloat16 autocast. What is measured is checked first; rows go to
`hstu-<device>.json`, under `$OUT` if set.
"""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace

import hstu_models as models
import torch
from torch import Tensor, nn

from serrate.jagged import EventBatch
from serrate.models.hstu.cache import encode_candidates, encode_events
from serrate.nn import HSTULayer
from serrate.ops import measure
from serrate.ops.attention import Mask
from serrate.ops.attention.bias import bucket
from serrate.ops.attention.workloads import Workload
from serrate.ops.measure import Peer, Rows, everything, milliseconds, relative_error, rows_of, tell

LAYERS = [
    Workload("layer, longest 200", "uniform", 1024, 200, 4, 64, True, activation="silu", biased=True),
    Workload("layer, longest 1024", "uniform", 128, 1024, 8, 64, True, activation="silu", biased=True),
    Workload("layer, longest 4096", "uniform", 8, 4096, 8, 64, True, activation="silu", biased=True),
    Workload("layer, longest 1024, no bias", "uniform", 128, 1024, 8, 64, True, activation="silu"),
]
LONGEST = (1024, 2048, 4096, 8192)
CELLS = 2**19  # of a padded batch: rows times the longest
ALPHA = 1.6
WIDTH, HEADS, DEPTH = 512, 8, 2
HISTORY, CANDIDATES, ROWS_AT_ONCE = 4096, (1024, 16384), 64
NEW_EVENTS = (1, 64)  # that a cached history gets
CHECKED_CELLS = 2**23  # of scores of a head, which the check writes out in float64; four rows at most, one at least
TOLERANCE = {"cuda": 3e-2, "cpu": 1e-4}  # half precision under autocast; float32


def precision(device: str) -> AbstractContextManager:
    """Return bfloat16 autocast on a GPU, nothing on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


# --- is it right? ---


def require(what: str, error: float, device: str) -> None:
    """Stop where an answer is wrong: AssertionError."""
    measure.require(what, error, TOLERANCE[device])


def few_rows(batch: models.Batch) -> models.Batch:
    """Return the first rows of a batch, few enough for the check."""
    longest = batch.x.longest
    assert longest is not None
    return batch.first(min(4, max(1, CHECKED_CELLS // longest**2)))


def wrong_layer(layer: HSTULayer, batch: models.Batch) -> float:
    """Return the error of the layer, and of all its gradients, on a few rows against it written out in float64."""
    few, device = few_rows(batch), batch.x.device.type
    layer, exact = deepcopy(layer).eval(), deepcopy(layer).double().eval()
    with precision(device):
        out = layer(few.x, query_times=few.asked, key_times=few.happened).values
    x, asked, happened, real = few.padded()
    wide = x.detach().double().requires_grad_()
    expected = models.dense_layer(exact, wide, asked, happened, bucket)[real]
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    mine = torch.autograd.grad(out, [few.x.values, *layer.parameters()], weight.to(out.dtype))
    theirs = torch.autograd.grad(expected, [wide, *exact.parameters()], weight)
    # the residual is the same on both sides, and would hide what the layer adds to it
    return relative_error([out - few.x.values, mine[0] - weight, *mine[1:]],
                          [expected - wide[real], theirs[0][real] - weight, *theirs[1:]])


def wrong_transformers(stack: nn.ModuleList, batch: models.Batch) -> float:
    """Return how far apart the jagged and the padded Transformer are on a few rows."""
    few, stack = few_rows(batch), deepcopy(stack).eval()
    with torch.no_grad(), precision(batch.x.device.type):
        x, _, _, real = few.padded()
        out = models.through_padded_transformer(stack, x)[real]
        return relative_error([models.through_transformer(stack, few) - few.x.values], [out - few.x.values])


# --- one layer ---


def measure_layer(workload: Workload, device: str = "cuda") -> Rows:
    """Return time and memory of forward and backward of the layer: ours, keeping more or less, eager and compiled."""
    width = workload.heads * workload.width
    torch.manual_seed(0)
    layer = HSTULayer(width, workload.heads, models.options(workload.longest, workload.biased)).to(device)
    batch = models.make(workload.lengths(), width, device)
    require(workload.name, wrong_layer(layer, batch), device)
    x, asked, happened, _ = batch.padded()
    again = HSTULayer(width, workload.heads, replace(layer.options, recompute=True)).to(device)
    again.load_state_dict(layer.state_dict())
    require(f"{workload.name}, recompute", wrong_layer(again, batch), device)

    def ours(layer: HSTULayer) -> Peer:
        def run() -> Tensor:
            with precision(device):
                return layer(batch.x, query_times=batch.asked, key_times=batch.happened).values

        return Peer(run, [batch.x.values, *layer.parameters()])

    def dense(compute: Callable[..., Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with precision(device):
                return compute(layer, x, asked, happened)

        return run

    parameters = list(layer.parameters())
    peers = {"serrate": lambda: ours(layer), "serrate, recompute": lambda: ours(again),
             "eager": lambda: Peer(dense(models.dense_layer), [x, *parameters]),
             "compiled": lambda: Peer(dense(torch.compile(models.dense_layer)), [x, *parameters])}
    rows = rows_of("hstu layer", workload.name, {"batch": {"events": batch.x.num_events}})
    for name, make in peers.items():
        rows += taken("hstu layer", workload.name, name, lambda make=make: everything(make(), False, 1.0))
    torch.compiler.reset()
    return rows


def taken(subject: str, workload: str, name: str, take: Callable[[], dict[str, float]]) -> Rows:
    """Return what is measured as rows, told; nothing of a peer that this device or torch cannot run."""
    return rows_of(subject, workload, {name: measure.taken(name, take, name.startswith(("serrate", "hstu")))})


# --- a training step ---


def step_figures(step: Callable[[], None], device: str) -> dict[str, float]:
    """Return the time of a training step and, on a GPU, what it needs beyond parameters and state of the optimiser."""
    step()
    if device != "cuda":
        return {"step_ms": milliseconds(step, device)}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # gradients are there already, and given back as the step begins
    step()
    return {"step_ms": milliseconds(step, device), "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20}


def measure_training(longest: int, device: str = "cuda", cells: int = CELLS, width: int = WIDTH) -> Rows:
    """Return times of steps over the same users: HSTU without and with bias, on whole and on thinned histories, and
    Transformers, jagged and padded, on whole ones.
    """
    lengths = models.histories(cells // longest, longest)
    whole = models.make(lengths, width, device)
    short = models.make(models.thinned(lengths, longest, ALPHA), width, device)
    name = f"longest {longest}, {len(lengths)} rows"
    alpha = f", alpha {ALPHA}"
    found = rows_of("hstu training", name, {f"batch{each}": {"events": batch.x.num_events}
                                            for each, batch in (("", whole), (alpha, short))})
    tell(f"{name}: {whole.x.num_events:,} events, {short.x.num_events:,} at alpha {ALPHA}")
    for called, biased in (("hstu", False), ("hstu biased", True)):
        torch.manual_seed(0)
        stack = models.hstu(DEPTH, width, HEADS, longest, biased).to(device)
        require(f"{called}, {name}", wrong_layer(stack[0], whole), device)
        for suffix, batch in (("", whole), (alpha, short)):
            found += step_rows(name, called + suffix, stack, batch.x.values,
                               lambda stack=stack, batch=batch: models.through_hstu(stack, batch))
    torch.manual_seed(0)
    stack = models.transformer(DEPTH, width, HEADS, "varlen" if device == "cuda" else "cpu").to(device)
    require(f"transformers, {name}", wrong_transformers(stack, whole), device)
    found += step_rows(name, "transformer varlen", stack, whole.x.values,
                       lambda: models.through_transformer(stack, whole))
    x = whole.padded()[0]
    return found + step_rows(name, "transformer padded", stack, x,
                             lambda: models.through_padded_transformer(stack, x))


def step_rows(workload: str, name: str, stack: nn.Module, x: Tensor, forward: Callable[[], Tensor]) -> Rows:
    """Return the figures of one step of a stack, as rows."""
    device = x.device.type

    def under_autocast() -> Tensor:
        with precision(device):
            return forward()

    rows = taken("hstu training", workload, name,
                 lambda: step_figures(models.training_step(stack, x, under_autocast), device))
    stack.zero_grad()
    x.grad = None
    if device == "cuda":
        torch.cuda.empty_cache()
    return rows


# --- candidates after one history ---


def measure_candidates(candidates: int, device: str = "cuda", history: int = HISTORY, width: int = WIDTH) -> Rows:
    """Return candidates a second of each way in `scorers`, which are compared first, on a few of all candidates."""
    torch.manual_seed(0)
    stack = models.hstu(DEPTH, width, HEADS, history, biased=True).to(device).eval()
    # a history of so many events, and behind them what may come next, all asked for at one time
    events = models.make(torch.tensor([history + candidates]), width, device)
    now = events.asked[history - 1].expand(candidates)
    events = replace(events, asked=torch.cat([events.asked[:history], now]),
                     happened=torch.cat([events.happened[:history], now]))
    name = f"history {history}, {candidates} candidates"
    with torch.no_grad(), precision(device):
        ways = scorers(stack, events, history)
        every = torch.arange(candidates, device=device)
        few = every[:: max(1, candidates // 3)]
        own = events.x.values[history:][few]  # the residual, which would hide what the layers add to it
        expected = ways["one by one"](few) - own
        for way in ("together", "microbatches", "cached"):
            require(f"{way}, {name}", relative_error([ways[way](every)[few] - own], [expected]), device)
        found = []
        for way, score in ways.items():
            found += taken("hstu candidates", name, f"hstu {way}",
                           lambda score=score: throughput(score, candidates, device))
    return found


def scorers(stack: nn.ModuleList, events: models.Batch, history: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return ways to compute candidates `(K,)` (positions behind the history) in its light, `(K, E)` each.

    One by one: each behind a history of its own, all of which is computed again. Together: behind one history, the
    candidates its targets, which see it and themselves. Microbatches: behind the keys of one history, which are made
    first. Cached: the same, behind keys that are there already, as for a user who asks once more.
    """
    x = events.x.values.detach()

    def rows_of(places: Tensor) -> models.Batch:
        of = places.shape[0], places.shape[1]
        offsets = torch.arange(of[0] + 1, device=x.device) * of[1]
        flat = places.flatten()
        return models.Batch(events.x.trusted(x[flat], offsets, of[1]), events.asked[flat], events.happened[flat])

    past = torch.arange(history, device=x.device)

    def one_by_one(candidates: Tensor) -> Tensor:
        parts = []
        for some in candidates.split(ROWS_AT_ONCE):
            batch = rows_of(torch.cat([past.expand(len(some), -1), history + some[:, None]], 1))
            parts.append(models.through_hstu(stack, batch)[history :: history + 1])
        return torch.cat(parts)

    def together(candidates: Tensor) -> Tensor:
        batch = rows_of(torch.cat([past, history + candidates])[None])
        return models.through_hstu(stack, batch, Mask(causal=True, targets=len(candidates)))[history:]

    def cache() -> EventBatch:
        batch = rows_of(past[None])
        return encode_events(stack, batch.x, query_times=batch.asked, key_times=batch.happened)[1]

    def behind(cache: EventBatch, candidates: Tensor) -> Tensor:
        batch = rows_of(history + candidates[None])
        return encode_candidates(stack, cache, batch.x, asked=batch.asked[:1]).values

    known = cache()
    return {"one by one": one_by_one, "together": together, "microbatches": lambda some: behind(cache(), some),
            "cached": lambda some: behind(known, some)}


def throughput(score: Callable[[Tensor], Tensor], candidates: int, device: str) -> dict[str, float]:
    """Return how many candidates a second are scored, of the median of three calls."""
    every = torch.arange(candidates, device=device)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        score(every).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return {"candidates_per_second": candidates / statistics.median(seconds)}


def measure_growth(new: int, device: str = "cuda", history: int = HISTORY, width: int = WIDTH) -> Rows:
    """Return how long the newest events of a history take: behind the keys of the others, or with all computed anew."""
    torch.manual_seed(0)
    stack = models.hstu(DEPTH, width, HEADS, history, biased=True).to(device).eval()
    whole = models.make(torch.tensor([history]), width, device)

    def part(events: slice) -> models.Batch:
        x = whole.x.values[events]
        rows = whole.x.trusted(x, torch.tensor([0, len(x)], device=device), len(x))
        return models.Batch(rows, whole.asked[events], whole.happened[events])

    def encoded(batch: models.Batch, past: EventBatch | None = None) -> tuple[Tensor, EventBatch]:
        hidden, cache = encode_events(stack, batch.x, past, query_times=batch.asked, key_times=batch.happened)
        return hidden.values, cache

    name = f"history {history}, the newest {new}"
    with torch.no_grad(), precision(device):
        late, past = part(slice(-new, None)), encoded(part(slice(-new)))[1]
        residual = late.x.values
        expected = encoded(whole)[0][-new:] - residual
        require(f"extended, {name}", relative_error([encoded(late, past)[0] - residual], [expected]), device)
        ways = {"hstu anew": lambda: encoded(whole), "hstu extended": lambda: encoded(late, past)}
        return [each for way, run in ways.items() for each in taken(
            "hstu growth", name, way, lambda run=run: {"growth_ms": milliseconds(run, device)})]


# --- from the command line ---

PARTS: dict[str, list[Callable[[], Rows]]] = {
    "layer": [lambda workload=workload: measure_layer(workload) for workload in LAYERS],
    "training": [lambda longest=longest: measure_training(longest) for longest in LONGEST],
    "candidates": [lambda count=count: measure_candidates(count) for count in CANDIDATES],
    "growth": [lambda new=new: measure_growth(new) for new in NEW_EVENTS],
}


def main(names: list[str]) -> None:
    """Measure the parts of these names, or all, and write their rows as they come."""
    measure.main("hstu", PARTS, names)


if __name__ == "__main__":
    main(sys.argv[1:])
