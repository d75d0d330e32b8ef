"""Something of each row, of each position, or of both, added to events or multiplied with them."""

from .. import select
from . import cpu, reference, triton
from .api import Along, Call, add, multiply

select.register("broadcast", [
    select.Implementation("triton", triton.broadcast, triton.unusable),
    select.Implementation("cpu", cpu.broadcast, cpu.unusable),
    select.Implementation("reference", reference.broadcast, reference.unusable),
])

__all__ = ["Along", "Call", "add", "multiply"]
