"""Jagged attention beside the peers that plain torch has: `python -m serrate.ops.attention.bench [workload ...]`.

Every workload is checked first, against the float64 oracle; without a right answer no speed is told. All peers run in
the same process. Rows of figures go to `attention-<device>.json` under `$OUT`, or `benchmarks` without it. Dense peers
get their inputs padded and transposed beforehand, FlexAttention its mask: neither is in its time.

`python -m serrate.ops.attention.bench --table benchmarks/attention-h200.json` fills the table of README.md from a file.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from .api import attention
from .cases import WORKLOADS, Workload
from .mask import Mask

ROOFLINE_GFLOP = 2 * 8192**3 / 1e9
LARGEST_SCORES = 100e9  # bytes of a dense score matrix, above which the dense peer is left out

Peer = tuple[Callable[[], Tensor], list[Tensor]]


@dataclass(frozen=True)
class Inputs:
    """One workload on the device: q, k, v `(T, H, D)` bfloat16, offsets `(B + 1,)` int64, a gradient of the output."""

    workload: Workload
    qkv: tuple[Tensor, Tensor, Tensor]
    grad: Tensor
    offsets: Tensor

    def leaves(self, change: Callable[[Tensor], Tensor] = torch.clone) -> list[Tensor]:
        """Return q, k and v after `change`, asking for gradients."""
        return [change(x.detach()).detach().requires_grad_() for x in self.qkv]


def make(workload: Workload) -> Inputs:
    """Return the inputs of a workload, the same each time."""
    lengths = workload.lengths()
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (int(lengths.sum()), workload.heads, workload.width)
    q, k, v, grad = (torch.randn(shape, device="cuda", generator=generator).bfloat16() for _ in range(4))
    return Inputs(workload, (q, k, v), grad, offsets)


# --- peers ---


def ours(inputs: Inputs) -> Peer:
    """Return our kernels, the making of their plan in each call."""
    q, k, v = inputs.leaves()
    mask, longest = Mask(inputs.workload.causal), inputs.workload.longest
    return lambda: attention(q, k, v, inputs.offsets, mask=mask, longest=longest, implementation="triton"), [q, k, v]


def varlen(inputs: Inputs) -> Peer:
    """Return torch's variable-length FlashAttention-2, its int32 offsets made beforehand."""
    q, k, v = inputs.leaves()
    offsets, longest = inputs.offsets.int(), inputs.workload.longest
    window = (-1, 0) if inputs.workload.causal else (-1, -1)

    def run() -> Tensor:
        out = varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=window)
        assert isinstance(out, Tensor)
        return out

    return run, [q, k, v]


def padded(inputs: Inputs) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v as `(B, H, N, D)` leaves, and where `(B, N)` there are events."""
    n, lengths = inputs.workload.longest, inputs.offsets.diff()
    there = torch.arange(n, device="cuda") < lengths[:, None]

    def pad(x: Tensor) -> Tensor:
        full = x.new_zeros(*there.shape, *x.shape[1:])
        full[there] = x
        return full.transpose(1, 2).contiguous()

    return inputs.leaves(pad), there


def dense(inputs: Inputs) -> Peer:
    """Return eager attention over padded rows."""
    (q, k, v), there = padded(inputs)
    n = inputs.workload.longest
    bias = torch.zeros(there.shape, device="cuda", dtype=q.dtype).masked_fill_(~there, float("-inf"))[:, None, None]
    later = torch.ones(n, n, dtype=torch.bool, device="cuda").triu(1) if inputs.workload.causal else None

    def run() -> Tensor:
        scores = q @ k.transpose(-1, -2) * inputs.workload.width**-0.5 + bias
        return (scores if later is None else scores.masked_fill(later, float("-inf"))).softmax(-1) @ v

    return run, [q, k, v]


def scaled_dot_product(inputs: Inputs, backend: SDPBackend) -> Peer:
    """Return torch's fused attention over padded rows; padding is computed too."""
    (q, k, v), _ = padded(inputs)

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=inputs.workload.causal)

    return run, [q, k, v]


def nested(inputs: Inputs) -> Peer:
    """Return torch's nested tensors."""
    leaves, lengths = inputs.leaves(), inputs.offsets.diff()
    low, high = int(lengths.min()), int(lengths.max())

    def run() -> Tensor:
        q, k, v = (torch.nested.nested_tensor_from_jagged(
            x, inputs.offsets, min_seqlen=low, max_seqlen=high).transpose(1, 2) for x in leaves)
        return F.scaled_dot_product_attention(q, k, v, is_causal=inputs.workload.causal).transpose(1, 2).values()

    return run, leaves


