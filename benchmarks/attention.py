"""Jagged attention on the CPU: rows grouped by length (ours), one call a row (split), padded to the longest.

    python benchmarks/attention.py

One thread, CPU time of the process (other programs on the machine cost little), the least of several runs that take
turns. Figures are written, here and into the room's README, only when outputs and gradients of all three agree.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

import ledger
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serrate.jagged import JaggedTensor, offsets_from_lengths, to_padded
from serrate.ops.attention import Mask, attention, peers

LEDGER = Path(__file__).parent / "attention-cpu.json"
README = ledger.ROOT / "src/serrate/ops/attention/README.md"
MEAN_LENGTHS, TOKENS, HEADS, WIDTH, RUNS = (8, 26, 94, 200), 16384, 2, 32, 7


def grouped(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """`(T, H, D)`: the implementation `cpu`."""
    return attention(q, k, v, offsets, mask=Mask(causal=True), implementation="cpu")


def split(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """`(T, H, D)`: one call of torch's attention a row."""
    return peers.split(q, k, v, offsets, causal=True)


def padded(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """`(T, H, D)`: torch's attention on `(B, N)` cells; padding is on the right, so the causal mask hides it."""
    cells = [to_padded(JaggedTensor.trusted(x, offsets), 0.0)[0].transpose(1, 2) for x in (q, k, v)]
    out = scaled_dot_product_attention(*cells, is_causal=True).transpose(1, 2)
    return out[torch.arange(out.shape[1]) < offsets.diff()[:, None]]


def lengths_of(mean: int) -> Tensor:
    """Log-normal lengths (spread 1 of the logarithm), at least 1, of `TOKENS` events in all."""
    generator = torch.Generator().manual_seed(mean)
    drawn = torch.randn(TOKENS, generator=generator).sub(0.5).exp().mul(mean).round().long().clamp(min=1)
    ends = drawn.cumsum(0)
    kept = drawn[: int((ends < TOKENS).sum())]
    return torch.cat([kept, torch.tensor([TOKENS]) - kept.sum()])


def run(compute: Callable[..., Tensor], tensors: list[Tensor], offsets: Tensor) -> tuple[float, list[Tensor]]:
    """Return milliseconds of CPU time of forward and backward, and what they computed."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    began = time.process_time()
    out = compute(*leaves, offsets)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    return 1000 * (time.process_time() - began), [out.detach(), *grads]


def main() -> None:
    """Measure every workload, check, then write."""
    torch.set_num_threads(1)
    rows, lines = [], []
    for mean in MEAN_LENGTHS:
        lengths = lengths_of(mean)
        offsets = offsets_from_lengths(lengths)
        generator = torch.Generator().manual_seed(0)
        tensors = list(torch.randn(3, TOKENS, HEADS, WIDTH, generator=generator).unbind(0))
        least: dict[str, float] = {}
        results: dict[str, list[Tensor]] = {}
        for turn in range(RUNS):
            for compute in (grouped, split, padded):
                name = compute.__name__
                if name == "padded" and turn > 2:  # slow, and its time is beyond doubt
                    continue
                spent, results[name] = run(compute, tensors, offsets)
                least[name] = min(spent, least.get(name, spent)) if turn else spent
        for name in ("split", "padded"):
            torch.testing.assert_close(results[name], results["grouped"], rtol=1e-4, atol=1e-4)
        workload = (f"{len(lengths)} rows, mean length {mean}, longest {int(lengths.max())}, {TOKENS} events, "
                    f"{HEADS} heads of {WIDTH}, float32, causal, one thread")
        rows += [ledger.row("attention cpu", workload, name, "forward_backward_ms", round(value, 1), "ms of CPU time")
                 for name, value in least.items()]
        lines.append(f"| {mean} | {len(lengths):,} | {int(lengths.max())} | {least['grouped']:.0f} | "
                     f"{least['split']:.0f} | {least['padded']:.0f} |")
        print(lines[-1], flush=True)
    ledger.write(LEDGER, rows)
    head = ["| mean length | rows | longest | grouped (`cpu`) | split | padded |", "|---|---|---|---|---|---|"]
    origin = f"\n\n`{rows[0]['command']}`: {rows[0]['device']}, one thread; commit {rows[0]['commit']}; " + ", ".join(
        f"{name} {value}" for name, value in rows[0]["versions"].items())
    block = "<!-- figures -->\n" + "\n".join([*head, *lines]) + origin + "\n<!-- end of figures -->"
    page = README.read_text(encoding="utf-8")
    README.write_text(re.sub("<!-- figures -->.*<!-- end of figures -->", lambda _: block, page, flags=re.DOTALL),
                      encoding="utf-8")


if __name__ == "__main__":
    main()
