"""Jagged rows joined, split and padded: events moved in one pass."""

from .. import select
from . import cpu, reference, triton
from .api import Call, concatenate, from_padded, split, to_padded

for _name in ("concatenate", "split", "to_padded", "from_padded"):
    select.register(_name, [
        select.Implementation("triton", getattr(triton, _name), triton.unusable),
        select.Implementation("cpu", getattr(cpu, _name), cpu.unusable),
        select.Implementation("reference", getattr(reference, _name), reference.unusable),
    ])

__all__ = ["Call", "concatenate", "from_padded", "split", "to_padded"]
