"""What the benchmarks of all rooms share: is it right, how fast in how much memory, how fast could it be, which rows.

A benchmark checks ours against the float64 oracle, then measures it and its peers in one process; without a right
answer no speed is told. `main` runs parts by name and writes their rows as they come.
"""

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import figures

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
UNITS = {  # by a metric's last word
    "ms": "ms", "us": "µs", "mib": "MiB", "events": "events", "second": "candidates/s", "qps": "requests/s"}
_SIDE = 8192  # of the square matrices whose product is measured
_MOVED = 2**31  # bytes that the copy for the ceiling moves

Figures = dict[str, float]
Rows = list[dict[str, Any]]


class Peer(NamedTuple):
    """A computation to repeat, and the tensors that its gradients go to."""

    run: Callable[[], Tensor]
    leaves: list[Tensor]


def asking(x: Tensor) -> Tensor:
    """Return a leaf that asks for its gradient."""
    return x.detach().requires_grad_()


# --- is it right? ---


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative error of any tensor, NaN where there is one; a small one counts beside the largest.

    A gradient that is zero, as that of queries with one key, is compared with the others. Equal infinities, as the
    logarithm of a sum over nothing, differ by 0.
    """
    with torch.no_grad():
        sizes = torch.stack([x.double().where(x.isfinite(), 0.0).norm() for x in expected])
        sizes = sizes.maximum(0.05 * sizes.max())
        errors = torch.stack([(x.double() - y.double()).where(x != y, 0.0).norm()
                              for x, y in zip(found, expected, strict=True)])
        return float((errors / sizes).max())  # max hands NaN on


def require(what: str, error: float, allowed: float) -> None:
    """Stop where an answer is wrong: AssertionError. `what` begins the message."""
    if not error < allowed:  # written so that NaN fails
        raise AssertionError(f"{what}: relative error {error:.1e}, more than {allowed:.0e}: no speed is told")


# --- how fast could it be? ---


@lru_cache(maxsize=1)
def ceilings() -> tuple[float, float]:
    """Return the bytes a millisecond of a copy, and the GFLOP a millisecond of a bfloat16 product, of this device."""
    copied, product = _MOVED / copy_milliseconds(_MOVED), product_rate(torch.bfloat16)
    tell(f"copy {copied / 1e9:.2f} TB/s, product {product:.0f} TFLOP/s")
    return copied, product


@lru_cache(maxsize=64)
def copy_milliseconds(nbytes: float) -> float:
    """Return the time of a copy that moves so many bytes on this device, half of them read and half written."""
    source = torch.randn(max(1, round(nbytes / 4)), device="cuda").bfloat16()
    target = torch.empty_like(source)
    return milliseconds(lambda: target.copy_(source))


@lru_cache(maxsize=4)
def product_rate(dtype: torch.dtype) -> float:
    """Return the GFLOP a millisecond of a product of large matrices of a dtype on this device."""
    left, right = (torch.randn(_SIDE, _SIDE, device="cuda").to(dtype) for _ in range(2))
    return 2 * _SIDE**3 / 1e9 / milliseconds(lambda: left @ right)


def limits(given: int, result: int, gflop: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass, on this device.

    Of moving every tensor once a pass, as a copy of as many bytes does: forward the bytes `given` and the `result`,
    backward both again and the gradients of what was given. And of products in a dtype, `gflop` forward, twice that
    backward.
    """
    product = gflop / product_rate(dtype) if gflop else 0.0
    return {"limit_ms": max(copy_milliseconds(given + result), product),
            "limit_forward_backward_ms": max(copy_milliseconds(3 * given + 2 * result), 3 * product)}


# --- how fast, in how much memory? ---


def milliseconds(run: Callable[[], Any], device: str = "cuda", seconds: float = 1.0,
                 together: int = 80) -> float:
    """Return the median time of a call: on a GPU with a cold cache, of calls that take `together` ms, on a CPU of those
    that `seconds` allow.
    """
    if device == "cuda":
        from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

        return float(do_bench(run, warmup=20, rep=together, return_mode="median"))  # pyright: ignore[reportArgumentType]
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < 20):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def everything(peer: Peer, is_ours: bool, seconds: float) -> Figures:
    """Return times of the forward pass and of both passes, on a GPU also extra memory, and of ours replayed graphs."""
    both = _both(peer)
    device = peer.leaves[0].device.type
    found = {"peak_mib": _peak(peer, both)} if device == "cuda" else {}
    with torch.no_grad():
        found["forward_ms"] = milliseconds(peer.run, device, seconds / 2)
    found["forward_backward_ms"] = milliseconds(both, device, seconds / 2)
    return found | (replays(peer) if is_ours and device == "cuda" else {})


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


def replays(peer: Peer, together: int = 80) -> Figures:
    """Return the times of replayed CUDA graphs, which leave out what the host takes."""
    run, leaves = peer
    grad = torch.randn_like(run())
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graphs[0]):
        run()
    with torch.cuda.graph(graphs[1]):
        torch.autograd.grad(run(), leaves, grad)
    return {f"graph_{name}_ms": milliseconds(graph.replay, together=together)
            for name, graph in zip(("forward", "forward_backward"), graphs, strict=True)}


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


