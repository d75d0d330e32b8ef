"""Jagged attention beside the peers that plain torch has: `python -m serrate.ops.attention.bench [part ...]`.

Parts are `short`, `paper`, `mid`, `long`, `full` (self-attention), `crowd` (65,536 short rows), `target` (dense queries
over histories), `smallest` (host time of the smallest call), `curves` (over fill rates), and, for pointwise weights and
relative bias, `pointwise` (the five of self-attention), `lengths` (512 rows, longest 256 to 1,024) and `longer` (2,048
and 4,096); all of them without a name.
Every workload is checked first, against the float64 oracle; without a right answer no speed is told. All peers run in
the same process; one that cannot is told and left out. Rows of figures go to `attention-<device>.json` under `$OUT`,
or `benchmarks` without it, as soon as a workload is measured; those of other workloads that stood there stay.

`python -m serrate.ops.attention.bench --table benchmarks/attention-h200.json` fills the tables of README.md.
"""

import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .. import figures
from .api import attention
from .peers import (
    OF_DENSE_QUERIES,
    OF_EVENTS,
    OF_LONG_ROWS,
    OF_MANY_ROWS,
    OF_POINTWISE,
    ON_CURVES,
    PEERS,
    Inputs,
    Peer,
    forget,
    make,
    ours,
)
from .tables import fill
from .weights import Activation
from .workloads import (
    CROWD,
    CURVES,
    FILLS,
    LENGTHS,
    POINTWISE,
    SMALLEST,
    TARGETS,
    WORKLOADS,
    Workload,
    on_curve,
)

ROOFLINE_GFLOP = 2 * 8192**3 / 1e9
LARGEST_SCORES = {"dense": 100e9, "dense pointwise": 40e9, "compiled pointwise": 40e9}  # bytes; the last two: 100 ms
CHECKED = {"cuda": 4096, "cpu": 1024}  # events from either end of a batch that the oracle computes too
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
UNITS = {"ms": "ms", "us": "µs", "mib": "MiB", "events": "events"}

VARIANTS: dict[str, tuple[Activation, bool]] = {  # weights, and whether there is a bias
    "silu": ("silu", False), "silu biased": ("silu", True),
    "softmax": ("softmax", False), "softmax biased": ("softmax", True)}

Figures = dict[str, float]


def failures() -> tuple[type[Exception], ...]:
    """Return what a computation raises that this torch, device or shape does not have; Triton has a root of its own."""
    known = (RuntimeError, TypeError, ValueError, AssertionError, LookupError, AttributeError, ImportError)
    if importlib.util.find_spec("triton") is None:
        return known
    from triton.errors import TritonError  # pyright: ignore[reportMissingImports]

    return *known, TritonError


# --- is it right? ---


