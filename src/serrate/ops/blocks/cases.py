"""Named batches for square blocks and the operations on them: one table for tests, and the batches to measure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .api import (
    block_differences,
    block_matmul,
    block_multiply,
    block_products,
    block_softmax,
    from_padded_blocks,
    to_padded_blocks,
)


@dataclass(frozen=True)
class Case:
    """A batch worth naming.

    Attributes:
        name: of the case.
        lengths: of the rows.
        width: D of events.
        heads: H; None: no axis of heads.
        spread: standard deviation of blocks; all others are standard normal.
        packed: whether tensors are contiguous; else they are every other column of wider ones.
        more: pairs past the last block.
        offsets_dtype: int32 or int64.
        dtype: to measure.
    """

    name: str
    lengths: tuple[int, ...]
    width: int = 16
    heads: int | None = None
    spread: float = 1.0
    packed: bool = True
    more: int = 0
    offsets_dtype: torch.dtype = torch.int64
    dtype: torch.dtype = torch.bfloat16

    @property
    def longest(self) -> int:
        """N, the longest row."""
        return max(self.lengths, default=0)

    @property
    def pairs(self) -> int:
        """P, with those past the last block."""
        return sum(length**2 for length in self.lengths) + self.more

    def offsets(self, device: str = "cpu") -> Tensor:
        """Return `(B + 1,)`."""
        return offsets_from_lengths(torch.tensor(self.lengths, dtype=self.offsets_dtype)).to(device)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of tensors by their letters, see `OPERATIONS`."""
        heads = () if self.heads is None else (self.heads,)
        events, square = sum(self.lengths), (self.longest, self.longest)
        return {"x": (events, *heads, self.width), "y": (events, *heads, self.width), "t": (events, *heads),
                "u": (events, *heads), "a": (self.pairs, *heads), "m": square,
                "p": (len(self.lengths), *square, *heads)}

    def elements(self) -> dict[str, int]:
        """Return how many numbers tensors have, by their letters."""
        return {letter: math.prod(shape) for letter, shape in self.shapes().items()}

    def tensors(self, names: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
        """Return random tensors by their letters; the same each time."""
        shapes = self.shapes()
        return [self._random(shapes[name], dtype, device, seed, self.spread if name == "a" else 1.0)
                for seed, name in enumerate(names)]

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int,
                spread: float) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        wide = shape if self.packed else (*shape[:-1], 2 * shape[-1])
        made = (torch.randn(wide, generator=generator, device=device) * spread).to(dtype)
        return made if self.packed else made[..., ::2]


@dataclass(frozen=True)
class Operation:
    """An operation on a case: letters of inputs and of the result, the call of inputs, case, offsets, implementation.

    x, y: events `(T, [H,] D)`; t, u: of one number `(T, [H])`; a: blocks `(P, [H])`; m: a square `(N, N)`;
    p: padded blocks `(B, N, N, [H])`.
    """

    inputs: str
    result: str
    call: Callable[..., Tensor]

    def run(self, case: Case, given: list[Tensor], implementation: str | None) -> Tensor:
        """Return the result for inputs of a case."""
        return self.call(*given, case, case.offsets(str(given[0].device)), implementation)


def _products(x: Tensor, y: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return block_products(x, y, offsets, pairs=case.pairs, implementation=name)


def _matmul(a: Tensor, y: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return block_matmul(a, y, offsets, implementation=name)


def _matmul_transposed(a: Tensor, y: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return block_matmul(a, y, offsets, transposed=True, implementation=name)


def _softmax(a: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return block_softmax(a, offsets, implementation=name)


def _softmax_over_queries(a: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return block_softmax(a, offsets, over="queries", implementation=name)


def _differences(t: Tensor, u: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return block_differences(t, u, offsets, pairs=case.pairs, implementation=name)


def _multiply(a: Tensor, m: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return block_multiply(a, m, offsets, implementation=name)


def _to_padded(a: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return to_padded_blocks(a, offsets, case.longest, fill=-1.5, implementation=name)


def _from_padded(p: Tensor, case: Case, offsets: Tensor, name: str | None) -> Tensor:
    return from_padded_blocks(p, offsets, pairs=case.pairs, implementation=name)


OPERATIONS = {
    "products": Operation("xy", "a", _products),
    "matmul": Operation("ay", "y", _matmul),
    "matmul, transposed": Operation("ay", "y", _matmul_transposed),
    "softmax": Operation("a", "a", _softmax),
    "softmax over queries": Operation("a", "a", _softmax_over_queries),
    "differences": Operation("tu", "a", _differences),
    "multiply": Operation("am", "a", _multiply),
    "to padded": Operation("a", "p", _to_padded),
    "from padded": Operation("p", "a", _from_padded),
}

CASES = [
    Case("no rows", ()),
    Case("no rows, pairs past the last", (), more=3),
    Case("empty rows", (0, 0, 0)),
    Case("one event", (1,)),
    Case("first and last empty", (0, 3, 2, 0)),
    Case("fewer events than rows", (0, 1, 0, 0, 2, 0, 0)),
    Case("ordinary", (5, 17, 1, 33, 8), width=24),
    Case("int32 offsets", (4, 0, 7, 1), offsets_dtype=torch.int32),
    Case("many tiny", (1, 2, 0, 1, 3, 1, 2, 1) * 3, width=4),
    Case("multiples of 8", (8, 16, 40, 8), width=32),
    Case("past a tile", (70, 3, 131), width=8),
    Case("every eighth query", (3, 259), width=8),
    Case("width 1", (6, 3), width=1),
    Case("width 200", (9, 18), width=200),
    Case("heads", (5, 0, 19, 8), width=12, heads=3),
    Case("one head", (5, 0, 9), heads=1),
    Case("columns", (4, 0, 7, 30), packed=False),
    Case("columns, heads", (4, 0, 7), heads=2, packed=False),
    Case("pairs past the last", (4, 0, 7), heads=2, more=1500),
    Case("far scores", (4, 0, 7, 12), spread=150.0),
    Case("alike", (16, 16, 16)),
]


def on_curve(longest: int, fill: int, width: int, dtype: torch.dtype) -> Case:
    """Return 64 rows of uniform lengths up to the longest, whose mean is `fill` per cent of it."""
    low = max(1, round((2 * fill / 100 - 1) * longest))
    high = max(1, round(min(2 * fill / 100, 1.0) * longest))
    lengths = torch.randint(low, high + 1, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    lengths[0] = longest
    name = f"{longest}, fill {fill} %, width {width}, {str(dtype).removeprefix('torch.')}"
    return Case(name, tuple(lengths), width, dtype=dtype)


_DTYPES = (torch.bfloat16, torch.float32)
WORKLOADS = [on_curve(longest, fill, width, dtype)
             for dtype in _DTYPES for longest in (512, 4096) for width in (64, 128) for fill in (10, 30, 50, 100)]
USUAL = [on_curve(4096, 50, 64, torch.bfloat16)]
