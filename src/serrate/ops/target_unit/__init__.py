"""The first layer of DIN's attention unit over jagged histories, without its features."""

from .. import select
from . import cpu, reference, triton
from .api import Call, Reading, target_unit

select.register("target_unit", [
    select.Implementation("triton", triton.target_unit, triton.unusable),
    select.Implementation("cpu", cpu.target_unit, cpu.unusable),
    select.Implementation("reference", reference.target_unit, reference.unusable),
])

__all__ = ["Call", "Reading", "target_unit"]
