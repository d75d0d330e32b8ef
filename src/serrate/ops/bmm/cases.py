"""Named calls of jagged products: one table for tests, and the batches to measure."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths


@dataclass(frozen=True)
class Case:
    """A call worth naming.

    Attributes:
        name: of the case.
        lengths: of the rows.
        width, columns: D and F.
        heads: H; 0: an axis less.
        biased: whether the product with dense matrices adds a bias.
        offsets_dtype: of the offsets.
        packed: whether tensors are contiguous; else they are columns of a tensor twice as wide.
        dtype: of the tensors to measure.
    """

    name: str
    lengths: tuple[int, ...]
    width: int = 24
    columns: int = 16
    heads: int = 0
    biased: bool = True
    offsets_dtype: torch.dtype = torch.int64
    packed: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def events(self) -> int:
        """T."""
        return sum(self.lengths)

    def offsets(self, device: str = "cpu") -> Tensor:
        """Return the offsets `(B + 1,)`."""
        return offsets_from_lengths(torch.tensor(self.lengths, dtype=self.offsets_dtype)).to(device)

    def dense(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
        """Return random x `(T, [H,] D)`, y `(B, [H,] D, F)` and, where there is one, the bias `(B, [H,] F)`."""
        rows = len(self.lengths)
        shapes = [(self.events, self.width), (rows, self.width, self.columns), (rows, self.columns)]
        return self._tensors(shapes[:2 + self.biased], dtype, device)

    def jagged(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
        """Return random x `(T, [H,] D)` and y `(T, [H,] F)`."""
        return self._tensors([(self.events, self.width), (self.events, self.columns)], dtype, device)

    def _tensors(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)

        def random(shape: tuple[int, ...]) -> Tensor:
            shape = (shape[0], self.heads, *shape[1:]) if self.heads else shape
            whole = (*shape[:-1], shape[-1] if self.packed else 2 * shape[-1])
            return torch.randn(whole, generator=generator, device=device).to(dtype)[..., :shape[-1]]

        return tuple(map(random, shapes))


CASES = [
    Case("no rows", ()),
    Case("one empty row", (0,)),
    Case("all empty", (0, 0, 0, 0), heads=2),
    Case("first empty", (0, 3, 2)),
    Case("last empty", (3, 2, 0)),
    Case("one event", (1,)),
    Case("fewer events than rows", (0, 1, 0, 0, 2, 0, 0)),
    Case("many tiny", (1, 2, 0, 1, 3, 1, 2, 1) * 8, 8, 8),
    Case("ordinary", (5, 17, 1, 32, 8)),
    Case("one long", (1, 0, 150, 2)),
    Case("int32 offsets", (4, 0, 7, 1), offsets_dtype=torch.int32),
    Case("no bias", (4, 0, 70, 1), biased=False),
    Case("width 1", (9, 3), 1, 1),
    Case("width 25", (9, 30), 25, 50),
    Case("width 64", (65, 3, 20), 64, 64),
    Case("wide events", (20, 5, 1), 200, 16),
    Case("wide results", (20, 5, 1), 16, 150),
    Case("heads", (7, 0, 40, 2), heads=3),
    Case("heads, columns", (7, 0, 40, 2), 20, 33, heads=2, packed=False),
    Case("columns", (7, 0, 40, 2), packed=False, offsets_dtype=torch.int32),
    Case("longer than a chunk", (3, 2049, 0, 4100), 4, 5),
    Case("longer than a chunk, heads", (2, 2049), 3, 4, heads=2),
]


def uniform_lengths(rows: int, longest: int, fill: int) -> tuple[int, ...]:
    """Return lengths that are evenly spread about `fill` per cent of the longest; the same each time."""
    low, high = max(1, (2 * fill - 100) * longest // 100), min(2 * fill, 100) * longest // 100
    return tuple(torch.randint(low, high + 1, (rows,), generator=torch.Generator().manual_seed(0)).tolist())


FILLS = (10, 30, 50, 100)  # per cent
LONGEST = (512, 4096)
WIDTHS = (64, 128)
WORKLOADS = {
    f"{longest}, {fill} %, width {width}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}":
        Case(f"{longest}, {fill} %, width {width}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}",
             uniform_lengths(1024, longest, fill), width, width, dtype=dtype)
    for dtype in (torch.bfloat16, torch.float32) for width in WIDTHS for longest in LONGEST for fill in FILLS
}
