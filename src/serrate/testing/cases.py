"""The odd shapes that every jagged operation has to get right, by name."""

from dataclasses import dataclass

import torch

from ..jagged import JaggedTensor, offsets_from_lengths

_INTEGERS = {torch.bool: (0, 1), torch.uint8: (0, 255), torch.int8: (-100, 100)}


@dataclass(frozen=True)
class JaggedCase:
    """One odd shape: the lengths of the rows, the dtype of the offsets, and whether values are contiguous."""

    name: str
    lengths: tuple[int, ...]
    offsets_dtype: torch.dtype = torch.int64
    contiguous: bool = True

    def __str__(self) -> str:  # the id of the parametrised test
        return self.name

    def make(self, inner: tuple[int, ...] = (), dtype: torch.dtype = torch.float32, *, seed: int = 0,
             device: torch.device | str = "cpu") -> JaggedTensor:
        """Return a `JaggedTensor` of this shape with values `(T, *inner)`, see `random_values`."""
        offsets = offsets_from_lengths(torch.tensor(self.lengths, dtype=self.offsets_dtype))
        values = random_values((sum(self.lengths), *inner), dtype, seed=seed, device=device,
                               contiguous=self.contiguous)
        return JaggedTensor(values, offsets.to(device), max(self.lengths, default=0))


def random_values(shape: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0, contiguous: bool = True,
                  device: torch.device | str = "cpu") -> torch.Tensor:
    """Return values of `shape`, the same for the same `seed` on every device.

    Floating values are standard normal, integers within -1000 … 1000 (or what their dtype holds).
    With `contiguous=False` they are every other entry, along the last axis, of a tensor twice as large.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = shape if contiguous else (*shape[:-1], 2 * shape[-1])
    if dtype.is_floating_point:
        values = torch.randn(wide, generator=generator, dtype=torch.float64)
    else:
        low, high = _INTEGERS.get(dtype, (-1000, 1000))
        values = torch.randint(low, high + 1, wide, generator=generator)
    values = values.to(device, dtype)
    return values if contiguous else values[..., ::2]


def jagged_cases() -> tuple[JaggedCase, ...]:
    """Return the named odd cases, for `@pytest.mark.parametrize("case", jagged_cases(), ids=str)`."""
    return (
        JaggedCase("no rows", ()),
        JaggedCase("one empty row", (0,)),
        JaggedCase("all empty", (0, 0, 0, 0)),
        JaggedCase("first empty", (0, 3, 2)),
        JaggedCase("last empty", (3, 2, 0)),
        JaggedCase("one event", (1,)),
        JaggedCase("fewer events than rows", (0, 1, 0, 0, 2, 0, 0)),
        JaggedCase("many tiny", (1, 2, 0, 1, 3, 1, 2, 1) * 32),
        JaggedCase("one long", (1, 0, 300, 2)),
        JaggedCase("ordinary", (5, 17, 1, 32, 8)),
        JaggedCase("int32 offsets", (4, 0, 7, 1), torch.int32),
        JaggedCase("int32 offsets, no rows", (), torch.int32),
        JaggedCase("non-contiguous", (4, 0, 7, 1), contiguous=False),
        JaggedCase("non-contiguous, int32 offsets", (2, 65, 3), torch.int32, contiguous=False),
    )