def failures() -> tuple[type[Exception], ...]:
    """Return what a computation raises that this torch, device or shape does not have; Triton has a root of its own."""
    known = (RuntimeError, TypeError, ValueError, AssertionError, LookupError, AttributeError, ImportError)
    if importlib.util.find_spec("triton") is None:
        return known
    from triton.errors import TritonError  # pyright: ignore[reportMissingImports]

    return *known, TritonError


def taken(name: str, take: Callable[[], Figures], is_ours: bool, say: Callable[[str], None] = tell) -> Figures:
    """Return what is measured, told under a name; of a peer that fails nothing. Ours raises what it raises."""
    try:
        found = take()
    except failures() as failure:
        if is_ours:
            raise
        say(f"  {name:24} failed: {(str(failure).splitlines() or [type(failure).__name__])[0][:160]}")
        return {}
    say(f"  {name:24} " + "  ".join(f"{key} {value:.4g}" for key, value in found.items()))
    return found


def beside(ways: Mapping[str, Callable[[], Peer]], own: str, alone: bool = False) -> dict[str, Figures]:
    """Return what is measured of ours, the `own` one of the ways, and of its peers; `alone` that of its replays.

    A peer that fails is told and left out. Ours raises what it raises.
    """
    if alone:
        return {own: taken(own, lambda: replays(ways[own](), 20), True)}
    torch.compiler.reset()
    found = {}
    for name, make in ways.items():
        found[name] = taken(name, partial(_everything_of, make, name == own), name == own)
        torch.cuda.empty_cache()  # peers with padding fill the device
    return found


def _everything_of(make: Callable[[], Peer], is_ours: bool) -> Figures:
    return everything(make(), is_ours, 2.0)


def rows_of(subject: str, workload: str, found: Mapping[str, Figures], device: str | None = None) -> Rows:
    """Return figures by implementation as rows, of a device of this kind or of the one that this process would use."""
    packages = tuple(name for name in ("torch", "triton") if importlib.util.find_spec(name))
    return [figures.row(subject, workload, name, metric, round(value, 5), UNITS[metric.rpartition("_")[2]],
                        packages=packages) | {"device": figures.device(device)}
            for name, values in found.items() for metric, value in values.items()]


# --- from the command line ---


def ledger(subject: str) -> Path:
    """Return the file of a subject's figures on this GPU, under `$OUT` with the rows that stand in `benchmarks`."""
    name = f"{subject}-{torch.cuda.get_device_name().split()[-1].lower()}.json"
    before, path = Path("benchmarks") / name, Path(os.environ.get("OUT", "benchmarks")) / name
    if not path.exists() and before.exists():
        figures.write(path, figures.read(before))
    return path


def measured(parts: Mapping[str, Sequence[Callable[[], Rows]]]) -> Iterator[Rows]:
    """Measure the workloads of these parts; yield the rows of each. One that fails is told, and the others go on.

    Raises RuntimeError at the end where any failed.
    """
    failed = []
    for name, workloads in parts.items():
        began = time.monotonic()
        for measure in workloads:
            try:
                yield measure()
            except failures() as failure:
                failed.append(name)
                tell(f"{name}: FAILED: {type(failure).__name__}: {failure}")
            torch.cuda.empty_cache()
        tell(f"{name}: {time.monotonic() - began:.0f} s")
    if failed:
        raise RuntimeError(f"these parts failed: {', '.join(dict.fromkeys(failed))}")


def main(subject: str, parts: Mapping[str, Sequence[Callable[[], Rows]]], names: Sequence[str],
         usual: Sequence[str] = (), readme: Path | None = None, without_gpu: str = "",
         grid: Sequence[str] = ()) -> None:
    """Measure the parts of these names and write their rows as they come, to the ledger of a subject.

    Without a name the `usual` parts are measured, which are all where none is named; all of them for `--all`. What to
    do `without_gpu` is told there. For `--table LEDGER` nothing is measured: the table of a room's `readme` is filled.
    For `--alone` the parts of these names or of the `grid` are measured without peers, and only replayed, which goes to
    a ledger of its own: for rooms whose parts take `alone`.
    """
    if readme is not None and names[:1] == ["--table"]:
        figures.fill(readme, figures.read(Path(names[1])))
        return
    alone = bool(grid) and "--alone" in names
    if alone:
        names, usual, subject = [name for name in names if name != "--alone"], grid, f"{subject}-alone"
        every: Mapping[str, Sequence[Callable[..., Rows]]] = parts
        parts = {name: [partial(each, alone=True) for each in every[name]] for name in every}
    unknown = set(names) - set(parts) - {"--all"}
    if unknown:
        sys.exit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA device" + without_gpu)
    chosen = list(parts) if "--all" in names else names or usual or list(parts)
    path = ledger(subject)
    try:
        for rows in measured({name: parts[name] for name in chosen}):
            figures.write(path, rows, key=("subject", "workload", "device"))  # figures of one run stand together
            tell(f"  of the limit {figures.to_limit(rows)}")
    except RuntimeError as error:
        sys.exit(str(error))
