"""Dropout: which weights of attention are kept follows from a seed and the places of query and key.

Other operations give their events and columns such places, so one draw serves all.

Each place gets 32 random bits of its own, and a pair keeps its weight by a hash of both: a few integer instructions a
pair, no random state, and the same draw in every implementation, forward and backward.
"""

import torch
from torch import Tensor

from ..errors import InvalidArgument

BITS = 0xFFFFFFFF
OF_KEYS, OF_HEADS = 0x9E3779B9, 0x7FEB352D  # odd constants that tell the places of keys and heads from those of queries


def kept(seed: Tensor, rate: float, heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Return which weights stay, `(…, heads, M, N)` bool, each with probability `1 - rate`.

    Args:
        seed: () int64.
        rate: share to drop, 0 to below 1.
        heads: H, of the queries.
        queries: (…, M) places of the queries on the packed axis.
        keys: (…, N) places of the keys on theirs.
    """
    head = torch.arange(heads, device=queries.device)[:, None]
    query = mixed(mixed(queries.long() ^ (seed & BITS))[..., None, :] + head * OF_HEADS)
    key = mixed(mixed(keys.long() ^ (seed >> 32 & BITS)) + OF_KEYS)
    return mixed(query[..., None] ^ key[..., None, None, :]) >= threshold(rate)


def seed_tensor(argument: str, seed: int | Tensor, device: torch.device) -> Tensor:
    """Return the seed as `()` int64 on the device that nobody else writes to.

    Args:
        argument: what the seed is called where it is refused.
        seed: an int, or one int64 on the device.
        device: of the tensors that are dropped from.

    Raises:
        InvalidArgument: another tensor.
    """
    if isinstance(seed, int):
        return torch.full((), seed, dtype=torch.int64, device=device)
    if seed.numel() != 1 or seed.dtype != torch.int64 or seed.device != device:
        expected = f"an int, or one int64 on {device}"
        raise InvalidArgument(argument, expected, f"{tuple(seed.shape)} {seed.dtype} on {seed.device}")
    return seed.reshape(()).clone()  # the caller may count it up before the backward pass


def drawn_seed(device: torch.device) -> Tensor:
    """Return a seed, `()` int64, from torch's generator of the device: nothing waits for it."""
    return torch.randint(2**63 - 1, (), device=device)


def threshold(rate: float) -> int:
    """Return the 32-bit number below which a hash means: dropped."""
    return round(rate * 2**32)


def mixed(x: Tensor) -> Tensor:
    """Return 32 bits that look random for each number, of which the low 32 bits count: the murmur3 finaliser."""
    x = x & BITS
    x = (x ^ x >> 16) * 0x85EBCA6B & BITS
    x = (x ^ x >> 13) * 0xC2B2AE35 & BITS
    return x ^ x >> 16
