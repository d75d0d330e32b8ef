"""Joined and padded rows beside torch's own: `python -m serrate.ops.concat.bench [workload ...]`.

Workloads are in `cases.py`; without a name the usual ones. Each is checked first, against the oracle; without a right
answer no speed is told. The limit is every event moved once a pass, and padding written once, at the rate of a copy of
as many bytes. Rows of figures go to `concat-<device>.json` under `$OUT`, or `benchmarks` without it, as soon as a
workload is measured.

`python -m serrate.ops.concat.bench --alone` measures all in half precision without peers, beside the limit.
`python -m serrate.ops.concat.bench --table benchmarks/concat-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...jagged import JaggedTensor, concatenate_events, offsets_from_lengths
from ...jagged import from_padded as edited_from_padded
from ...jagged import to_padded as edited_to_padded
from .. import measure
from ..figures import LIMITS, OURS
from ..measure import TOLERANCE, Figures, Peer, Rows, asking, copy_milliseconds, tell
from .api import concatenate, from_padded, to_padded
from .cases import USUAL, WORKLOADS, Workload

README = Path(__file__).with_name("README.md")


@dataclass(frozen=True, eq=False)
class Inputs:
    """A workload on a device.

    parts: histories and, to concatenate, what follows them, `(T, D)` each; their `offsets` `(B + 1,)` int64 on the
    device and `lengths` `(B,)`; `longest` of each on the host.
    """

    workload: Workload
    parts: list[Tensor]
    offsets: list[Tensor]
    longest: list[int]

    @property
    def lengths(self) -> list[Tensor]:
        """Of the rows of each part, `(B,)` int64."""
        return [each.diff() for each in self.offsets]

    def padded(self) -> list[Tensor]:
        """Return each part padded with 0 to its longest row, `(B, N, D)`."""
        return [to_padded(part, own, longest, implementation="reference" if part.device.type == "cpu" else None)
                for part, own, longest in zip(self.parts, self.offsets, self.longest, strict=True)]


def make(workload: Workload, device: str = "cuda") -> Inputs:
    """Return the inputs of a workload, the same each time."""
    lengths = workload.lengths()
    generator = torch.Generator(device).manual_seed(0)
    parts = [torch.randn(int(each.sum()), workload.width, generator=generator, device=device).to(workload.dtype)
             for each in lengths]
    longest = [workload.longest, workload.longest // 8][:len(lengths)]
    return Inputs(workload, parts, [offsets_from_lengths(each).to(device) for each in lengths], longest)


def ours(inputs: Inputs, implementation: str = OURS) -> Peer:
    """Return an implementation of ours."""
    offsets, longest = inputs.offsets, inputs.longest[0]
    if inputs.workload.operation == "from_padded":
        padded, events = asking(inputs.padded()[0]), inputs.parts[0].shape[0]
        return Peer(lambda: from_padded(padded, offsets[0], num_events=events, implementation=implementation), [padded])
    parts = [asking(part) for part in inputs.parts]
    if inputs.workload.operation == "to_padded":
        return Peer(lambda: to_padded(parts[0], offsets[0], longest, implementation=implementation), parts)
    return Peer(lambda: concatenate(parts, offsets, implementation=implementation)[0], parts)


def edits(inputs: Inputs) -> Peer:
    """Return the edits of jagged tensors, which are torch's own operations over an index of the events."""
    offsets, longest = inputs.offsets, inputs.longest
    if inputs.workload.operation == "from_padded":
        padded, (lengths,), events = asking(inputs.padded()[0]), inputs.lengths, inputs.parts[0].shape[0]
        return Peer(lambda: edited_from_padded(padded, lengths, num_events=events).values, [padded])
    parts = [asking(part) for part in inputs.parts]
    rows = [partial(JaggedTensor.trusted, offsets=own, longest=most)
            for own, most in zip(offsets, longest, strict=True)]
    if inputs.workload.operation == "to_padded":
        return Peer(lambda: edited_to_padded(rows[0](parts[0]))[0], parts)
    return Peer(lambda: concatenate_events([make(part) for make, part in zip(rows, parts, strict=True)]).values, parts)


