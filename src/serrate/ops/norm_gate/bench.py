"""Norm, gate and dropout beside torch's own: `python -m serrate.ops.norm_gate.bench [workload ...]`.

Workloads are in `cases.py`; all of them without a name. Each is checked first, against the float64 oracle; without a
right answer no speed is told. The limit is every tensor moved once a pass at the measured rate of a copy. Rows of
figures go to `norm-gate-<device>.json` under `$OUT`, or `benchmarks` without it, as soon as a workload is measured.

`python -m serrate.ops.norm_gate.bench --table benchmarks/norm-gate-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import measure
from ..figures import OURS
from ..measure import TOLERANCE, Figures, Peer, Rows, ceilings, tell
from .api import norm_gate
from .cases import WORKLOADS, Case

README = Path(__file__).with_name("README.md")
_SEED = 11


def ours(case: Case, leaves: Sequence[Tensor], implementation: str = OURS) -> Peer:
    """Return an implementation of ours over these events and gates, `(T, E)` each."""
    x, gate = (*leaves, None)[:2]
    assert x is not None
    return Peer(lambda: norm_gate(x, gate, groups=case.groups, eps=case.eps, dropout=case.dropout, seed=_SEED,
                                  dtype=case.result(case.dtype), implementation=implementation), list(leaves))


def eager(case: Case, leaves: Sequence[Tensor]) -> Peer:
    """Return torch's own operations, one after the other."""
    return Peer(lambda: plainly(case, *leaves), list(leaves))


def compiled(case: Case, leaves: Sequence[Tensor]) -> Peer:
    """Return the same through `torch.compile`, which makes of them what it can."""
    run = torch.compile(plainly, fullgraph=True, dynamic=False)
    return Peer(lambda: run(case, *leaves), list(leaves))


PEERS: dict[str, Callable[[Case, Sequence[Tensor]], Peer]] = {"eager": eager, "compiled": compiled}


def plainly(case: Case, x: Tensor, gate: Tensor | None = None) -> Tensor:
    """Return what torch makes of a workload, events and gates `(T, E)`, with a dropout of its own."""
    out = F.layer_norm(x.unflatten(1, (case.groups, -1)), (case.width // case.groups,), eps=case.eps).flatten(1)
    out = out if gate is None else out * gate
    return F.dropout(out, case.dropout).to(case.result(case.dtype))


def wrong(case: Case, tensors: Sequence[Tensor], implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradients of ours against the oracle."""
    found = []
    for dtype, name in ((case.dtype, implementation), (torch.float64, "reference")):
        run, leaves = ours(case, [x.to(dtype).requires_grad_() for x in tensors], name)
        out = run()
        grad = torch.ones_like(out).cumsum(1) / case.width  # neither equal along an event nor rounded differently
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(case.result(case.dtype)).to(out.dtype))])
    return measure.relative_error(*found)


def limit(case: Case, tensors: Sequence[Tensor], copied: float) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass, at `copied` bytes a millisecond."""
    given = sum(x.numel() * x.element_size() for x in tensors)
    result = tensors[0].numel() * case.result(case.dtype).itemsize
    return {"limit_ms": (given + result) / copied, "limit_forward_backward_ms": (3 * given + 2 * result) / copied}


def compare(case: Case, copied: float, device: str = "cuda", implementation: str = OURS) -> Rows:
    """Check ours, then measure it and its peers; return rows of figures. A peer that fails is told and left out.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    tensors = case.tensors(case.dtype, device)
    error, allowed = wrong(case, tensors, implementation), TOLERANCE[case.result(case.dtype)]
    measure.require(f"{case.name}, {implementation}", error, allowed)
    tell(f"{case.name}: {case.events:,} events, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": case.events}, "limit": limit(case, tensors, copied)}
    leaves = [x.requires_grad_() for x in tensors]
    ways = {implementation: partial(ours, implementation=implementation)} | PEERS
    found |= measure.beside({name: partial(make, case, leaves) for name, make in ways.items()}, implementation)
    return measure.rows_of("norm_gate", case.name, found, device)


# --- the command line ---


def main(names: list[str]) -> None:
    """Measure the workloads of these names, or all, and write their rows as they come."""
    parts = {case.name: [lambda case=case: compare(case, ceilings()[0])] for case in WORKLOADS}
    measure.main("norm-gate", parts, names, readme=README)


if __name__ == "__main__":
    main(sys.argv[1:])
