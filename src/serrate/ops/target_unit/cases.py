"""Named calls of the target unit's first layer: one table for tests, and the batches to measure."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from ..bmm.cases import FILLS, LONGEST, WIDTHS, uniform_lengths


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        lengths: of the histories.
        rows: the history of each target; None: one target a history.
        width, columns: D and F.
        biased: whether there is a bias.
        offsets_dtype: of the offsets and of rows.
        packed: whether tensors are contiguous; else they are columns of a tensor twice as wide, the weight a transpose.
        dtype: of the tensors to measure.
    """

    name: str
    lengths: tuple[int, ...]
    rows: tuple[int, ...] | None = None
    width: int = 12
    columns: int = 10
    biased: bool = True
    offsets_dtype: torch.dtype = torch.int64
    packed: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def read(self) -> int:
        """T', the events that all targets read."""
        return sum(self.lengths if self.rows is None else (self.lengths[row] for row in self.rows))

    def where(self, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
        """Return the offsets `(B + 1,)` and the row of each target `(M,)`."""
        offsets = offsets_from_lengths(torch.tensor(self.lengths, dtype=self.offsets_dtype)).to(device)
        return offsets, None if self.rows is None else torch.tensor(self.rows, dtype=self.offsets_dtype, device=device)

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
        """Return random q `(M, D)`, k `(T, D)`, weight `(4 D, F)` and, where there is one, the bias `(F,)`."""
        generator = torch.Generator(device).manual_seed(0)
        targets = len(self.lengths if self.rows is None else self.rows)

        def random(*shape: int) -> Tensor:
            whole = (*shape[:-1], shape[-1] if self.packed else 2 * shape[-1])
            return torch.randn(whole, generator=generator, device=device).to(dtype)[..., :shape[-1]]

        q, k = random(targets, self.width), random(sum(self.lengths), self.width)
        weight = random(4 * self.width, self.columns) if self.packed else random(self.columns, 4 * self.width).T
        return q, k, weight, *[random(self.columns)] * self.biased


CASES = [
    Case("no rows", ()),
    Case("one empty row", (0,)),
    Case("all empty", (0, 0, 0)),
    Case("first empty", (0, 3, 2)),
    Case("last empty", (3, 2, 0)),
    Case("one event", (1,)),
    Case("fewer events than rows", (0, 1, 0, 0, 2, 0, 0)),
    Case("many tiny", (1, 2, 0, 1, 3, 1, 2, 1) * 5, width=8, columns=8),
    Case("ordinary", (5, 17, 1, 32, 8)),
    Case("one long", (1, 0, 150, 2)),
    Case("int32 offsets", (4, 0, 7, 1), offsets_dtype=torch.int32),
    Case("no bias", (4, 0, 70, 1), biased=False),
    Case("width 1", (9, 3), width=1, columns=1),
    Case("width 25", (9, 30), width=25, columns=50),
    Case("width 64", (65, 3), width=64, columns=36),
    Case("wide", (20, 5), width=150, columns=20),
    Case("wide results", (20, 5), width=16, columns=200),
    Case("columns", (7, 0, 40, 2), packed=False, offsets_dtype=torch.int32),
    Case("longer than a chunk", (3, 2049, 0), width=3, columns=2),
    Case("rows of several programs", (256, 0, 700, 68, 300), width=3, columns=2),
    Case("no targets", (4, 0, 7), rows=()),
    Case("shared", (5, 17, 1, 32, 8), rows=(0, 3, 3, 1, 3, 0)),
    Case("shared, empty", (0, 6, 0), rows=(2, 1, 0, 0, 1)),
    Case("shared, one history", (70,), rows=(0,) * 5),
    Case("shared, columns", (7, 0, 40, 2), rows=(2, 0, 2, 1), width=20, columns=33, packed=False,
         offsets_dtype=torch.int32),
    Case("shared, no bias", (4, 30), rows=(1, 1, 0), biased=False),
    Case("shared, longer than a chunk", (3, 2060), rows=(1, 0, 1), width=3, columns=2),
    Case("shared, wide", (7, 20), rows=(1, 0, 1), width=150, columns=140),
]


def _workloads() -> dict[str, Case]:
    """Return the batches to measure: histories of a target each, and candidates that share histories."""
    made = {}
    for dtype, called in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        for width in WIDTHS:
            for longest in LONGEST:
                for fill in FILLS:
                    name = f"{longest}, {fill} %, width {width}, {called}"
                    lengths = uniform_lengths(1024, longest, fill)
                    made[name] = Case(name, lengths, width=width, columns=64, dtype=dtype)
        name, every = f"candidates, {called}", tuple(i // 100 for i in range(12800))
        made[name] = Case(name, uniform_lengths(128, 512, 50), every, 64, 64, dtype=dtype)
    return made


WORKLOADS = _workloads()
