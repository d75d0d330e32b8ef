"""Times in seconds, whatever unit they come in, and when the prediction after each event is asked for."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..jagged import JaggedTensor

# Integers as they came are told by their size: seconds since 1970 stay below 10¹¹ until the year 5138, and each finer
# unit begins where the one before it ends. Small ones, counted from another start, count as seconds.
_LARGEST = ((10**11, 1), (10**14, 10**3), (10**17, 10**6))
_NANOSECONDS = 10**9
_UNITS = {1: "seconds", 10**3: "milliseconds", 10**6: "microseconds", _NANOSECONDS: "nanoseconds"}
_FARTHEST = 2**61  # seconds; the difference of two such still fits 64 bits


def ticks_per_second(time: int) -> int:
    """Return how many units of integer times make a second, told by the size of a usual one of them."""
    return next((ticks for largest, ticks in _LARGEST if abs(time) < largest), _NANOSECONDS)


def seconds(times: Tensor, ticks: int) -> Tensor:
    """Return `times` (int64, any shape, `ticks` to a second) in whole seconds, int64, rounded down."""
    return torch.div(times, ticks, rounding_mode="floor").clamp_(-_FARTHEST, _FARTHEST)


def asked_times(time: JaggedTensor, newest: Tensor) -> JaggedTensor:
    """Return when the prediction after each event is asked for: at the time of the event after it.

    What is asked after the newest event of a row is asked at `newest`. A model may know when it is asked, for serving
    knows it too; what comes then is what it has to predict.

    Args:
        time: values `(T,)` int64, on the CPU.
        newest: `(B,)` int64; that of a row without events is not read.
    """
    following = time.values.roll(-1)
    filled = time.lengths > 0
    following[time.offsets[1:][filled] - 1] = newest[filled]
    return time.with_values(following)


def read_seconds(argument: str, times: Any) -> Tensor:
    """Return times that somebody gives, `(n,)` int64 in seconds; they are read as those of a log.

    Args:
        argument: what the times are called where they are refused.
        times: a list or array: whole numbers, in a unit that is told by their size; fractions, in seconds; dates and
            timestamps, which count from 1970 (UTC).

    Raises:
        InvalidArgument: a null, NaN or infinity, a time beyond 64 bits, times of several types or of none of these,
            whole numbers whose sizes tell several units.
    """
    try:
        found = times if isinstance(times, pa.Array) else pa.array(times)
        if found.null_count:
            raise InvalidArgument(argument, "a time for each event", "null")
        if pa.types.is_floating(found.type):
            return torch.from_numpy(pc.call_function("floor", [found]).cast(pa.int64()).to_numpy().copy())
        ticks: int | None = 10**6
        if pa.types.is_date(found.type) or pa.types.is_timestamp(found.type):
            found = found.cast(pa.timestamp("us"), safe=False)
        elif pa.types.is_integer(found.type) or pa.types.is_null(found.type):
            found, ticks = found.cast(pa.int64()), None
        else:
            raise InvalidArgument(argument, "whole numbers, seconds, dates or timestamps", found.type)
        whole = torch.from_numpy(found.cast(pa.int64()).to_numpy().copy())
    except (pa.ArrowException, OverflowError, TypeError):
        raise InvalidArgument(argument, "whole numbers, seconds, dates or timestamps of one type within 64 bits",
                              "others") from None
    return seconds(whole, _unit(argument, whole) if ticks is None else ticks)


def _unit(argument: str, times: Tensor) -> int:
    """Return how many units make a second of integers `(n,)` that somebody gives.

    Those of a log are told by a usual one, as there are many; of a few any may be the odd one, so all have to agree.
    """
    if not len(times):
        return 1
    sizes = times.double().abs()
    small, large = (int(times[at]) for at in (sizes.argmin(), sizes.argmax()))
    unit, other = ticks_per_second(small), ticks_per_second(large)
    if unit != other:
        raise InvalidArgument(argument, "whole numbers in one unit, which is told by their size",
                              f"{small} ({_UNITS[unit]}) and {large} ({_UNITS[other]})")
    return unit
