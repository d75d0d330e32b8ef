"""The sums of the gradients of tables of bias: whole numbers of a unit that no sum can overflow, found on the device.

A gradient of a score is at most as large as the longest gradient of an output times the longest value: one kernel finds
those and clears the sums, one finds the unit, and at the end one makes numbers of the sums.
"""

# ruff: noqa: N803

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import power_of_two
from ..weights import ACTIVATIONS
from .problem import LOG2_E, Problem
from .weigh import share_of

COPIES = 64  # of each sum, so that few programs at a time add to the same one
_BITS = 21  # of what a pair adds to a table in shared memory, in half precision
_ENTRIES = 32  # of a table, whose sums one program brings together
_PARTS = 1024  # programs, at most, that share a first look at all there is


class Tables:
    """The sums of the gradients of a problem's tables, int64.

    In float32 a pair may give them more than 22 bits, which shared memory has no room for.

    Args:
        grads: of the output, contiguous, and of the log-sum-exp, where that has one.
        inputs: q, k and v, whose last stride is 1.
        problem: whose tables.
    """

    def __init__(self, grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem):
        (grad, grad_lse), (q, k, v) = grads, inputs
        width, heads = v.shape[2], q.shape[-2]
        vectors = (v.shape[0] * v.shape[1], grad.numel() // width)
        tables = (problem.position, problem.time)
        block = power_of_two(width)
        rows = 4096 // block
        count = min(_PARTS, -(-max(*vectors, rows) // rows))
        self._sums = [None if table is None else v.new_empty((COPIES, table.numel()), dtype=torch.int64)
                      for table in tables]
        self._unit = v.new_empty((1 + 3 * count,), dtype=torch.float32)  # and behind it what it is found of
        sizes = [0 if table is None else table.numel() for table in tables]
        _look[(count,)](v, grad, self._unit, *self._sums, problem.queries, problem.keys, problem.targets, *vectors,
                        *(COPIES * size for size in sizes), problem.keys.shape[0] - 1, q.shape[1], v.stride(0),
                        v.stride(1), v.shape[1], width, block, rows, problem.normaliser == 0, num_warps=4)
        _find_unit[(1,)](self._unit, count, _growth(q, k, problem), None if grad_lse is None else grad_lse.abs().amax(),
                         (2 / (1 - problem.dropout), LOG2_E, share_of(problem), float(heads)),
                         None if q.dtype == torch.float32 else _BITS, power_of_two(count), num_warps=4)
        self.sums: tuple = (COPIES, self._unit, self._sums[0], sizes[0], self._sums[1], sizes[1])
        self._tables, self._sizes = tables, sizes

    def gradients(self) -> list[Tensor]:
        """Return the gradient of each table that there is, `(H, N)` or `(1, N)` float32."""
        found = [None if table is None else torch.empty_like(table) for table in self._tables]
        programs = [-(-size // _ENTRIES) for size in self._sizes]
        _divide[(sum(programs),)](*self._sums, self._unit, *found, *self._sizes, programs[0], COPIES, _ENTRIES,
                                  num_warps=4)
        return [each for each in found if each is not None]


def _growth(q: Tensor, k: Tensor, problem: Problem) -> Tensor | None:
    """Return by what weights may change faster than scores, () float32, where it is more than 1.13 times.

    That is as fast as silu and gelu change; relu_squared does twice the score times as fast.
    """
    if problem.activation != ACTIVATIONS.index("relu_squared"):
        return None
    longest = [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax() for x in (q, k)]
    return sum((table.abs().amax() for table in problem.tables), start=longest[0] * longest[1] * problem.scale)


@triton.jit
def _longest(source, first, count, step, stride_t, stride_h, H, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr):
    """The square of the longest of vectors of H heads, `N` at a time from `first` on in steps."""
    d = tl.arange(0, BD)
    most = tl.zeros([N], tl.float32)
    for n in range(first, count, step):
        i = (n + tl.arange(0, N)).to(tl.int64)
        at = i // H * stride_t + i % H * stride_h
        x = tl.load(source + at[:, None] + d[None, :], mask=(i < count)[:, None] & (d < D)[None, :], other=0.0)
        x = x.to(tl.float32)
        most = tl.maximum(most, tl.sum(x * x, 1))
    return tl.max(most)


@launched
@triton.jit(do_not_specialize=["of_values", "of_grad", "of_positions", "of_times", "rows", "dense"])
def _look(v, grad, unit, positions, times, queries, keys, targets, of_values, of_grad, of_positions, of_times, rows,
          dense, stride_t, stride_h, G, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, LENGTH: tl.constexpr):
    """The longest value and gradient, squared, and how many pairs there are, each program of its part.

    They are stored behind the unit, (3, programs). LENGTH: pairs are divided by the length of their row's history. The
    sums are set to 0.
    """
    pid = tl.program_id(0)
    count = tl.num_programs(0)
    parts = unit + 1
    tl.store(parts + pid, _longest(v, pid * N, of_values, count * N, stride_t, stride_h, G, D, BD, N))
    tl.store(parts + count + pid, _longest(grad, pid * N, of_grad, count * N, D, 0, 1, D, BD, N))
    pairs = tl.zeros([128], tl.float32)
    for n in range(pid * 128, rows, count * 128):
        b = n + tl.arange(0, 128)
        k = (tl.load(keys + b + 1, mask=b < rows, other=0) - tl.load(keys + b, mask=b < rows, other=0)).to(tl.float32)
        if queries is None:
            q = dense.to(tl.float32)
        else:
            q = tl.load(queries + b + 1, mask=b < rows, other=0) - tl.load(queries + b, mask=b < rows, other=0)
            q = q.to(tl.float32)
        if LENGTH:
            history = k
            if targets is not None:
                history -= tl.load(targets + b, mask=b < rows, other=0).to(tl.float32)
            k /= tl.maximum(history, 1.0)
        pairs += k * q
    tl.store(parts + 2 * count + pid, tl.sum(pairs))
    _clear(positions, of_positions, pid, count)
    _clear(times, of_times, pid, count)


@triton.jit
def _clear(sums, size, pid, count):
    """Set the sums of a table to 0, each program its part."""
    if sums is not None:
        for n in range(pid * 512, size, count * 512):
            at = n + tl.arange(0, 512)
            tl.store(sums + at, tl.zeros([512], tl.int64), mask=at < size)


@launched
@triton.jit(do_not_specialize=["count"])
def _find_unit(unit, count, growth, grad_lse, factors, BITS: tl.constexpr, N: tl.constexpr):
    """The unit: the largest power of two, up to 2^100, of which no sum has 2^62 and no pair gives more than 2^BITS.

    A softmax gives a score its weight times the difference of two gradients, and that of the log-sum-exp.
    """
    i = tl.arange(0, N)
    parts = unit + 1
    v = tl.max(tl.load(parts + i, mask=i < count, other=0.0))
    grad = tl.max(tl.load(parts + count + i, mask=i < count, other=0.0))
    pairs = tl.sum(tl.load(parts + 2 * count + i, mask=i < count, other=0.0))
    # a vector counts as 1e-18 long at least, whose square is no 0 yet
    pair = factors[0] * tl.sqrt(tl.maximum(v, 1e-36)) * tl.sqrt(tl.maximum(grad, 1e-36))
    if growth is not None:
        pair *= tl.load(growth)
    if grad_lse is not None:
        pair += factors[1] * tl.load(grad_lse)
    pair *= factors[2]
    most = 4.611686018427388e18 / (pair * factors[3] * tl.maximum(pairs, 1.0))
    if BITS is not None:
        most = tl.minimum(most, (1 << BITS) / pair)
    exponent = tl.minimum(tl.maximum(tl.floor(tl.log2(most)), -126.0), 100.0).to(tl.int32)
    tl.store(unit, ((exponent + 127) << 23).to(tl.float32, bitcast=True))


@launched
@triton.jit(do_not_specialize=["of_positions", "of_times", "first"])
def _divide(positions, times, unit, to_positions, to_times, of_positions, of_times, first, COPIES: tl.constexpr,
            N: tl.constexpr):
    """The gradients of the tables from the copies of their sums, (COPIES, size); the first programs are for positions.
    """
    pid = tl.program_id(0)
    if pid < first:
        _divide_one(positions, unit, to_positions, of_positions, pid, COPIES, N)
    else:
        _divide_one(times, unit, to_times, of_times, pid - first, COPIES, N)


@triton.jit
def _divide_one(sums, unit, target, size, pid, COPIES: tl.constexpr, N: tl.constexpr):
    """The gradients of N entries of a table."""
    if sums is not None:
        n = pid * N + tl.arange(0, N)
        copies = tl.arange(0, COPIES)[:, None].to(tl.int64) * size
        total = tl.sum(tl.load(sums + copies + n[None, :], mask=(n < size)[None, :], other=0), 0)
        tl.store(target + n, (total.to(tl.float64) / tl.load(unit).to(tl.float64)).to(tl.float32), mask=n < size)