def padded(inputs: Inputs, through: Callable[[Callable], Callable] = lambda run: run) -> Peer:
    """Return what padded code does: parts of padded rows side by side; a mask that takes events or puts them.

    Padded rows are joined with padding between them, where events of ours follow each other.
    """
    parts = [asking(part) for part in inputs.padded()]
    if inputs.workload.operation == "concatenate":
        run = through(lambda *parts: torch.cat(parts, 1))
        return Peer(lambda: run(*parts), parts)
    lengths, events, most = inputs.lengths[0], inputs.parts[0], inputs.longest[0]
    mask = torch.arange(most, device=lengths.device) < lengths[:, None]
    if inputs.workload.operation == "from_padded":
        run = through(lambda x: x.flatten(0, 1)[torch.nonzero_static(mask.flatten(), size=len(events)).squeeze(1)])
        return Peer(lambda: run(parts[0]), parts)
    x = asking(events)
    run = through(lambda x: x.new_zeros(*mask.shape, x.shape[1]).masked_scatter(mask[:, :, None], x))
    return Peer(lambda: run(x), [x])


def compiled(inputs: Inputs) -> Peer:
    """Return the same through `torch.compile`."""
    return padded(inputs, partial(torch.compile, fullgraph=True, dynamic=False))


def nested(inputs: Inputs) -> Peer:
    """Return torch's nested tensors, which pad and have no concatenation."""
    if inputs.workload.operation != "to_padded":
        raise ValueError(f"nested tensors have no {inputs.workload.operation}")
    x, longest = asking(inputs.parts[0]), inputs.longest[0]

    def run() -> Tensor:
        rows = torch.nested.nested_tensor_from_jagged(x, inputs.offsets[0], max_seqlen=longest)
        return torch.nested.to_padded_tensor(rows, 0.0, (inputs.workload.rows, longest, x.shape[1]))

    return Peer(run, [x])


PEERS: dict[str, Callable[[Inputs], Peer]] = {"edits": edits, "padded": padded, "compiled": compiled, "nested": nested}


def wrong(inputs: Inputs, implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradients of ours against the oracle."""
    found = []
    for name in (implementation, "reference"):
        run, leaves = ours(inputs, name)
        out = run()
        grad = torch.arange(out.numel(), device=out.device).remainder(251).view(out.shape).to(out.dtype)  # exact
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    return measure.relative_error(*found)


def moved(inputs: Inputs) -> tuple[int, int]:
    """Return the bytes that a forward pass reads and writes, and those of both passes.

    Events are read and written; padding is written in the forward pass of `to_padded`, in the backward pass of
    `from_padded`.
    """
    workload, events = inputs.workload, sum(part.nbytes for part in inputs.parts)
    if workload.operation == "concatenate":
        return 2 * events, 4 * events
    cells = workload.rows * inputs.longest[0] * inputs.parts[0][:1].nbytes
    return events + (cells if workload.operation == "to_padded" else events), 3 * events + cells


def compare(workload: Workload, device: str = "cuda", implementation: str = OURS, alone: bool = False) -> Rows:
    """Check ours, then measure it and its peers, or `alone` its replays; return rows of figures.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    inputs = make(workload, device)
    error = wrong(inputs, implementation)
    measure.require(f"{workload.name}, {implementation}", error, TOLERANCE[workload.dtype])
    events = sum(part.shape[0] for part in inputs.parts)
    tell(f"{workload.name}: {events:,} events, error {error:.1e}")
    found: dict[str, Figures] = {"batch": {"events": events}}
    if device == "cuda":
        found["limit"] = dict(zip(LIMITS, map(copy_milliseconds, moved(inputs)), strict=True))
    ways = {implementation: partial(ours, implementation=implementation)} | PEERS
    found |= measure.beside({name: partial(make, inputs) for name, make in ways.items()}, implementation, alone)
    return measure.rows_of("concat", workload.name, found, device)


def main(names: Sequence[str]) -> None:
    """Measure the workloads of these names, or the usual ones, and write their rows as they come."""
    parts = {workload.name: [partial(compare, workload)] for workload in WORKLOADS}
    measure.main("concat", parts, names, usual=[workload.name for workload in USUAL], readme=README,
                 grid=[workload.name for workload in WORKLOADS if workload.dtype == torch.bfloat16])


if __name__ == "__main__":
    main(sys.argv[1:])
