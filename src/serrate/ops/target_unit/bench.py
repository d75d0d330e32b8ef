"""The target unit's first layer beside its features: `python -m serrate.ops.target_unit.bench [workload ...]`.

Workloads are in `cases.py`; a few of them without a name. Each is checked first, against the float64
oracle; without a right answer no speed is told. Peers have their inputs padded beforehand, where histories are not
shared; nothing else makes features. Rows of figures go to `target-unit-<device>.json` under `$OUT`, or `benchmarks`
without it, as soon as a workload is measured.

`python -m serrate.ops.target_unit.bench --alone` measures all in half precision without peers, beside the limit.
`python -m serrate.ops.target_unit.bench --table benchmarks/target-unit-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .. import measure
from ..figures import OURS
from ..measure import TOLERANCE, Figures, Peer, Rows, asking, tell
from .api import Reading, target_unit
from .cases import WORKLOADS, Case
from .reference import pairs

README = Path(__file__).with_name("README.md")
USUAL = ("512, 50 %, width 64, bf16", "512, 100 %, width 128, bf16", "4096, 10 %, width 128, bf16",
         "4096, 50 %, width 64, bf16", "4096, 50 %, width 64, fp32", "candidates, bf16")
CHECKED = 16  # targets from either end that the oracle computes too: its features take 4 D float64 an event


@dataclass(frozen=True, eq=False)
class Inputs:
    """One workload on a device: a case, its tensors and where the events lie (see `cases.py`)."""

    case: Case
    tensors: tuple[Tensor, ...]
    offsets: Tensor
    rows: Tensor | None

    def reading(self) -> Reading:
        """Return which events targets read."""
        if self.rows is None:
            return Reading(self.offsets, None, self.offsets, self.case.read)
        ends = torch.cat([self.offsets[:1], self.offsets.diff()[self.rows].cumsum(0)])
        return Reading(self.offsets, self.rows, ends, self.case.read)


def make(case: Case, device: str = "cuda") -> Inputs:
    """Return the inputs of a workload, the same each time."""
    return Inputs(case, case.tensors(case.dtype, device), *case.where(device))


def ours(inputs: Inputs, implementation: str = OURS) -> Peer:
    """Return an implementation of ours."""
    q, k, weight, bias = leaves = [asking(x) for x in inputs.tensors]
    read = None if inputs.rows is None else inputs.case.read
    return Peer(lambda: target_unit(q, k, weight, bias, inputs.offsets, rows=inputs.rows, num_events=read,
                                    implementation=implementation), leaves)


def features(inputs: Inputs, compiled: bool = False) -> Peer:
    """Return torch's product of the features of all events that are read, which it finds beforehand."""
    q, k, weight, bias = leaves = [asking(x) for x in inputs.tensors]
    targets, events = pairs(inputs.reading())

    def multiply(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        q, k = q[targets], k[events]
        return torch.cat([q, k, q - k, q * k], 1) @ weight + bias

    return _peer(multiply, [q, k, weight, bias], leaves, compiled)


def padded(inputs: Inputs, compiled: bool = False) -> Peer:
    """Return torch's product of the features of rows padded to the longest `(B, N, 4 D)`."""
    if inputs.rows is not None:
        raise ValueError("histories are shared")
    q, k, weight, bias = inputs.tensors
    real = torch.arange(max(inputs.case.lengths), device=inputs.offsets.device) < inputs.offsets.diff()[:, None]
    full = k.new_zeros(*real.shape, k.shape[1])
    full[real] = k
    leaves = [asking(x) for x in (q, full, weight, bias)]

    def multiply(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        q = q[:, None].expand_as(k)
        return torch.cat([q, k, q - k, q * k], 2) @ weight + bias

    return _peer(multiply, leaves, leaves, compiled)


def _peer(multiply: Callable[..., Tensor], given: list[Tensor], leaves: list[Tensor], compiled: bool) -> Peer:
    compute: Callable[..., Tensor] = torch.compile(multiply, fullgraph=True, dynamic=False) if compiled else multiply
    return Peer(lambda: compute(*given), leaves)


PEERS: dict[str, Callable[[Inputs], Peer]] = {
    "padded": padded, "padded, compiled": partial(padded, compiled=True),
    "features": features, "features, compiled": partial(features, compiled=True)}


def wrong(inputs: Inputs, implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradients of ours on the first and last targets, to the oracle.

    The whole batch is computed, but only these targets get a gradient.
    """
    reading, lengths = inputs.reading(), inputs.offsets.diff()
    targets = lengths.new_zeros(len(inputs.tensors[0]), dtype=torch.bool)
    targets[:CHECKED] = targets[-CHECKED:] = True
    rows, own = targets, None
    if inputs.rows is not None:
        rows = torch.zeros_like(lengths, dtype=torch.bool).index_fill_(0, inputs.rows[targets].long(), True)
        own = (rows.cumsum(0) - 1)[inputs.rows[targets]]
    asked, events = targets.repeat_interleave(reading.ends.diff()), rows.repeat_interleave(lengths)
    run, leaves = ours(inputs, implementation)
    out = run()
    grad = torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(1), device=out.device).to(out.dtype)
    d_q, d_k, *others = torch.autograd.grad(out, leaves, grad.where(asked[:, None], 0))
    q, k, weight, bias = inputs.tensors
    q, k, weight, bias = exact = [asking(x.double()) for x in (q[targets], k[events], weight, bias)]
    oracle = target_unit(q, k, weight, bias, offsets_from_lengths(lengths[rows]), rows=own, implementation="reference",
                         num_events=None if own is None else int(asked.sum()))
    expected = torch.autograd.grad(oracle, exact, grad[asked].double())
    return measure.relative_error([out[asked], d_q[targets], d_k[events], *others], [oracle, *expected])


def limit(inputs: Inputs) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass, on this device."""
    case = inputs.case
    result = case.read * case.columns * case.dtype.itemsize
    gflop = 2 * case.read * case.width * case.columns / 1e9
    return measure.limits(sum(x.nbytes for x in inputs.tensors), result, gflop, case.dtype)


def compare(case: Case, device: str = "cuda", implementation: str = OURS, alone: bool = False) -> Rows:
    """Check ours, then measure it and its peers, or `alone` its replays; return rows of figures.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    inputs = make(case, device)
    error = wrong(inputs, implementation)
    measure.require(f"{case.name}, {implementation}", error, TOLERANCE[case.dtype])
    tell(f"{case.name}: {case.read:,} events read, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": case.read}}
    if device == "cuda":
        found["limit"] = limit(inputs)
    ways: dict[str, Callable[[Inputs], Peer]] = {implementation: partial(ours, implementation=implementation)} | PEERS
    found |= measure.beside({name: partial(make, inputs) for name, make in ways.items()}, implementation, alone)
    return measure.rows_of("target_unit", case.name, found, device)


def main(names: Sequence[str]) -> None:
    """Measure the workloads of these names, or some, or all, and write their rows as they come."""
    parts = {name: [partial(compare, case)] for name, case in WORKLOADS.items()}
    measure.main("target-unit", parts, names, usual=USUAL, readme=README,
                 grid=[name for name, case in WORKLOADS.items() if case.dtype == torch.bfloat16])


if __name__ == "__main__":
    main(sys.argv[1:])
