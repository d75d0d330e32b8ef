"""Broadcast to events beside padded torch: `python -m serrate.ops.broadcast.bench [workload ...]`.

Workloads are in `cases.py`: some of them without a name, all with `--all`. Each is checked first, against the float64
oracle; without a right answer no speed is told. Peers begin with padded events, so that padding costs them nothing but
its size. The limit is every tensor moved once a pass, the time of a copy of as many bytes. Rows of figures go to
`broadcast-<device>.json` under `$OUT`, or `benchmarks` without it, as soon as a workload is measured.

`python -m serrate.ops.broadcast.bench --alone` measures all in half precision without peers, beside the limit.
`python -m serrate.ops.broadcast.bench --table benchmarks/broadcast-h200.json` fills the table of README.md.
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
    """Return an implementation of ours over events `(T, *)` and what is broadcast to them."""
    leaves = [asking(x) for x in tensors]
    return Peer(lambda: run(case, leaves, offsets, implementation), leaves)


def padded(case: Case, tensors: Sequence[Tensor], offsets: Tensor,
           compute: Callable[..., Tensor] | None = None) -> Peer:
    """Return torch's own operation on padded events `(B, N, *)`, whatever it makes of padding."""
    leaves = [asking(to_padded(JaggedTensor(tensors[0], offsets))[0]), asking(tensors[1])]
    compute = compute or plainly
    return Peer(lambda: compute(case.product, case.along == "rows", *leaves), leaves)


def compiled(case: Case, tensors: Sequence[Tensor], offsets: Tensor) -> Peer:
    """Return the same through `torch.compile`, which makes of it what it can."""
    return padded(case, tensors, offsets, torch.compile(plainly, fullgraph=True, dynamic=False))


def nested(case: Case, tensors: Sequence[Tensor], offsets: Tensor) -> Peer:
    """Return torch's nested tensors of layout jagged, which broadcast over rows."""
    if case.along != "rows":
        raise NotImplementedError("nested tensors have no positions")
    leaves = [asking(x) for x in tensors]
    return Peer(lambda: plainly(case.product, True, torch.nested.nested_tensor_from_jagged(leaves[0], offsets),
                                leaves[1]).values(), leaves)


PEERS: dict[str, Callable[[Case, Sequence[Tensor], Tensor], Peer]] = {
    "padded": padded, "compiled": compiled, "nested": nested}


def plainly(product: bool, of_rows: bool, x: Tensor, y: Tensor) -> Tensor:
    """Return what torch makes of padded events `(B, N, *)` and `y` `(B, *)`, `(N, *)` or `(B, N, *)`."""
    y = y[:, None] if of_rows else y
    return x * y if product else x + y


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

    The gradient of a sum is that of its events, so that its backward pass reads it and writes what `y` gets.
    """
    x, y = (each.nbytes for each in tensors)
    used = x if case.along == "both" else y  # of padded rows the events alone
    forward = 2 * x + used
    backward = 3 * x + used + y if case.product else x + y
    return {"limit_ms": copied(forward), "limit_forward_backward_ms": copied(forward + backward)}


def compare(case: Case, copied: Callable[[float], float] = measure.copy_milliseconds, device: str = "cuda",
            implementation: str = OURS, alone: bool = False) -> Rows:
    """Check ours, then measure it and its peers, or `alone` its replays; return rows of figures.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    tensors, offsets = case.tensors(case.dtype, device), case.offsets(device)
    error = wrong(case, tensors, offsets, implementation)
    measure.require(f"{case.name}, {implementation}", error, TOLERANCE[case.dtype])
    tell(f"{case.name}: {sum(case.lengths):,} events, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": sum(case.lengths)}, "limit": limit(case, tensors, copied)}
    ways = {implementation: partial(ours, implementation=implementation)} | PEERS
    found |= measure.beside({name: partial(make, case, tensors, offsets) for name, make in ways.items()},
                            implementation, alone)
    return measure.rows_of("broadcast", case.name, found, device)


# --- the command line ---


def main(names: list[str]) -> None:
    """Measure the workloads of these names, or some, and write their rows as they come."""
    if names[:1] == ["--table"]:
        figures.fill(README, figures.read(Path(names[1])))
        return
    parts = {case.name: [partial(compare, case)] for case in EVERY}
    measure.main("broadcast", parts, names, [case.name for case in WORKLOADS],
                 grid=[case.name for case in EVERY if case.dtype == HALF])


if __name__ == "__main__":
    main(sys.argv[1:])