def wrong(inputs: Inputs, implementation: str = "triton") -> float:
    """Return the largest relative error of output and gradients on the first and last rows, against the oracle.

    The whole batch is computed, but only these rows get a gradient. Where no row is short enough for the oracle, a
    row of the most events that it takes stands for them.
    """
    workload, offsets, lengths = inputs.workload, inputs.offsets, inputs.offsets.diff()
    most = CHECKED[offsets.device.type]
    rows = (offsets[1:] <= most) | (offsets[:-1] >= offsets[-1] - most)
    if not bool(rows.any()):
        shorter = replace(workload, rows=1, longest=most, given=(most,))
        return wrong(make(shorter, offsets.device.type, inputs.grad.dtype), implementation)
    events = rows.repeat_interleave(lengths)
    asked = rows if workload.queries else events
    run, leaves = ours(inputs, implementation)
    out = run()
    chosen = asked.view(-1, *[1] * (out.dim() - 1))
    results = (out, *torch.autograd.grad(out, leaves, inputs.grad.where(chosen, 0)))

    def of_rows(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> list[Tensor]:
        return [out[asked], q if workload.shared else q[asked], k[events], v[events], *tables]

    q, k, v, *tables = exact = [x.detach().double().requires_grad_() for x in of_rows(out, *leaves)[1:]]
    queries = q.expand(int(rows.sum()), *q.shape) if workload.shared else q
    oracle = attention(queries, k, v, offsets_from_lengths(lengths[rows]), implementation="reference",
                       **inputs.options(tables, events))
    expected = (oracle, *torch.autograd.grad(oracle, exact, inputs.grad[asked].double()))
    with torch.no_grad():
        sizes = torch.stack([x.norm() for x in expected])
        # a gradient that is zero, as that of queries with one key, is compared with the others
        sizes = sizes.maximum(0.05 * sizes.max())
        errors = [(x.double() - y).norm() for x, y in zip(of_rows(*results), expected, strict=True)]
        return float((torch.stack(errors) / sizes).max())  # max hands NaN on


# --- how fast, in how much memory? ---


def milliseconds(run: Callable[[], Any], device: str = "cuda", seconds: float = 1.0) -> float:
    """Return the median time of a call: on a GPU with a cold cache, on a CPU of the calls that `seconds` allow."""
    if device == "cuda":
        from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

        return float(do_bench(run, warmup=20, rep=80, return_mode="median"))  # pyright: ignore[reportArgumentType]
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < 20):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def ceilings() -> tuple[float, float]:
    """Return the bytes a millisecond of a copy, and the GFLOP a millisecond of a bfloat16 product, of this device."""
    source = torch.randn(2**29, device="cuda").bfloat16()
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / milliseconds(lambda: target.copy_(source))
    left, right = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return copied, ROOFLINE_GFLOP / milliseconds(lambda: left @ right)


def limit(inputs: Inputs, copied: float, product: float) -> Figures:
    """Return the least times that a forward pass, and one with its backward pass, can take on this device.

    Every tensor moved once a pass (the backward reads q, k, v, out and its gradient and writes three), or the products
    that are needed: two in the forward, five in the backward pass.
    """
    workload, lengths = inputs.workload, inputs.offsets.diff().double()
    squares = float((lengths * lengths).sum()) * (0.5 if workload.causal else 1.0)
    pairs = workload.queries * float(lengths.sum()) if workload.queries else squares
    nbytes = sum(x.nbytes for x in inputs.qkv) + inputs.grad.nbytes
    gflop = 4 * pairs * workload.heads * workload.width / 1e9
    return {"limit_ms": max(nbytes / copied, gflop / product),
            "limit_forward_backward_ms": max(3 * nbytes / copied, 3.5 * gflop / product)}


def everything(peer: Peer, is_ours: bool, seconds: float) -> Figures:
    """Return times of the forward pass and of both passes, on a GPU also extra memory, and of ours replayed graphs."""
    both = _both(peer)
    device = peer.leaves[0].device.type
    found = {"peak_mib": _peak(peer, both)} if device == "cuda" else {}
    with torch.no_grad():
        found["forward_ms"] = milliseconds(peer.run, device, seconds / 2)
    found["forward_backward_ms"] = milliseconds(both, device, seconds / 2)
    return found | (_replays(peer) if is_ours and device == "cuda" else {})


def both_passes(peer: Peer, is_ours: bool, seconds: float) -> Figures:
    """Return the extra memory and the time of both passes together."""
    both = _both(peer)
    return {"peak_mib": _peak(peer, both), "forward_backward_ms": milliseconds(both)}


def host_time(peer: Peer, is_ours: bool, seconds: float) -> Figures:
    """Return how long the host takes for a call, which does not wait for the device."""
    run, leaves = peer
    grad = torch.randn_like(run())
    with torch.no_grad():
        found = {"host_forward_us": _host_microseconds(run)}
    return found | {"host_forward_backward_us": _host_microseconds(
        lambda: torch.autograd.grad(run(), leaves, grad))}


def _both(peer: Peer) -> Callable[[], None]:
    run, leaves = peer
    grad = torch.randn_like(run())

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        run().backward(grad)

    return both


