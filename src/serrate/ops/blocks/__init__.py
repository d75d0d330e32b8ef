"""Square blocks of rows: a number for every pair of events of a row, made, weighed and applied without padding."""

from .. import select
from . import cpu, reference, triton
from .api import (
    Call,
    Rows,
    block_differences,
    block_matmul,
    block_multiply,
    block_offsets,
    block_products,
    block_softmax,
    from_padded_blocks,
    to_padded_blocks,
)

for _name in ("offsets", "products", "matmul", "softmax", "differences", "multiply", "to_padded", "from_padded"):
    select.register(f"{_name}_blocks" if "padded" in _name else f"block_{_name}", [
        select.Implementation("triton", getattr(triton.OPERATORS, _name), triton.unusable),
        select.Implementation("cpu", getattr(cpu.OPERATORS, _name), cpu.unusable),
        select.Implementation("reference", getattr(reference, _name), reference.unusable),
    ])

__all__ = ["Call", "Rows", "block_differences", "block_matmul", "block_multiply", "block_offsets", "block_products",
           "block_softmax", "from_padded_blocks", "to_padded_blocks"]
