"""Layer norm, gate and dropout of events in one pass."""

from .. import select
from . import cpu, reference, triton
from .api import Call, Settings, norm_gate

select.register("norm_gate", [
    select.Implementation("triton", triton.norm_gate, triton.unusable),
    select.Implementation("cpu", cpu.norm_gate, cpu.unusable),
    select.Implementation("reference", reference.norm_gate, reference.unusable),
])

__all__ = ["Call", "Settings", "norm_gate"]
