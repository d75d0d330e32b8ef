"""Named workloads of jagged attention: one table for tests, tuning and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from .api import Mask

CAUSAL = Mask(causal=True)


@dataclass(frozen=True)
class Case:
    """A shape worth naming: lengths of the rows, heads, widths, mask."""

    name: str
    lengths: tuple[int, ...]
    heads: int = 2
    width: int = 8
    mask: Mask = CAUSAL

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0,
                offsets_dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return random `q`, `k`, `v` `(T, H, D)` and `offsets` `(B + 1,)`; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        shape = (sum(self.lengths), self.heads, self.width)
        q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
        lengths = torch.tensor(self.lengths, dtype=offsets_dtype)
        return q, k, v, offsets_from_lengths(lengths).to(device)


_ODD_LENGTHS = {
    "no_rows": (),
    "all_empty": (0, 0, 0),
    "one_event": (1,),
    "first_and_last_empty": (0, 5, 3, 0),
    "fewer_events_than_rows": (0, 0, 1, 0, 0, 1, 0),
    "equal_lengths": (4, 4, 4),
    "mixed": (7, 1, 0, 33, 7, 2, 64, 5),
    "one_long_among_short": (1, 1, 150, 1, 2),
}

CASES = [Case(name, lengths) for name, lengths in _ODD_LENGTHS.items()]
CASES += [Case(f"{case.name}_full", case.lengths, mask=Mask()) for case in CASES]
CASES += [Case(f"width_{width}", (3, 17, 0, 6), heads=1, width=width) for width in (1, 20, 25, 32, 50, 80, 96, 256)]