def _peak(peer: Peer, both: Callable[[], None]) -> float:
    both()
    torch.cuda.synchronize()
    # gradients of the leaves are there already, but belong to what is counted
    before = torch.cuda.memory_allocated() - sum(leaf.nbytes for leaf in peer.leaves)
    torch.cuda.reset_peak_memory_stats()
    both()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _replays(peer: Peer) -> Figures:
    """Return the times of replayed CUDA graphs, which leave out what the host takes."""
    run, leaves = peer
    grad = torch.randn_like(run())
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graphs[0]):
        run()
    with torch.cuda.graph(graphs[1]):
        torch.autograd.grad(run(), leaves, grad)
    return {"graph_forward_ms": milliseconds(graphs[0].replay),
            "graph_forward_backward_ms": milliseconds(graphs[1].replay)}


def _host_microseconds(run: Callable[[], Any], calls: int = 100, rounds: int = 9) -> float:
    """Return the median over rounds of the time of a call; a round fills no queue, and rounds wait for the device."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        for _ in range(calls):
            run()
        times.append(1e6 * (time.perf_counter() - began) / calls)
    wait()
    return statistics.median(times)


# --- ours beside its peers ---


def tell(text: str) -> None:
    """Write a line of progress."""
    sys.stderr.write(text + "\n")


@dataclass(frozen=True)
class Comparison:
    """How a workload is measured: ours beside which peers, what of each, and where lines of progress go.

    variants: of `VARIANTS`: in which of them ours computes the workload, each with a name of its own; none: as the
    workload says. ceilings: as the function of this name returns them, None where they are unknown; seconds: the most
    that one implementation may take on a CPU (a GPU takes what it needs).
    """

    peers: Sequence[str] = OF_EVENTS
    take: Callable[[Peer, bool, float], Figures] = everything
    implementation: str = "triton"
    variants: Sequence[str] = ()
    ceilings: tuple[float, float] | None = None
    seconds: float = 20.0
    tell: Callable[[str], None] = tell

    def own(self, inputs: Inputs) -> dict[str, Inputs]:
        """Return what ours computes, by the name of its figures."""
        named = {f"{self.implementation} {name}": inputs.variant(*VARIANTS[name]) for name in self.variants}
        return named or {self.implementation: inputs}


def compare(inputs: Inputs, how: Comparison) -> list[dict[str, Any]]:
    """Check ours, then measure it and its peers; return rows of figures.

    Raises AssertionError where our answer is wrong, and whatever ours raises; a peer that fails is told and left out.
    """
    workload, device = inputs.workload, inputs.grad.device.type
    own, allowed = how.own(inputs), TOLERANCE[inputs.grad.dtype]
    errors = {name: wrong(mine, how.implementation) for name, mine in own.items()}
    for name, error in errors.items():
        if not error < allowed:  # written so that NaN fails
            raise AssertionError(f"{workload.name}: relative error {error:.1e} of {name} against the float64 oracle, "
                                 f"more than {allowed:.0e}: no speed is told")
    found: dict[str, Figures] = {"batch": {"events": inputs.qkv[1].shape[0]}}
    if how.ceilings is not None:
        found["limit"] = limit(inputs, *how.ceilings)
    how.tell(f"{workload.name}: {inputs.qkv[1].shape[0]:,} events, error {max(errors.values()):.1e}")
    prepare = {name: partial(ours, mine, how.implementation) for name, mine in own.items()}
    prepare |= {name: partial(PEERS[name], inputs) for name in how.peers if name not in own}
    for name, make_peer in prepare.items():
        reason = _left_out(name, inputs, found.get(next(iter(own)), {}), how.seconds)
        if reason is None:
            try:
                found[name] = how.take(make_peer(), name == how.implementation, how.seconds)
                how.tell(f"  {name:16} " + "  ".join(f"{key} {value:.4g}" for key, value in found[name].items()))
            except failures() as failure:
                if name in own:
                    raise
                reason = "failed: " + (str(failure).splitlines() or [type(failure).__name__])[0][:160]
        if reason is not None:
            how.tell(f"  {name:16} {reason}")
        if device == "cuda":
            torch.cuda.empty_cache()
    forget()
    return [row(workload.name, name, metric, value, device)
            for name, values in found.items() for metric, value in values.items()]


def _left_out(name: str, inputs: Inputs, of_ours: Figures, seconds: float) -> str | None:
    """Say why a peer is not tried: what it computes over padding would not fit, or take too long on a CPU."""
    workload, lengths = inputs.workload, inputs.offsets.diff()
    scores = 8 * workload.rows * workload.heads * workload.longest**2
    if scores > LARGEST_SCORES.get(name, math.inf):
        return f"left out: its scores would take {scores / 1e9:,.0f} GB"
    if name.startswith("padded") and inputs.grad.device.type == "cpu":
        more = workload.rows * workload.longest**2 / float((lengths.double() ** 2).sum())
        expected = more * of_ours["forward_backward_ms"] / 1000
        if expected > seconds:
            return f"left out: it would take about {expected:,.0f} s a call, over padding"
    return None


def row(workload: str, implementation: str, metric: str, value: float, device: str) -> dict[str, Any]:
    """Return one figure with what is behind it."""
    installed = tuple(name for name in ("torch", "triton") if importlib.util.find_spec(name))
    made = figures.row("attention", workload, implementation, metric, round(value, 5),
                       UNITS[metric.rpartition("_")[2]], packages=installed)
    return made | {"device": figures.device(device)}


def ledger(subject: str) -> Path:
    """Return the file of a subject's figures on this GPU, under `$OUT` with the rows that stand in `benchmarks`."""
    name = f"{subject}-{torch.cuda.get_device_name().split()[-1].lower()}.json"
    before, path = Path("benchmarks") / name, Path(os.environ.get("OUT", "benchmarks")) / name
    if not path.exists() and before.exists():
        figures.write(path, figures.read(before))
    return path