def flex(inputs: Inputs) -> Peer:
    """Return compiled FlexAttention with a document mask, over all rows end to end."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    causal, events = inputs.workload.causal, inputs.grad.shape[0]
    whole = (events + 127) // 128 * 128
    rows = torch.repeat_interleave(inputs.offsets.diff(), output_size=events)
    rows = torch.cat([rows, rows.new_full((whole - events,), inputs.offsets.shape[0])])

    def seen(_batch, _head, i, j):
        same = rows[i] == rows[j]
        return same & (i >= j) if causal else same

    mask = torch.compile(create_block_mask)(seen, None, None, whole, whole, device="cuda")
    leaves = inputs.leaves(lambda x: F.pad(x, (0, 0, 0, 0, 0, whole - events)).transpose(0, 1)[None].contiguous())
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return lambda: compiled(*leaves, block_mask=mask), leaves


PEERS: dict[str, Callable[[Inputs], Peer]] = {
    "triton": ours,
    "varlen": varlen,
    "dense": dense,
    "padded flash": lambda inputs: scaled_dot_product(inputs, SDPBackend.FLASH_ATTENTION),
    "padded cudnn": lambda inputs: scaled_dot_product(inputs, SDPBackend.CUDNN_ATTENTION),
    "nested": nested,
    "flex": flex,
}


# --- check, then measure ---


def wrong(inputs: Inputs) -> float:
    """Return the largest relative error of our output and gradients on the first rows, against the float64 oracle."""
    run, leaves = ours(inputs)
    out = run()
    results = (out, *torch.autograd.grad(out, leaves, inputs.grad))
    rows = max(1, int((inputs.offsets <= 4096).sum()) - 1)
    offsets = inputs.offsets[: rows + 1]
    end = int(offsets[-1])
    exact = [x[:end].double().requires_grad_() for x in inputs.qkv]
    q, k, v = exact
    oracle = attention(q, k, v, offsets, mask=Mask(inputs.workload.causal), implementation="reference")
    expected = (oracle, *torch.autograd.grad(oracle, exact, inputs.grad[:end].double()))
    with torch.no_grad():
        return max(float((x[:end].double() - y).norm() / y.norm()) for x, y in zip(results, expected, strict=True))


def milliseconds(run: Callable[[], Any]) -> float:
    """Return the median time of a call, with a cold cache."""
    from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

    return do_bench(run, warmup=20, rep=80, return_mode="median")


def ceilings() -> tuple[float, float]:
    """Return the bytes a millisecond of a copy, and the GFLOP a millisecond of a bfloat16 product, of this device."""
    source = torch.randn(2**29, device="cuda").bfloat16()
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / milliseconds(lambda: target.copy_(source))
    left, right = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return copied, ROOFLINE_GFLOP / milliseconds(lambda: left @ right)


def measure(peer: Peer, graph: bool = False) -> dict[str, float]:
    """Return forward, and forward and backward milliseconds, and the extra memory of both in MiB."""
    run, leaves = peer
    grad = torch.randn_like(run())

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        run().backward(grad)

    both()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() - sum(leaf.nbytes for leaf in leaves)  # their gradients are there already
    torch.cuda.reset_peak_memory_stats()
    both()
    figures = {"peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20}
    with torch.no_grad():
        figures["forward_ms"] = milliseconds(run)
    figures["forward_backward_ms"] = milliseconds(both)
    if graph:
        figures |= replays(run, leaves, grad)
    return figures


def replays(run: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> dict[str, float]:
    """Return the times of replayed CUDA graphs, which leave out what the host takes."""
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graphs[0]):
        run()
    with torch.cuda.graph(graphs[1]):
        torch.autograd.grad(run(), leaves, grad)
    return {"graph_forward_ms": milliseconds(graphs[0].replay),
            "graph_forward_backward_ms": milliseconds(graphs[1].replay)}


def limit(inputs: Inputs, copied: float, product: float) -> dict[str, float]:
    """Return the least time a forward pass can take: q, k, v and out moved once, or the products that are needed."""
    lengths = inputs.offsets.diff().double()
    workload = inputs.workload
    pairs = float((lengths * lengths).sum()) * (0.5 if workload.causal else 1.0)
    gflop = 4 * pairs * workload.heads * workload.width / 1e9
    return {"limit_ms": max(4 * inputs.grad.nbytes / copied, gflop / product)}


# --- rows of figures ---


def row(workload: str, implementation: str, metric: str, value: float) -> dict[str, Any]:
    """Return one figure with what is behind it: command, commit, device, versions."""
    commit = os.environ.get("SERRATE_COMMIT") or subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "triton": importlib.metadata.version("triton")}
    return {"subject": "attention", "workload": workload, "implementation": implementation, "metric": metric,
            "value": round(value, 5), "unit": "MiB" if metric.endswith("mib") else "ms", "seed": 0,
            "command": " ".join(["python -m serrate.ops.attention.bench", *sys.argv[1:]]), "commit": commit,
            "device": torch.cuda.get_device_name(), "versions": versions}


def tell(text: str) -> None:
    """Write a line of progress."""
    sys.stderr.write(text + "\n")


def bench(workload: Workload, copied: float, product: float) -> list[dict[str, Any]]:
    """Check and measure one workload; raises AssertionError where our answer is wrong."""
    inputs = make(workload)
    error = wrong(inputs)
    assert error < 0.01, f"{workload.name}: relative error {error:.1e} against the float64 oracle, no speed is told"
    limits = limit(inputs, copied, product)
    rows = [row(workload.name, "limit", metric, value) for metric, value in limits.items()]
    tell(f"{workload.name}: {inputs.grad.shape[0]} events, error {error:.1e}, limit {limits['limit_ms']:.3f} ms")
    for name, prepare in PEERS.items():
        if name == "dense" and 8 * workload.rows * workload.heads * workload.longest**2 > LARGEST_SCORES:
            continue
        torch.cuda.empty_cache()
        torch.compiler.reset()
        try:
            figures = measure(prepare(inputs), graph=name == "triton")
        except (RuntimeError, TypeError, ValueError) as failure:  # a peer that this torch or this shape does not have
            tell(f"  {name:13} failed: {str(failure).splitlines()[0][:120]}")
            continue
        rows += [row(workload.name, name, metric, value) for metric, value in figures.items()]
        tell(f"  {name:13} " + "  ".join(f"{metric} {value:.4g}" for metric, value in figures.items()))
    return rows


def fill_table(ledger: Path) -> None:
    """Fill the table of README.md from the rows of a file: forward / forward and backward, milliseconds."""
    found = json.loads(ledger.read_text())
    figures = {(entry["workload"], entry["implementation"], entry["metric"]): entry["value"] for entry in found}
    names = list(dict.fromkeys(entry["implementation"] for entry in found if entry["implementation"] != "limit"))
    lines = [["workload", "limit fwd", *names, "peak MiB: triton / flex"]]
    lines.append(["---"] * len(lines[0]))
    for workload in dict.fromkeys(entry["workload"] for entry in found):
        def cell(name: str, metrics: tuple[str, ...], workload: str = workload) -> str:
            return " / ".join(f"{figures.get((workload, name, metric), float('nan')):.3g}" for metric in metrics)

        times = ("forward_ms", "forward_backward_ms")
        memory = " / ".join(f"{figures[workload, name, 'peak_mib']:.0f}" for name in ("triton", "flex"))
        lines.append([workload, cell("limit", ("limit_ms",)), *(cell(name, times) for name in names), memory])
    origin = found[0]
    versions = ", ".join(f"{name} {value}" for name, value in origin["versions"].items())
    block = "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("nan / nan", "–")
    block += f"\n\n`{origin['command']}`: {origin['device']}; commit {origin['commit']}; {versions}\n"
    readme = Path(__file__).with_name("README.md")
    start, end = "<!-- GPU figures -->\n", "<!-- end of GPU figures -->"
    before, _, rest = readme.read_text().partition(start)
    readme.write_text(before + start + block + end + rest.partition(end)[2])


def main(names: list[str]) -> None:
    """Run the workloads of these names, or all, and write the rows."""
    copied, product = ceilings()
    tell(f"copy {copied / 1e9:.2f} TB/s, product {product:.0f} TFLOP/s")
    rows = [entry for workload in WORKLOADS if not names or workload.name in names
            for entry in bench(workload, copied, product)]
    device = torch.cuda.get_device_name().split()[-1].lower()
    path = Path(os.environ.get("OUT", "benchmarks")) / f"attention-{device}.json"
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in rows) + "\n]\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        fill_table(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
