"""Named calls of broadcast: one table for tests, and the batches to measure."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from ..pool.cases import lengths_of
from .api import Along, add, multiply


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        lengths: of the rows.
        along: as in `api.add`.
        product: whether it multiplies.
        shape: of an event.
        own: of what is added to one, or multiplied with it.
        spare: positions past the longest row.
        packed: whether all is contiguous; else it is every other column.
        index: dtype of the offsets.
        dtype: of the events to measure.
    """

    name: str
    lengths: tuple[int, ...]
    along: Along = "rows"
    product: bool = False
    shape: tuple[int, ...] = (24,)
    own: tuple[int, ...] = (24,)
    spare: int = 0
    packed: bool = True
    index: torch.dtype = torch.int64
    dtype: torch.dtype = torch.float32

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes of rows and positions that `y` has."""
        rows, positions = len(self.lengths), max(self.lengths, default=0) + self.spare
        return {"rows": (rows,), "positions": (positions,), "both": (rows, positions)}[self.along]

    def offsets(self, device: str = "cpu") -> Tensor:
        """Return the offsets `(B + 1,)`."""
        return offsets_from_lengths(torch.tensor(self.lengths, dtype=self.index)).to(device)

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return random events `(T, *)` and what is broadcast to them; the same for a seed and device."""
        generator = torch.Generator(device).manual_seed(seed)
        shapes, step = ((sum(self.lengths), *self.shape), (*self.lead, *self.own)), 1 if self.packed else 2
        x, y = (torch.randn(*shape, step, generator=generator, device=device).to(dtype)[..., 0] for shape in shapes)
        return x, y


_ALONG: tuple[Along, ...] = ("rows", "positions", "both")
_NAMES = ("add", "multiply")
_ORDINARY = (5, 0, 17, 1, 32, 8, 0)

CASES = [
    Case(f"{_NAMES[product]} {along}: {name}", lengths, along, product, shape, own, spare, packed, index)
    for along in _ALONG for product in (False, True)
    for name, lengths, shape, own, spare, packed, index in (
        ("no rows", (), (3,), (3,), 2, True, torch.int64),
        ("empty rows", (0, 0, 0), (3,), (3,), 0, True, torch.int32),
        ("ordinary", _ORDINARY, (24,), (24,), 0, True, torch.int64),
        ("fewer events than rows", (0, 1, 0, 0, 2, 0, 0, 0), (16,), (16,), 3, True, torch.int32),
        ("flat", _ORDINARY, (), (), 0, True, torch.int64),
        ("one column", _ORDINARY, (24,), (1,), 5, False, torch.int64),
        ("a head each", _ORDINARY, (2, 9), (2, 1), 0, True, torch.int32),
        ("all heads alike", _ORDINARY, (2, 9), (9,), 1, False, torch.int64),
        ("wide", (4, 0, 9), (300,), (300,), 0, True, torch.int64),
        ("long rows", (3, 700, 0, 40), (64,), (64,), 0, True, torch.int64),
        ("many rows", (1, 4, 0, 2) * 20, (8,), (8,), 0, True, torch.int64))
]


def run(case: Case, tensors: Sequence[Tensor], offsets: Tensor, implementation: str | None = None) -> Tensor:
    """Return what the call gives for events `(T, *)` and what is broadcast to them."""
    x, y = tensors
    return (multiply if case.product else add)(x, y, offsets, along=case.along, implementation=implementation)


def workload(product: bool, along: Along, longest: int, width: int, fill: int, dtype: torch.dtype) -> Case:
    """Return a batch of 1,024 rows to measure, `fill` in percent."""
    name = f"{_NAMES[product]} {along}, {longest} × {width}, {fill} %, {str(dtype).removeprefix('torch.')}"
    return Case(name, lengths_of(1024, longest, fill / 100), along, product, (width,), (width,), dtype=dtype)


HALF, SINGLE = torch.bfloat16, torch.float32

EVERY = [workload(product, along, longest, width, fill, dtype)
         for product in (False, True) for along in _ALONG for longest in (4096, 512) for width in (64, 128)
         for fill in (10, 30, 50, 100) for dtype in (HALF, SINGLE)]
# each kind once, and one of them at all fills
WORKLOADS = [workload(product, along, 4096, 64, 50, HALF) for product in (False, True) for along in _ALONG]
WORKLOADS += [workload(True, "rows", 4096, 64, fill, HALF) for fill in (10, 30, 100)]
