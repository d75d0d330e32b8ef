"""A transformer block's operations beside torch's own: `python -m serrate.ops.transformer.bench [workload ...]`.

Workloads are in `cases.py`; all of them without a name. Each is checked first, against the float64 oracle; without a
right answer no speed is told. The limit is every tensor moved once a pass at the rate of a copy of as many bytes, or
the products at the measured rate. Rows of figures go to `transformer-<device>.json` under `$OUT`, or `benchmarks`
without it, as soon as a workload is measured.

`python -m serrate.ops.transformer.bench --table benchmarks/transformer-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import measure
from ..figures import OURS
from ..measure import TOLERANCE, Figures, Peer, Rows, limits, tell
from .cases import WORKLOADS, Case

README = Path(__file__).with_name("README.md")
DTYPE = torch.bfloat16  # of what is multiplied


def ours(case: Case, leaves: list[Tensor], implementation: str = OURS, dtype: torch.dtype = DTYPE) -> Peer:
    """Return an implementation of ours over these tensors, `case.tensors`."""
    return Peer(lambda: case.run(leaves, dtype, implementation), leaves)


def eager(case: Case, leaves: list[Tensor]) -> Peer:
    """Return torch's own layers, one after the other."""
    return ours(case, leaves, "reference")


def compiled(case: Case, leaves: list[Tensor]) -> Peer:
    """Return the same through `torch.compile`, which makes of them what it can."""
    run = torch.compile(lambda: case.run(leaves, DTYPE, "reference"), fullgraph=True, dynamic=False)
    return Peer(run, leaves)


PEERS: dict[str, Callable[[Case, list[Tensor]], Peer]] = {"eager": eager, "compiled": compiled}


def wrong(case: Case, tensors: list[Tensor], implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradients of ours against the oracle."""
    found = []
    for dtype, name in ((DTYPE, implementation), (torch.float64, "reference")):
        leaves = [x.detach().to(dtype if dtype == torch.float64 else x.dtype).requires_grad_() for x in tensors]
        out = case.run(leaves, dtype, name)
        grad = torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(1), device=out.device).to(DTYPE)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))])
    return measure.relative_error(*found)


def limit(case: Case, tensors: list[Tensor]) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass."""
    given = sum(x.numel() * x.element_size() for x in tensors)
    columns = case.width if case.operation != "norm_linear" else case.hidden
    products = sum(x.numel() for x in tensors[1:] if x.dim() == 2 and x.shape[0] != case.events)
    return limits(given, case.events * columns * case.result(DTYPE).itemsize, 2 * case.events * products / 1e9)


def compare(case: Case, device: str = "cuda", implementation: str = OURS) -> Rows:
    """Check ours, then measure it and its peers; return rows of figures. A peer that fails is told and left out.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    tensors = case.tensors(DTYPE, device)
    error = wrong(case, tensors, implementation)
    measure.require(f"{case.name}, {implementation}", error, TOLERANCE[DTYPE])
    tell(f"{case.name}: {case.events:,} events, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": case.events}}
    if device == "cuda":
        found["limit"] = limit(case, tensors)
    leaves = [x.requires_grad_() for x in tensors]
    ways = {implementation: partial(ours, implementation=implementation)} | PEERS
    found |= measure.beside({name: partial(make, case, leaves) for name, make in ways.items()}, implementation)
    return measure.rows_of("transformer", case.name, found, device)


# --- the command line ---


def main(names: list[str]) -> None:
    """Measure the workloads of these names, or all, and write their rows as they come."""
    parts = {case.name: [partial(compare, case)] for case in WORKLOADS}
    measure.main("transformer", parts, names, readme=README)


if __name__ == "__main__":
    main(sys.argv[1:])
