"""Pooling and softmax of rows beside padded torch: `python -m serrate.ops.pool.bench [workload ...]`.

Workloads are in `cases.py`: some of them without a name, all with `--all`. Each is checked first, against the float64
oracle; without a right answer no speed is told. Peers begin with padded events, so that padding costs them nothing but
its size. The limit is every tensor moved once a pass, the time of a copy of as many bytes. Rows of figures go to
`pool-<device>.json` under `$OUT`, or `benchmarks` without it, as soon as a workload is measured.

`python -m serrate.ops.pool.bench --alone` measures all in half precision without peers, beside the limit.
`python -m serrate.ops.pool.bench --table benchmarks/pool-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...jagged import JaggedTensor, to_padded
from .. import figures, measure
from ..figures import OURS
from ..measure import TOLERANCE, Figures, Peer, Rows, asking, tell
from .cases import EVERY, HALF, WORKLOADS, Case, run

README = Path(__file__).with_name("README.md")


def ours(case: Case, tensors: Sequence[Tensor], offsets: Tensor, implementation: str = OURS) -> Peer:
    """Return an implementation of ours over events `(T, *)` and weights."""
    leaves = [asking(x) for x in tensors]
    return Peer(lambda: run(case, leaves, offsets, implementation), leaves)


def padded(case: Case, tensors: Sequence[Tensor], offsets: Tensor,
           compute: Callable[..., Tensor] | None = None) -> Peer:
    """Return torch's own operations on padded events `(B, N, *)`."""
    rows = [to_padded(JaggedTensor(x, offsets)) for x in tensors]
    leaves, lengths = [asking(x) for x, _ in rows], rows[0][1]
    mask = torch.arange(leaves[0].shape[1], device=lengths.device) >= lengths[:, None]
    compute = compute or plainly
    return Peer(lambda: compute(case.how, case.activation is not None, mask, lengths, *leaves), leaves)


def compiled(case: Case, tensors: Sequence[Tensor], offsets: Tensor) -> Peer:
    """Return the same through `torch.compile`, which makes of them what it can."""
    return padded(case, tensors, offsets, torch.compile(plainly, fullgraph=True, dynamic=False))


def nested(case: Case, tensors: Sequence[Tensor], offsets: Tensor) -> Peer:
    """Return torch's nested tensors of layout jagged, which have some of these operations."""
    leaves = [asking(x) for x in tensors]

    def compute() -> Tensor:
        x, *weights = (torch.nested.nested_tensor_from_jagged(leaf, offsets) for leaf in leaves)
        if weights:
            scale = torch.softmax(weights[0], 1) if case.activation else weights[0]
            return (x * scale.unsqueeze(-1)).sum(1)
        if case.how == "softmax":
            return torch.softmax(x, 1).values()
        found = getattr(x, case.how)(1)
        return found.values if case.how == "max" else found

    return Peer(compute, leaves)


PEERS: dict[str, Callable[[Case, Sequence[Tensor], Tensor], Peer]] = {
    "padded": padded, "compiled": compiled, "nested": nested}


def plainly(how: str, attends: bool, mask: Tensor, lengths: Tensor, x: Tensor,
            weights: Tensor | None = None) -> Tensor:
    """Return what torch makes of padded events `(B, N, *)`, 0 where `mask` `(B, N)`, and weights `(B, N)`."""
    if weights is not None:
        scale = weights.masked_fill(mask, -torch.inf).softmax(1) if attends else weights
        return torch.bmm(scale[:, None], x)[:, 0]
    if how in ("sum", "mean"):
        found = x.sum(1)
        return found if how == "sum" else found / lengths[:, None]
    x = x.masked_fill(mask[..., None], -torch.inf)
    if how == "max":
        return x.max(1).values
    return x.softmax(1) if how == "softmax" else x.logsumexp(1)


def wrong(case: Case, tensors: Sequence[Tensor], offsets: Tensor, implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradients of ours against the oracle."""
    found = []
    for dtype, name in ((case.dtype, implementation), (torch.float64, "reference")):
        computed, leaves = ours(case, [x.to(dtype) for x in tensors], offsets, name)
        out = computed()
        grad = torch.arange(out.numel(), device=out.device).view(out.shape).cos().to(case.dtype)  # all different
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))])
    return measure.relative_error(*found)


def limit(case: Case, tensors: Sequence[Tensor], copied: Callable[[float], float]) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass; `copied` gives that of bytes moved.

    The backward pass of a plain sum, mean or maximum writes what a gradient needs and reads no events.
    """
    given, pooled = sum(x.nbytes for x in tensors), len(case.lengths) * tensors[0][0].nbytes
    if case.how == "softmax":
        return {"limit_ms": copied(2 * given), "limit_forward_backward_ms": copied(5 * given)}
    read_again = 0 if case.weights is None and case.how != "logsumexp" else given
    both = 2 * (given + pooled) + read_again
    return {"limit_ms": copied(given + pooled), "limit_forward_backward_ms": copied(both)}


def compare(case: Case, copied: Callable[[float], float] = measure.copy_milliseconds, device: str = "cuda",
            implementation: str = OURS, alone: bool = False) -> Rows:
    """Check ours, then measure it and its peers, or `alone` its replays; return rows of figures.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    tensors, offsets = case.tensors(case.dtype, device), case.offsets(device)
    error = wrong(case, tensors, offsets, implementation)
    measure.require(f"{case.name}, {implementation}", error, TOLERANCE[case.dtype])
    tell(f"{case.name}: {case.events:,} events, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": case.events}, "limit": limit(case, tensors, copied)}
    ways = {implementation: partial(ours, implementation=implementation)} | PEERS
    found |= measure.beside({name: partial(make, case, tensors, offsets) for name, make in ways.items()},
                            implementation, alone)
    return measure.rows_of("pool", case.name, found, device)


# --- the command line ---


def main(names: list[str]) -> None:
    """Measure the workloads of these names, or some, and write their rows as they come."""
    if names[:1] == ["--table"]:
        figures.fill(README, figures.read(Path(names[1])))
        return
    parts = {case.name: [partial(compare, case)] for case in EVERY}
    measure.main("pool", parts, names, [case.name for case in WORKLOADS],
                 grid=[case.name for case in EVERY if case.dtype == HALF])


if __name__ == "__main__":
    main(sys.argv[1:])
