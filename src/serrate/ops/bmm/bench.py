"""Jagged products beside torch's over padded rows: `python -m serrate.ops.bmm.bench [workload ...] [--all]`.

Workloads are in `cases.py`, each for both products; a few of them without a name. Each is checked first, against the
float64 oracle; without a right answer no speed is told. Peers have their inputs padded beforehand. Rows of figures go
to `bmm-<device>.json` under `$OUT`, or `benchmarks` without it, as soon as a workload is measured.

`python -m serrate.ops.bmm.bench --table benchmarks/bmm-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import measure
from ..figures import OURS
from ..measure import TOLERANCE, Figures, Peer, Rows, asking, tell
from .api import jagged_dense_bmm, jagged_jagged_bmm
from .cases import WORKLOADS, Case

README = Path(__file__).with_name("README.md")
USUAL = ("512, 50 %, width 64, bf16", "512, 100 %, width 128, bf16", "4096, 10 %, width 128, bf16",
         "4096, 50 %, width 64, bf16", "4096, 100 %, width 128, bf16", "4096, 50 %, width 64, fp32")

Kind = Literal["dense", "jagged"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """One workload on a device: a case, which of the two products, its tensors (see `cases.py`) and offsets."""

    case: Case
    kind: Kind
    tensors: tuple[Tensor, ...]
    offsets: Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Return the same in another dtype."""
        return Inputs(self.case, self.kind, tuple(x.to(dtype) for x in self.tensors), self.offsets)


def make(case: Case, kind: Kind, device: str = "cuda") -> Inputs:
    """Return the inputs of a workload, the same each time."""
    tensors = case.dense(case.dtype, device) if kind == "dense" else case.jagged(case.dtype, device)
    return Inputs(case, kind, tensors, case.offsets(device))


def ours(inputs: Inputs, implementation: str = OURS) -> Peer:
    """Return an implementation of ours."""
    x, y, *bias = leaves = [asking(x) for x in inputs.tensors]
    if inputs.kind == "jagged":
        return Peer(lambda: jagged_jagged_bmm(x, y, inputs.offsets, implementation=implementation), leaves)
    added = bias[0] if bias else None
    return Peer(lambda: jagged_dense_bmm(x, y, inputs.offsets, bias=added, implementation=implementation), leaves)


def padded(inputs: Inputs, compiled: bool = False) -> Peer:
    """Return torch's batched product of rows padded to the longest `(B, N, D)`, eager or through `torch.compile`."""
    real = torch.arange(max(inputs.case.lengths), device=inputs.offsets.device) < inputs.offsets.diff()[:, None]

    def pad(x: Tensor) -> Tensor:
        full = x.new_zeros(*real.shape, *x.shape[1:])
        full[real] = x
        return full

    jagged = 2 if inputs.kind == "jagged" else 1  # of the tensors, the first
    leaves = [asking(pad(x) if i < jagged else x) for i, x in enumerate(inputs.tensors)]
    plainly = _jagged if inputs.kind == "jagged" else _dense
    compute: Callable[..., Tensor] = torch.compile(plainly, fullgraph=True, dynamic=False) if compiled else plainly
    return Peer(lambda: compute(*leaves), leaves)


def _dense(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    return x @ y if bias is None else torch.baddbmm(bias[:, None], x, y)


def _jagged(x: Tensor, y: Tensor) -> Tensor:
    return x.mT @ y


def nested(inputs: Inputs) -> Peer:
    """Return the product of torch's nested tensors, where it has one."""
    leaves = [asking(x) for x in inputs.tensors]
    low, high = min(inputs.case.lengths), max(inputs.case.lengths)

    def rows(x: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(x, inputs.offsets, min_seqlen=low, max_seqlen=high)

    def run() -> Tensor:
        if inputs.kind == "jagged":
            return torch.matmul(rows(leaves[0]).transpose(1, 2), rows(leaves[1]))
        return torch.matmul(rows(leaves[0]), leaves[1]).values()  # without the bias, which it cannot add

    return Peer(run, leaves[:2])


PEERS: dict[str, Callable[[Inputs], Peer]] = {
    "padded": padded, "padded, compiled": partial(padded, compiled=True), "nested": nested}


def wrong(inputs: Inputs, implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradients of ours against the oracle."""
    found = []
    for each, name in ((inputs, implementation), (inputs.to(torch.float64), "reference")):
        run, leaves = ours(each, name)
        out = run()
        grad = torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(1), device=out.device)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(inputs.case.dtype).to(out.dtype))])
    return measure.relative_error(*found)


def limit(inputs: Inputs) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass, on this device."""
    case = inputs.case
    result = case.columns * (case.events if inputs.kind == "dense" else len(case.lengths) * case.width)
    gflop = 2 * case.events * case.width * case.columns / 1e9
    return measure.limits(sum(x.nbytes for x in inputs.tensors), result * case.dtype.itemsize, gflop, case.dtype)


def compare(case: Case, kind: Kind, device: str = "cuda", implementation: str = OURS) -> Rows:
    """Check ours, then measure it and its peers; return rows of figures. A peer that fails is told and left out.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    inputs, name = make(case, kind, device), f"{kind}: {case.name}"
    error = wrong(inputs, implementation)
    measure.require(f"{name}, {implementation}", error, TOLERANCE[case.dtype])
    tell(f"{name}: {case.events:,} events, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": case.events}}
    if device == "cuda":
        found["limit"] = limit(inputs)
    ways: dict[str, Callable[[Inputs], Peer]] = {implementation: partial(ours, implementation=implementation)} | PEERS
    found |= measure.beside({way: partial(make, inputs) for way, make in ways.items()}, implementation)
    return measure.rows_of("bmm", name, found, device)


def main(names: Sequence[str]) -> None:
    """Measure the workloads of these names, or some, or all, and write their rows as they come."""
    kinds: tuple[Kind, ...] = ("dense", "jagged")
    parts = {name: [partial(compare, case, kind) for kind in kinds] for name, case in WORKLOADS.items()}
    measure.main("bmm", parts, names, usual=USUAL, readme=README)


if __name__ == "__main__":
    main(sys.argv[1:])
