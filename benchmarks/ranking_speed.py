"""The ranking model of the recipe `ranking-production` on one GPU, beside padded PyTorch of the same weights.

    python benchmarks/ranking_speed.py [model] [fill] [length] [candidates] [parts]

`model`: requests a second and memory at half fill, in training (forward, backward, AdamW) and in inference: ours, and
the model as one writes it over padded rows, eager, compiled, and with fused attention (FlashAttention where a mask lets
it, else what torch chooses). `fill` and `length`: the same from 10 % to 100 % of 512 events, and at half fill from 128
to 1,024. `candidates`: 1,000 candidates of one request, beside the same with the history copied for each. `parts`:
which share of a training step's time each kind of kernel takes. All under bfloat16 autocast. Outputs are compared
first; rows go to `production-<device>.json`, under `$OUT` if set.
"""

import sys
from collections.abc import Callable
from functools import partial

import ranking_models
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from serrate.jagged import EventBatch, JaggedTensor, RankingBatch, offsets_from_lengths
from serrate.models import RankingConfig, RankingModel
from serrate.ops import measure
from serrate.ops.measure import Figures, Rows, milliseconds, relative_error, rows_of
from serrate.train import read_recipe

RECIPE = "ranking-production"
REQUESTS, SHOWN = 512, 100  # of a batch, and candidates of a request
TABLES = {"item": 100_001, "category": 201, "advertiser": 5001, "slot": 11, "tags": 501, "segment": 17, "country": 17,
          "action": 4}
TAGS = 4  # of an ad, at most
FILLS, LENGTHS = (0.1, 0.3, 0.5, 1.0), (128, 256, 512, 1024)
MANY = 1000  # candidates of one request
COMPARED = ("serrate", "serrate, compiled", "padded", "padded, fused attention, compiled")  # along the curves
TOLERANCE = 3e-2  # of outputs under bfloat16 autocast
KINDS = {  # of kernels, by what their names have; the first that fits
    "attention": ("_forward", "_backward", "_keys", "_queries", "_plan", "_few", "fmha", "flash", "attention"),
    "products": ("gemm", "cutlass", "nvjet", "cublas"),
    "embeddings": ("embedding", "index", "gather", "scatter", "sort", "radix", "Unique"),
    "norms": ("layer_norm", "LayerNorm", "GammaBeta"),
    "pooling": ("_reduce", "_combine", "_spread"),
    "fused by the compiler": ("triton_",),
    "optimiser": ("multi_tensor",),
}


def config_of(longest: int) -> RankingConfig:
    """Return the model of the recipe, with histories of so many events, in evaluation the same as in training."""
    plain = read_recipe(RECIPE, []).model.plain()
    for history in plain["histories"]:
        history["max_length"] = longest
        history["layers"]["dropout"] = 0.0
    return RankingConfig.parse(plain)


def make(config: RankingConfig, requests: int, shown: int, fill: float, device: str) -> RankingBatch:
    """Return a batch of random requests whose histories fill so much of what padding them takes, the same each time.

    Lengths are `N u^(1 / fill - 1)` of uniform u, whose mean is `fill N`: some are nearly N, at half fill all equally.
    """
    drawn = torch.Generator().manual_seed(0)

    def ids(table: str, count: int) -> Tensor:
        return torch.randint(1, TABLES[table], (count,), generator=drawn)

    longest = config.histories[0].max_length
    histories = {}
    for history in config.histories:
        lengths = (longest * torch.rand(requests, generator=drawn) ** (1 / fill - 1)).ceil().long()
        offsets = offsets_from_lengths(lengths)
        events = int(offsets[-1])
        ages = torch.randint(0, 10**7, (events,), generator=drawn)
        fields = {name: ids(name, events) for name in ("item", "category", "action")} | {"time": 10**9 - ages}
        histories[history.name] = EventBatch({name: JaggedTensor(values, offsets) for name, values in fields.items()})
    count = requests * shown
    tags = torch.randint(1, TAGS + 1, (count,), generator=drawn)
    context = {"segment": ids("segment", requests), "country": ids("country", requests),
               "age": torch.rand(requests, generator=drawn) * 60, "asked": torch.full((requests,), 10**9)}
    candidates = {name: ids(name, count) for name in ("item", "category", "advertiser", "slot")} | {
        "price": torch.rand(count, generator=drawn) * 100,
        "tags": JaggedTensor(ids("tags", int(tags.sum())), offsets_from_lengths(tags))}
    labels = {"click": (torch.rand(count, generator=drawn) < 0.05).float()}
    owner = torch.arange(requests).repeat_interleave(shown)
    return RankingBatch(owner, histories, context, candidates, labels).to(device)


