"""Rows to one event each: sum, mean, max, log-sum-exp, weighted; and softmax, top n and unique ids within a row."""

from .. import select
from . import cpu, reference, sorting, triton
from .api import Call, Unique, pool, softmax, top_n, unique

select.register("pool", [
    select.Implementation("triton", triton.pool, triton.unusable),
    select.Implementation("cpu", cpu.pool, cpu.unusable),
    select.Implementation("reference", reference.pool, reference.unusable),
])
select.register("softmax", [
    select.Implementation("triton", triton.softmax, triton.unusable),
    select.Implementation("cpu", cpu.softmax, cpu.unusable),
    select.Implementation("reference", reference.softmax, reference.unusable),
])
select.register("top_n", [
    select.Implementation("sort", sorting.top_n, sorting.unusable),
    select.Implementation("reference", reference.top_n, reference.unusable),
])
select.register("unique", [
    select.Implementation("sort", sorting.unique, sorting.unusable),
    select.Implementation("reference", reference.unique, reference.unusable),
])

__all__ = ["Call", "Unique", "pool", "softmax", "top_n", "unique"]
