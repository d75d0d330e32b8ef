"""Square blocks beside padded torch: `python -m serrate.ops.blocks.bench [part ...]`.

A part is an operation over the batches in `cases.py`, beside all peers; `usual` has all of them on one batch. `long` is
what is measured without a name: all operations on the batches of long rows in bfloat16, beside padded torch alone, in
about a minute. `--all` measures every part. Each is checked first, against the float64 oracle on the first and last
rows; without a right answer no speed is told. The limit is every tensor moved once a pass, at the rate of a copy of as
many bytes, or the products that are needed. Rows of figures go to `blocks-<device>.json` under `$OUT`, or `benchmarks`
without it, as soon as a batch is measured.

`python -m serrate.ops.blocks.bench --table benchmarks/blocks-h200.json` fills the table of README.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...jagged import JaggedTensor, to_padded
from .. import measure
from ..figures import OURS
from ..measure import Figures, Peer, Rows, asking
from .api import to_padded_blocks
from .cases import OPERATIONS, USUAL, WORKLOADS, Case

README = Path(__file__).with_name("README.md")
_MOST = 2**22  # pairs that the oracle computes

Given = Sequence[Tensor]


def ours(kind: str, case: Case, given: Given, implementation: str = OURS) -> Peer:
    """Return an implementation of ours over inputs of a case, see `cases.Operation`."""
    leaves, offsets = [asking(x) for x in given], case.offsets(str(given[0].device))
    return Peer(lambda: OPERATIONS[kind].call(*leaves, case, offsets, implementation), leaves)


# --- peers ---


def padded(kind: str, case: Case, given: Given) -> list[Tensor]:
    """Return inputs of a case as padded torch takes them: events `(B, N, …)`, blocks `(B, N, N)`, padding made before.

    Scores of padding are the least number that there is, so that a softmax needs no mask.
    """
    offsets, made = case.offsets(str(given[0].device)), []
    for letter, x in zip(OPERATIONS[kind].inputs, given, strict=True):
        if letter in "xytu":
            x = to_padded(JaggedTensor.trusted(x, offsets, case.longest))[0]
        elif letter == "a":
            fill = torch.finfo(x.dtype).min if kind.startswith("softmax") else 0.0
            x = to_padded_blocks(x, offsets, case.longest, fill=fill, implementation="reference")
        made.append(asking(x))
    return made


PLAIN: dict[str, Callable[..., Tensor]] = {
    "products": lambda x, y: x @ y.mT,
    "matmul": lambda a, y: a @ y,
    "matmul, transposed": lambda a, y: a.mT @ y,
    "softmax": lambda a: a.softmax(2),
    "softmax over queries": lambda a: a.softmax(1),
    "differences": lambda t, u: t[:, :, None] - u[:, None],
    "multiply": lambda a, m: a * m,
}


def eager(kind: str, case: Case, given: Given) -> Peer:
    """Return torch's own operation over padded rows."""
    leaves = padded(kind, case, given)
    return Peer(lambda: PLAIN[kind](*leaves), leaves)


def compiled(kind: str, case: Case, given: Given) -> Peer:
    """Return the same through `torch.compile`."""
    leaves, run = padded(kind, case, given), torch.compile(PLAIN[kind], fullgraph=True, dynamic=False)
    return Peer(lambda: run(*leaves), leaves)


def nested(kind: str, case: Case, given: Given) -> Peer:
    """Return torch's operation on nested tensors, of the layout that has two ragged axes."""
    if kind not in OF_NESTED:
        raise TypeError(f"nested tensors have no {kind}")
    leaves = []
    for letter, x in zip(OPERATIONS[kind].inputs, given, strict=True):
        rows = x.split([length**2 if letter == "a" else length for length in case.lengths])
        parts = [row.view(length, length) if letter == "a" else row
                 for row, length in zip(rows, case.lengths, strict=True)]
        leaves.append(asking(torch.nested.nested_tensor(parts, layout=torch.strided)))
    return Peer(lambda: OF_NESTED[kind](*leaves), leaves)


OF_NESTED: dict[str, Callable[..., Tensor]] = {
    "products": lambda x, y: x.matmul(y.transpose(-1, -2)),
    "matmul": lambda a, y: a.matmul(y),
    "matmul, transposed": lambda a, y: a.transpose(-1, -2).matmul(y),
    "softmax": lambda a: a.softmax(-1),
}


def indexed(kind: str, case: Case, given: Given) -> Peer:
    """Return what torch has for paddings themselves: one index for all pairs, made before."""
    offsets = case.offsets(str(given[0].device))
    every = torch.arange(case.pairs, device=offsets.device)
    place = to_padded_blocks(every, offsets, case.longest, fill=-1, implementation="reference")
    cells, shape, leaf = (place.flatten() >= 0).nonzero().squeeze(1), place.shape, asking(given[0])
    if kind == "from padded":
        return Peer(lambda: leaf.flatten().index_select(0, cells), [leaf])
    return Peer(lambda: leaf.new_full((shape.numel(),), -1.5).index_copy(0, cells, leaf).view(shape), [leaf])


