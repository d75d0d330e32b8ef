"""Products of jagged rows with a matrix each, and of two jagged tensors row by row."""

from .. import select
from . import cpu, reference, triton
from .api import Call, jagged_dense_bmm, jagged_jagged_bmm

select.register("jagged_dense_bmm", [
    select.Implementation("triton", triton.jagged_dense_bmm, triton.unusable),
    select.Implementation("cpu", cpu.jagged_dense_bmm, cpu.unusable),
    select.Implementation("reference", reference.jagged_dense_bmm, reference.unusable),
])
select.register("jagged_jagged_bmm", [
    select.Implementation("triton", triton.jagged_jagged_bmm, triton.unusable),
    select.Implementation("cpu", cpu.jagged_jagged_bmm, cpu.unusable),
    select.Implementation("reference", reference.jagged_jagged_bmm, reference.unusable),
])

__all__ = ["Call", "jagged_dense_bmm", "jagged_jagged_bmm"]
