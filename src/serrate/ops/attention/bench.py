"""Jagged attention beside the peers that plain torch has: `python -m serrate.ops.attention.bench [part ...]`.

Parts are `short`, `paper`, `mid`, `long`, `full` (self-attention), `crowd` (65,536 short rows), `target` (dense queries
over histories), `smallest` (host time of the smallest call), `curves` (over fill rates), and, for pointwise weights and
relative bias, `pointwise` (the five of self-attention), `lengths` (512 rows, longest 256 to 1,024) and `longer` (2,048
and 4,096); all of them without a name.
Every workload is checked first, against the float64 oracle, with pointwise weights and the other mask too; without a
right answer no speed is told. All peers run in
the same process; one that cannot is told and left out. Rows of figures go to `attention-<device>.json` under `$OUT`,
or `benchmarks` without it, as soon as a workload is measured; those of other workloads that stood there stay.

`python -m serrate.ops.attention.bench --table benchmarks/attention-h200.json` fills the tables of README.md.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .. import measure
from ..measure import TOLERANCE, Figures, Peer, Rows, both_passes, ceilings, everything, host_time, tell
from .api import attention
from .peers import (
    OF_DENSE_QUERIES,
    OF_EVENTS,
    OF_LONG_ROWS,
    OF_MANY_ROWS,
    OF_POINTWISE,
    ON_CURVES,
    PEERS,
    Inputs,
    forget,
    make,
    ours,
)
from .tables import fill
from .weights import Activation
from .workloads import (
    CROWD,
    CURVES,
    FILLS,
    LENGTHS,
    POINTWISE,
    SMALLEST,
    TARGETS,
    WORKLOADS,
    Workload,
    on_curve,
)

LARGEST_SCORES = {"dense": 100e9, "dense pointwise": 40e9, "compiled pointwise": 40e9}  # bytes; the last two: 100 ms
CHECKED = {"cuda": 4096, "cpu": 1024}  # events from either end of a batch that the oracle computes too

VARIANTS: dict[str, tuple[Activation, bool]] = {  # weights, and whether there is a bias
    "silu": ("silu", False), "silu biased": ("silu", True),
    "softmax": ("softmax", False), "softmax biased": ("softmax", True)}


# --- is it right? ---


def wrong(inputs: Inputs, implementation: str = "triton") -> float:
    """Return the largest relative error of output and gradients on the first and last rows, against the oracle.

    The whole batch is computed, but only these rows get a gradient. Where no row is short enough for the oracle, a
    row of the most events that it takes stands for them.
    """
    workload, offsets, lengths = inputs.workload, inputs.offsets, inputs.offsets.diff()
    most = CHECKED[offsets.device.type]
    rows = (offsets[1:] <= most) | (offsets[:-1] >= offsets[-1] - most)
    if not bool(rows.any()):
        shorter = replace(workload, rows=1, longest=most, given=(most,))
        return wrong(make(shorter, offsets.device.type, inputs.grad.dtype), implementation)
    events = rows.repeat_interleave(lengths)
    asked = rows if workload.queries else events
    run, leaves = ours(inputs, implementation)
    out = run()
    chosen = asked.view(-1, *[1] * (out.dim() - 1))
    results = (out, *torch.autograd.grad(out, leaves, inputs.grad.where(chosen, 0)))

    def of_rows(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> list[Tensor]:
        return [out[asked], q if workload.shared else q[asked], k[events], v[events], *tables]

    q, k, v, *tables = exact = [x.detach().double().requires_grad_() for x in of_rows(out, *leaves)[1:]]
    queries = q.expand(int(rows.sum()), *q.shape) if workload.shared else q
    oracle = attention(queries, k, v, offsets_from_lengths(lengths[rows]), implementation="reference",
                       **inputs.options(tables, events))
    expected = (oracle, *torch.autograd.grad(oracle, exact, inputs.grad[asked].double()))
    return measure.relative_error(of_rows(*results), expected)


# --- how fast? ---


def limit(inputs: Inputs, copied: float, product: float) -> Figures:
    """Return the least times that a forward pass, and one with its backward pass, can take on this device.

    Every tensor moved once a pass (the backward reads q, k, v, out and its gradient and writes three), or the products
    that are needed: two in the forward, five in the backward pass.
    """
    workload, lengths = inputs.workload, inputs.offsets.diff().double()
    squares = float((lengths * lengths).sum()) * (0.5 if workload.causal else 1.0)
    pairs = workload.queries * float(lengths.sum()) if workload.queries else squares
    nbytes = sum(x.nbytes for x in inputs.qkv) + inputs.grad.nbytes
    gflop = 4 * pairs * workload.heads * workload.width / 1e9
    return {"limit_ms": max(nbytes / copied, gflop / product),
            "limit_forward_backward_ms": max(3 * nbytes / copied, 3.5 * gflop / product)}


# --- ours beside its peers ---


@dataclass(frozen=True)
class Comparison:
    """How a workload is measured: ours beside which peers, what of each, and where lines of progress go.

    variants: of `VARIANTS`: in which of them ours computes the workload, each with a name of its own; none: as the
    workload says. ceilings: as the function of this name returns them, None where they are unknown; seconds: the most
    that one implementation may take on a CPU (a GPU takes what it needs).
    """

    peers: Sequence[str] = OF_EVENTS
    take: Callable[[Peer, bool, float], Figures] = everything
    implementation: str = "triton"
    variants: Sequence[str] = ()
    ceilings: tuple[float, float] | None = None
    seconds: float = 20.0
    tell: Callable[[str], None] = tell

    def own(self, inputs: Inputs) -> dict[str, Inputs]:
        """Return what ours computes, by the name of its figures."""
        named = {f"{self.implementation} {name}": inputs.variant(*VARIANTS[name]) for name in self.variants}
        return named or {self.implementation: inputs}


def compare(inputs: Inputs, how: Comparison) -> Rows:
    """Check ours, then measure it and its peers; return rows of figures.

    Raises AssertionError where our answer is wrong, and whatever ours raises; a peer that fails is told and left out.
    """
    workload, device = inputs.workload, inputs.grad.device.type
    own, allowed = how.own(inputs), TOLERANCE[inputs.grad.dtype]
    errors = {name: wrong(mine, how.implementation) for name, mine in (own | _others(inputs)).items()}
    for name, error in errors.items():
        measure.require(f"{workload.name}, {name}", error, allowed)
    found: dict[str, Figures] = {"batch": {"events": inputs.qkv[1].shape[0]}}
    if how.ceilings is not None:
        found["limit"] = limit(inputs, *how.ceilings)
    how.tell(f"{workload.name}: {inputs.qkv[1].shape[0]:,} events, error {max(errors.values()):.1e}")
    prepare = {name: partial(ours, mine, how.implementation) for name, mine in own.items()}
    prepare |= {name: partial(PEERS[name], inputs) for name in how.peers if name not in own}
    for name, make_peer in prepare.items():
        reason = _left_out(name, inputs, found.get(next(iter(own)), {}), how.seconds)
        if reason is not None:
            how.tell(f"  {name:24} {reason}")
            continue
        found[name] = measure.taken(
            name, lambda name=name, make_peer=make_peer: how.take(make_peer(), name == how.implementation, how.seconds),
            name in own, how.tell)
        if device == "cuda":
            torch.cuda.empty_cache()
    return measure.rows_of("attention", workload.name, found, device)


def _others(inputs: Inputs) -> dict[str, Inputs]:
    """Return what is checked beside what is measured: kernels are compiled apart for weights and masks."""
    workload = inputs.workload
    if workload.queries:
        return {}
    other_mask = replace(inputs, workload=replace(workload, causal=not workload.causal))
    return {"pointwise": inputs.variant("silu", workload.biased), "the other mask": other_mask}


def _left_out(name: str, inputs: Inputs, of_ours: Figures, seconds: float) -> str | None:
    """Say why a peer is not tried: what it computes over padding would not fit, or take too long on a CPU."""
    workload, lengths = inputs.workload, inputs.offsets.diff()
    scores = 8 * workload.rows * workload.heads * workload.longest**2
    if scores > LARGEST_SCORES.get(name, math.inf):
        return f"left out: its scores would take {scores / 1e9:,.0f} GB"
    if name.startswith("padded") and inputs.grad.device.type == "cpu":
        more = workload.rows * workload.longest**2 / float((lengths.double() ** 2).sum())
        expected = more * of_ours["forward_backward_ms"] / 1000
        if expected > seconds:
            return f"left out: it would take about {expected:,.0f} s a call, over padding"
    return None


# --- from the command line ---


class Part(NamedTuple):
    """What is measured together under one name: workloads, beside which peers, and what of each."""

    workloads: Sequence[Workload]
    peers: Sequence[str] = OF_EVENTS
    take: Callable[[Peer, bool, float], Figures] = everything
    variants: Sequence[str] = ()


PARTS = {workload.name: Part([workload]) for workload in WORKLOADS} | {
    "crowd": Part([CROWD], OF_MANY_ROWS),
    "target": Part(TARGETS, OF_DENSE_QUERIES),
    "smallest": Part([SMALLEST], ("varlen",), host_time),
    "curves": Part([on_curve(longest, fill) for longest in CURVES for fill in FILLS], ON_CURVES, both_passes),
    "pointwise": Part(POINTWISE, OF_POINTWISE, variants=tuple(VARIANTS)),
    "lengths": Part([each for each in LENGTHS if each.longest <= 1024], OF_POINTWISE, variants=tuple(VARIANTS)),
    "longer": Part([each for each in LENGTHS if each.longest > 1024], OF_LONG_ROWS, variants=tuple(VARIANTS)),
}


def _part(part: Part, workload: Workload) -> Rows:
    try:
        return compare(make(workload), Comparison(part.peers, part.take, variants=part.variants, ceilings=ceilings()))
    finally:
        forget()


def main(names: list[str]) -> None:
    """Measure the parts of these names, or all, and write their rows as they come."""
    parts = {name: [partial(_part, part, workload) for workload in part.workloads] for name, part in PARTS.items()}
    measure.main("attention", parts, names, without_gpu="; `serrate bench attention` measures on a CPU")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        fill(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