# --- attention of the padded model ---


def written(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """Attention as its formula says, which makes all scores."""
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """FlashAttention among events, whose padding stands behind what a causal query sees; else what torch chooses."""
    if q.shape[2] == k.shape[2] and attn_mask.shape[2] == q.shape[2] and q.dtype != torch.float32:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)


# --- what is measured ---


Model = Callable[[RankingBatch], Callable[[], Tensor]]  # what computes the outputs of a batch, its preparation done


def autocast(device: str) -> torch.autocast:
    """Return bfloat16 autocast on a GPU, nothing on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def systems(model: RankingModel, device: str) -> dict[str, Callable[[], Model]]:
    """Return by name what makes the model: ours, and the padded ones of the same weights."""
    def over(module: nn.Module | Callable, of: Callable[[RankingBatch], object] = lambda batch: batch) -> Model:
        def prepared(batch: RankingBatch) -> Callable[[], Tensor]:
            given = of(batch)

            def run() -> Tensor:
                with autocast(device):
                    return module(given)

            return run

        return prepared

    padded, plain = ranking_models.PaddedBatch.of, partial(ranking_models.PaddedRanker, model)
    return {"serrate": lambda: over(model),
            "serrate, compiled": lambda: over(torch.compile(model, dynamic=True)),
            "padded": lambda: over(plain(written), padded),
            "padded, compiled": lambda: over(torch.compile(plain(written), dynamic=False), padded),
            "padded, fused attention": lambda: over(plain(fused), padded),
            "padded, fused attention, compiled": lambda: over(torch.compile(plain(fused), dynamic=False), padded)}


def step_of(model: RankingModel, run: Callable[[], Tensor], batch: RankingBatch) -> Callable[[], None]:
    """Return a training step: forward, backward, AdamW."""
    targets = model.targets(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=batch.device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(run(), targets).backward()
        optimizer.step()

    return step


def taken(model: RankingModel, run: Callable[[], Tensor], batch: RankingBatch, device: str) -> Figures:
    """Return requests a second and what activations take at most, in training and in inference."""
    step = step_of(model, run, batch)

    def infer() -> None:
        with torch.no_grad():
            run()

    found: Figures = {}
    for name, compute in (("training", step), ("inference", infer)):
        if device == "cuda":
            found[f"{name}_peak_mib"] = _peak(compute, model)
        each = milliseconds(compute, device)
        found |= {f"{name}_ms": each, f"{name}_qps": 1000 * batch.num_states / each}
    return found


def _peak(compute: Callable[[], None], model: RankingModel) -> float:
    """Return the memory at most beside weights, what the optimiser keeps and the batch; gradients are counted."""
    compute()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() - sum(x.grad.nbytes for x in model.parameters() if x.grad is not None)
    torch.cuda.reset_peak_memory_stats()
    compute()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def made(longest: int, device: str) -> tuple[RankingConfig, RankingModel]:
    """Return the configuration and the model, its weights the same each time."""
    config = config_of(longest)
    torch.manual_seed(0)
    return config, RankingModel(config, TABLES).to(device)


def compare(workload: str, fill: float, longest: int, only: tuple[str, ...] = (), device: str = "cuda",
            requests: int = REQUESTS, shown: int = SHOWN) -> Rows:
    """Check ours, then measure it and its peers; return rows of figures."""
    config, model = made(longest, device)
    few, batch = make(config, 8, 5, fill, device), make(config, requests, shown, fill, device)
    peers = systems(model, device)
    with torch.no_grad():
        expected = peers["padded"]()(few)()
    events = sum(history.num_events for history in batch.histories.values())
    measure.tell(f"{workload}: {requests} requests, {shown} candidates each, {events:,} events")
    found: dict[str, Figures] = {"batch": {"events": events}}
    for name, make_peer in peers.items():
        if only and name not in only:
            continue
        torch.compiler.reset()
        peer = make_peer()
        if not name.startswith("padded") or not name.endswith("compiled"):  # which would be compiled anew for a few
            with torch.no_grad():
                error = relative_error([peer(few)()], [expected])
            measure.require(f"{workload}, {name}", error, TOLERANCE if device == "cuda" else 1e-4)
        found[name] = measure.taken(name, lambda peer=peer: taken(model, peer(batch), batch, device),
                                    name.startswith("serrate"))
    return rows_of("ranking model", workload, found, device)


def compare_candidates(device: str = "cuda", shown: int = MANY) -> Rows:
    """Measure candidates of one request that share its histories, and with the histories copied for each."""
    config, model = made(512, device)
    model.eval()
    batch = make(config, 1, shown, 1.0, device)
    copied = _copied(batch)
    with torch.no_grad(), autocast(device):
        error = relative_error([model(batch)], [model(copied)])
    measure.require("candidates", error, TOLERANCE if device == "cuda" else 1e-4)
    measure.tell(f"{shown} candidates of one request: shared and copied differ by {error:.1e}")

    def run(given: RankingBatch) -> Figures:
        with torch.no_grad(), autocast(device):
            each = milliseconds(lambda: model(given), device)
            figures = {"inference_ms": each, "candidates_per_second": 1000 * shown / each}
            if device == "cuda":  # without what the host takes
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    model(given)
                figures["graph_inference_ms"] = milliseconds(graph.replay)
        return figures

    found = {"batch": {"events": sum(history.num_events for history in batch.histories.values())},
             "history shared": run(batch), "history copied": run(copied)}
    for name, figures in found.items():
        measure.tell(f"  {name:24} " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return rows_of("ranking candidates", f"{shown} candidates", found, device)


def _copied(batch: RankingBatch) -> RankingBatch:
    """Return the candidates of a batch of one state, each with a state of its own."""
    count = len(batch)

    def repeated(part: Tensor | JaggedTensor) -> Tensor | JaggedTensor:
        if isinstance(part, Tensor):
            return part.expand(count).contiguous()
        return JaggedTensor.from_lengths(part.values.repeat(count), part.lengths.expand(count))

    histories = {name: EventBatch({field: repeated(history[field]) for field in history})
                 for name, history in batch.histories.items()}
    owner = torch.arange(count, device=batch.device)
    return RankingBatch(owner, histories, {name: repeated(part) for name, part in batch.context.items()},
                        batch.candidates, batch.labels)


def compare_parts(device: str = "cuda") -> Rows:
    """Return how long each kind of kernels takes in a training step of ours and of the padded model."""
    config, model = made(512, device)
    batch = make(config, REQUESTS, SHOWN, 0.5, device)
    found = {}
    for name in ("serrate", "serrate, compiled", "padded", "padded, fused attention, compiled"):
        step = step_of(model, systems(model, device)[name]()(batch), batch)
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
        times = dict.fromkeys([*KINDS, "others"], 0.0)
        for event in profile.key_averages():
            kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "others")
            times[kind] += event.self_device_time_total / 1000
        found[name] = {f"{kind}_ms": value for kind, value in times.items()}
        measure.tell(f"  {name:24} " + "  ".join(f"{key} {value:.3g}" for key, value in found[name].items()))
    return rows_of("ranking parts", "half fill", found, device)


PARTS: dict[str, list[Callable[[], Rows]]] = {
    "model": [partial(compare, "512 events, fill 50 %", 0.5, 512)],
    "fill": [partial(compare, f"512 events, fill {100 * fill:.0f} %", fill, 512, only=COMPARED)
             for fill in FILLS if fill != 0.5],
    "length": [partial(compare, f"{longest} events, fill 50 %", 0.5, longest, only=COMPARED)
               for longest in LENGTHS if longest != 512],
    "candidates": [compare_candidates],
    "parts": [compare_parts],
}


if __name__ == "__main__":
    measure.main("production", PARTS, sys.argv[1:])
