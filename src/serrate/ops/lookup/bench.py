"""Lookups beside torch's own: `python -m serrate.ops.lookup.bench [workload ...]`.

Workloads are in `cases.py`; all of them without a name. Each is checked first, against the float64 oracle; without a
right answer no speed is told. The limit is every row that is read and every result moved once a pass, and the table's
gradient written once, at the rate of a copy of as many bytes. Rows of figures go to `lookup-<device>.json` under
`$OUT`, or `benchmarks` without it, as soon as a workload is measured.

`python -m serrate.ops.lookup.bench --table benchmarks/lookup-h200.json` fills the table of README.md.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import measure
from ..figures import OURS
from ..measure import TOLERANCE, Figures, Peer, Rows, copy_milliseconds, tell
from .api import lookup
from .cases import WORKLOADS, Case

README = Path(__file__).with_name("README.md")


def ours(case: Case, tensors: tuple[Tensor, Tensor, Tensor | None], implementation: str = OURS) -> Peer:
    """Return an implementation of ours over `case.tensors`, the table a leaf; "reference" is torch's own."""
    table, rows, offsets = tensors
    return Peer(lambda: lookup(table, rows, how=case.how, offsets=offsets, implementation=implementation), [table])


def wrong(case: Case, tensors: tuple[Tensor, Tensor, Tensor | None], implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradient of ours against the oracle."""
    found = []
    for dtype, name in ((torch.float32, implementation), (torch.float64, "reference")):
        peer = ours(case, (tensors[0].detach().to(dtype).requires_grad_(), *tensors[1:]), name)
        out = peer.run()
        grad = torch.ones_like(out).cumsum(-1) / case.width  # not equal along a row
        found.append([out.detach(), *torch.autograd.grad(out, peer.leaves, grad)])
    return measure.relative_error(*found)


def limit(case: Case, tensors: tuple[Tensor, Tensor, Tensor | None]) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass."""
    table, rows, offsets = tensors
    row = table.shape[1] * table.element_size()
    read = rows.numel() * (row + rows.element_size())
    result = row * (rows.numel() if case.how == "each" else len(rows) if offsets is None else len(offsets) - 1)
    return {"limit_ms": copy_milliseconds(read + result),
            "limit_forward_backward_ms": copy_milliseconds(2 * (read + result) + table.nbytes)}


def compare(case: Case, device: str = "cuda", implementation: str = OURS) -> Rows:
    """Check ours, then measure it and torch's own; return rows of figures.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    tensors = case.tensors(device=device)
    error = wrong(case, tensors, implementation)
    measure.require(f"{case.name}, {implementation}", error, TOLERANCE[torch.float32])
    tell(f"{case.name}: {tensors[1].numel():,} rows, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": case.lines}}
    if device == "cuda":
        found["limit"] = limit(case, tensors)
    leaves = (tensors[0].requires_grad_(), *tensors[1:])
    ways = {implementation: implementation, "eager": "reference"}
    found |= measure.beside({name: partial(ours, case, leaves, own) for name, own in ways.items()}, implementation)
    return measure.rows_of("lookup", case.name, found, device)


# --- the command line ---


def main(names: list[str]) -> None:
    """Measure the workloads of these names, or all, and write their rows as they come."""
    parts = {case.name: [partial(compare, case)] for case in WORKLOADS}
    measure.main("lookup", parts, names, readme=README)


if __name__ == "__main__":
    main(sys.argv[1:])
