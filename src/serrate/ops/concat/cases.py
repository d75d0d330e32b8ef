"""Named calls of concatenation, split and padding: one table for tests, and the batches to measure."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from ...testing.cases import random_values


@dataclass(frozen=True)
class Case:
    """Parts of the same rows worth naming.

    Attributes:
        name: of the case.
        parts: of each the lengths of its rows, or how many events every row has where it is dense; one at least is
            jagged.
        inner: the shape of an event.
        narrow: whether offsets are int32; where it is None those of every other part are.
        contiguous: whether events are; else they are every other column of wider ones.
    """

    name: str
    parts: tuple[tuple[int, ...] | int, ...]
    inner: tuple[int, ...] = (6,)
    narrow: bool | None = False
    contiguous: bool = True

    @property
    def rows(self) -> int:
        """B."""
        return next(len(part) for part in self.parts if not isinstance(part, int))

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
        """Return the parts, jagged `(T, *inner)` and dense `(B, K, *inner)`; the same every time."""
        shapes = [(self.rows, part) if isinstance(part, int) else (sum(part),) for part in self.parts]
        return [random_values((*shape, *self.inner), dtype, seed=i, device=device, contiguous=self.contiguous)
                for i, shape in enumerate(shapes)]

    def offsets(self, device: str = "cpu") -> list[Tensor | None]:
        """Return the offsets of each part, None of a dense one."""
        made: list[Tensor | None] = []
        for i, part in enumerate(self.parts):
            narrow = i % 2 == 0 if self.narrow is None else self.narrow
            dtype = torch.int32 if narrow else torch.int64
            made.append(None if isinstance(part, int) else
                        offsets_from_lengths(torch.tensor(part, dtype=dtype)).to(device))
        return made


CASES = [
    Case("no rows", ((), 3, ())),
    Case("one empty row", ((0,), (0,))),
    Case("all empty", ((0, 0, 0), (0, 0, 0))),
    Case("one part", ((3, 0, 2),)),
    Case("one event", ((0, 0), (0, 1))),
    Case("nothing before", (0, (2, 0, 5))),
    Case("prefix", (4, (2, 0, 5))),
    Case("suffix", ((2, 0, 5), 1)),
    Case("both ends", (1, (2, 0, 5), 2)),
    Case("two", ((5, 17, 0, 32, 8), (1, 0, 0, 40, 3))),
    Case("many tiny", ((1, 2, 0, 1, 3) * 50, (0, 2, 1, 0, 1) * 50)),
    Case("one long", ((0, 1, 0), (1, 300, 2)), inner=(40,)),
    Case("many parts", ((1, 2), 1, (0, 3), 2, (4, 0), (1, 1), 0)),
    Case("narrow offsets", ((4, 0, 7), 2, (1, 3, 0)), narrow=True),
    Case("offsets of both dtypes", ((4, 0, 7), (1, 3, 0)), narrow=None),
    Case("numbers", (2, (4, 0, 7)), inner=()),
    Case("width 1", (2, (4, 0, 7)), inner=(1,)),
    Case("width 0", (2, (4, 0, 7)), inner=(0,)),
    Case("width 25", ((40, 0, 7), (3, 3, 3)), inner=(25,)),
    Case("width 64", ((40, 0, 70), (3, 3, 3)), inner=(64,)),
    Case("width 1100", ((4, 0, 7), (3, 3, 3)), inner=(1100,)),
    Case("heads", ((4, 0, 7), (3, 3, 3)), inner=(2, 3)),
    Case("columns", (2, (4, 0, 7)), inner=(8,), contiguous=False),
    Case("columns of numbers", (2, (4, 0, 7)), inner=(), contiguous=False),
]


@dataclass(frozen=True)
class Workload:
    """A batch to measure.

    Attributes:
        operation: "concatenate" of histories and the newest events after them, an eighth as many a row; "to_padded"
            and "from_padded" of the histories.
        longest: N, of the histories; fill: per cent of the cells of a padded tensor that hold an event.
    """

    operation: Literal["concatenate", "to_padded", "from_padded"]
    longest: int
    width: int
    fill: int
    dtype: torch.dtype = torch.bfloat16
    rows: int = 1024

    @property
    def name(self) -> str:
        """What the workload is called where it is measured."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.operation}, {self.rows} × {self.longest} × {self.width} {dtype}, fill {self.fill} %"

    def lengths(self) -> list[Tensor]:
        """Return the lengths of histories and, to concatenate, of what follows them, `(B,)` each.

        Uniform about the mean that the fill asks for, between 1 and the longest.
        """
        generator = torch.Generator().manual_seed(0)
        found = []
        for longest in (self.longest, self.longest // 8)[:2 if self.operation == "concatenate" else 1]:
            low = max(1, round((2 * self.fill / 100 - 1) * longest))
            high = max(1, round(min(2 * self.fill / 100, 1.0) * longest))
            found.append(torch.randint(low, high + 1, (self.rows,), generator=generator))
        return found


OPERATIONS = ("concatenate", "to_padded", "from_padded")
WORKLOADS = [Workload(operation, longest, width, fill, dtype)
             for operation in OPERATIONS for longest in (512, 4096) for width in (64, 128)
             for fill in (10, 30, 50, 100) for dtype in (torch.bfloat16, torch.float32)]
USUAL = [each for each in WORKLOADS if each.dtype == torch.bfloat16 and (each.longest, each.width, each.fill) in
         ((512, 128, 10), (512, 128, 100), (4096, 64, 50))]