# --- from the command line ---


class Part(NamedTuple):
    """What is measured together under one name: workloads, beside which peers, and what of each."""

    workloads: Sequence[Workload]
    peers: Sequence[str] = OF_EVENTS
    take: Callable[[Peer, bool, float], Figures] = everything
    variants: Sequence[str] = ()


PARTS = {workload.name: Part([workload]) for workload in WORKLOADS} | {
    "crowd": Part([CROWD], OF_MANY_ROWS),
    "target": Part(TARGETS, OF_DENSE_QUERIES),
    "smallest": Part([SMALLEST], ("varlen",), host_time),
    "curves": Part([on_curve(longest, fill) for longest in CURVES for fill in FILLS], ON_CURVES, both_passes),
    "pointwise": Part(POINTWISE, OF_POINTWISE, variants=tuple(VARIANTS)),
    "lengths": Part([each for each in LENGTHS if each.longest <= 1024], OF_POINTWISE, variants=tuple(VARIANTS)),
    "longer": Part([each for each in LENGTHS if each.longest > 1024], OF_LONG_ROWS, variants=tuple(VARIANTS)),
}


def measured(names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Measure these parts; yield the rows of each workload. A part of which ours fails is told, and ends there.

    Raises RuntimeError at the end where any part failed.
    """
    limits = ceilings()
    tell(f"copy {limits[0] / 1e9:.2f} TB/s, product {limits[1]:.0f} TFLOP/s")
    failed = []
    for name in names:
        part, began = PARTS[name], time.monotonic()
        try:
            how = Comparison(part.peers, part.take, variants=part.variants, ceilings=limits)
            for workload in part.workloads:
                yield compare(make(workload), how)
        except failures() as failure:
            failed.append(name)
            tell(f"{name}: FAILED: {type(failure).__name__}: {failure}")
            forget()
            torch.cuda.empty_cache()
        tell(f"{name}: {time.monotonic() - began:.0f} s")
    if failed:
        raise RuntimeError(f"these parts failed: {', '.join(failed)}")


def main(names: list[str]) -> None:
    """Measure the parts of these names, or all, and write their rows as they come."""
    unknown = set(names) - set(PARTS)
    if unknown:
        sys.exit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA device; `serrate bench attention` measures on a CPU")
    path = ledger("attention")
    try:
        for rows in measured(names or list(PARTS)):
            figures.write(path, rows, key=("subject", "workload", "device"))  # figures of one run stand together
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        fill(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