PEERS = {"padded": eager, "padded compiled": compiled, "nested": nested}
OF_PADDINGS = {"index": indexed}


def peers_of(kind: str) -> dict[str, Callable[[str, Case, Given], Peer]]:
    """Return what an operation is measured beside, by name."""
    return PEERS if kind in PLAIN else OF_PADDINGS


# --- right, and how fast it could be ---


def wrong(kind: str, case: Case, given: Given, implementation: str = OURS) -> float:
    """Return the largest relative error of output and gradients against the oracle.

    Where a batch has too many pairs for the oracle, two rows stand for it: one as long as the oracle takes, one short.
    """
    if case.pairs > _MOST:
        length = min(case.longest, 1500)
        case = replace(case, lengths=(length, length // 3))
        given = case.tensors(OPERATIONS[kind].inputs, case.dtype, str(given[0].device))
    found = []
    for dtype, name in ((case.dtype, implementation), (torch.float64, "reference")):
        run, leaves = ours(kind, case, [x.to(dtype) for x in given], name)
        out = run()
        grad = torch.linspace(-1, 2, out.numel(), device=out.device).to(case.dtype).to(dtype).view(out.shape)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    return measure.relative_error(*found)


def limit(kind: str, case: Case, copied: Callable[[float], float],
          product: Callable[[torch.dtype], float]) -> Figures:
    """Return the least times of a forward pass, and of one with its backward pass.

    By the times that copies of so many bytes take, every tensor moved once a pass: the backward reads the gradient of
    the result and what it needs of the forward, and writes a gradient of every input. By the products' rate, as many
    GFLOP again for each gradient of a factor.
    """
    operation, elements = OPERATIONS[kind], case.elements()
    given = sum(elements[letter] for letter in operation.inputs) * case.dtype.itemsize
    result = elements[operation.result] * case.dtype.itemsize
    needed = {"softmax": result, "softmax over queries": result, "differences": 0, "to padded": 0, "from padded": 0}
    gflop = 2 * case.pairs * case.width / 1e9 if kind.startswith(("products", "matmul")) else 0.0
    forward = gflop / product(case.dtype) if gflop else 0.0
    times = (max(copied(given + result), forward),
             max(copied(needed.get(kind, given) + result + given), 2 * forward))
    return {"limit_ms": times[0], "limit_forward_backward_ms": sum(times)}


def compare(kind: str, case: Case, device: str = "cuda", implementation: str = OURS,
            beside: Sequence[str] | None = None) -> Rows:
    """Check ours, then measure it and its peers, or those of some names; return rows of figures. A peer that fails is
    told and left out.

    Raises AssertionError where our answer is wrong, and whatever ours raises.
    """
    name = f"{kind}, {case.name}"
    given = case.tensors(OPERATIONS[kind].inputs, case.dtype, device)
    measure.require(f"{name}: {implementation}", wrong(kind, case, given, implementation),
                    measure.TOLERANCE[case.dtype])
    measure.tell(f"{name}: {case.pairs:,} pairs")
    found: dict[str, Figures] = {"batch": {"events": sum(case.lengths)}}
    if device == "cuda":
        found["limit"] = limit(kind, case, measure.copy_milliseconds, measure.product_rate)
    peers = {name: peer for name, peer in peers_of(kind).items() if beside is None or name in beside}
    ways = {implementation: partial(ours, implementation=implementation)} | peers
    found |= measure.beside({way: partial(make, kind, case, given) for way, make in ways.items()}, implementation)
    return measure.rows_of("blocks", name, found, device)


# --- from the command line ---


def of_long_rows() -> list[Callable[[], Rows]]:
    """Return what measures all operations on long rows in bfloat16, of every width where the operation has one."""
    batches = [case for case in WORKLOADS if case.longest == 4096 and case.dtype == torch.bfloat16]
    return [partial(compare, kind, case, beside=("padded",)) for case in batches for kind in OPERATIONS
            if case.width == 64 or kind.startswith(("products", "matmul"))]


PARTS = {"usual": [partial(compare, kind, case) for case in USUAL for kind in OPERATIONS], "long": of_long_rows()} | {
    kind: [partial(compare, kind, case) for case in WORKLOADS] for kind in OPERATIONS}


def main(names: Sequence[str]) -> None:
    """Measure the parts of these names, or long rows, and write their rows as they come."""
    measure.main("blocks", PARTS, names, usual=["long"], readme=README)


if __name__ == "__main__":
    main(sys.argv[1:])
