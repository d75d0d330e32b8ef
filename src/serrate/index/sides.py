"""The sides of queries and items: what an index reads of them, whoever made them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..nn.similarity import Sides, Similarity

_ROWS_AT_A_TIME = 2**20


def count(argument: str, sides: Sides) -> int:
    """Return how many queries or items the sides are of, checked.

    Raises:
        InvalidArgument: no side at all, sides of different lengths.
    """
    if not sides:
        raise InvalidArgument(argument, "sides, tensors by name", "none")
    lengths = {name: len(side) for name, side in sides.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidArgument(argument, "sides of equal length", lengths)
    return next(iter(lengths.values()))


def require_no_nan(argument: str, sides: Sides) -> None:
    """Raise `InvalidArgument` where a side has a NaN; sides of one byte a number are not looked at."""
    for name, side in sides.items():
        if not side.is_floating_point() or side.itemsize == 1:  # torch has no isnan of fp8
            continue
        for start in range(0, len(side), _ROWS_AT_A_TIME):
            wrong = side[start : start + _ROWS_AT_A_TIME].isnan()
            if bool(wrong.any()):
                row = start + int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])
                raise InvalidArgument(argument, "no NaN", f"NaN in row {row} of {name!r}")


def require(argument: str, sides: Sides, kind: str, wanted: Sequence[str] = ("components", "vector")) -> None:
    """Raise `InvalidArgument` unless the sides have one of the `wanted` parts, which an index of `kind` reads."""
    if not any(name in sides for name in wanted):
        raise InvalidArgument(argument, f"a side called {' or '.join(map(repr, wanted))}, which the index of kind "
                                        f"{kind!r} reads", f"sides called {', '.join(sides)}")


def components(sides: Sides) -> Tensor:
    """Return the components `(N, P, d)` float32 of sides; a plain vector is a mixture of one."""
    return sides["components"].float() if "components" in sides else sides["vector"].float().unsqueeze(-2)


def component_logits(queries: Sides, items: Sides, temperature: float) -> Tensor:
    """Return `(R, P, V)` float32: the logit of each component of each pair.

    Component `n · P_X + m` is the product of row `n` of the query and row `m` of the item, over the temperature.
    """
    query, item = components(queries) / temperature, components(items)
    flat = query.flatten(0, 1)
    products = torch.stack([flat @ item[:, m].T for m in range(item.shape[1])], 1)  # items are read where they lie
    return products.unflatten(0, query.shape[:2]).flatten(1, 2)


def mean_component(sides: Sides) -> Tensor:
    """Return the mean component `(N, d)` float32: the product of two is the mean of all component logits."""
    return components(sides).mean(-2)


def temperature_of(similarity: Similarity) -> float:
    """Return by what component logits are divided: the similarity's `temperature`, 1 where it has none."""
    return float(getattr(similarity, "temperature", 1.0))


def at_a_time(most: int, device: torch.device) -> int:
    """Return how many numbers to hold at once: `most` on the CPU, in whose cache they stay, more elsewhere."""
    return most if device.type == "cpu" else 64 * most


def rows_of(sides: Sides, start: int, stop: int) -> Sides:
    """Return some rows of all sides."""
    return {name: side[start:stop] for name, side in sides.items()}


def to_device(sides: Sides, device: torch.device) -> Sides:
    """Return the sides on a device."""
    return {name: side.to(device) for name, side in sides.items()}
