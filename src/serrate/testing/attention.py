"""The conformance suite of jagged attention, written once: any call, any implementation, against the float64 oracle.

`dense` is plain torch in the dtype of its inputs: one softmax of all queries over all keys, with a mask that is written
out pair by pair. It checks the oracle in float64, and in low precision its error sets the budget of an implementation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from ..ops import implementations
from ..ops.attention import Call, Mask, attention
from ..ops.attention.cases import Case
from ..ops.attention.dropout import kept
from .budget import assert_within_budget, error_budget, largest_error, ulp
from .strategies import lengths

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("attention")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def low_dtype(name: str) -> torch.dtype:
    """Return a dtype that the implementation serves somewhere: varlen knows half precision only."""
    return torch.float16 if name == "varlen" else torch.float32


def call_of(case: Case, tensors: tuple[Tensor, ...], *, lse: bool = False) -> Call:
    """Return what the case with these `q, k, v` asks of an implementation, with `lse` the log-sum-exp too."""
    q, k, v = tensors
    return Call(q.device, q.dtype, q.shape[-1], v.shape[2], case.mask, grouped=q.shape[-2] != k.shape[1],
                cross=case.dense is not None or case.kv_lengths is not None, dropout=case.dropout > 0, with_lse=lse)


def unusable(name: str, call: Call) -> str | None:
    """Return why an implementation cannot serve a call."""
    return next(each for each in implementations("attention") if each.name == name).unusable(call)


def usable(name: str, case: Case, tensors: tuple[Tensor, ...], *, lse: bool = False) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the case; see `call_of`."""
    reason = unusable(name, call_of(case, tensors, lse=lse))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


# --- the plain computation ---


def sees(mask: Mask, query: int, key: int, *, keys: int, context: int = 0, targets: int = 0) -> bool:
    """Return whether the query at a position sees a key, in a row of so many keys: `Mask`'s words, pair by pair."""
    history = max(keys - targets, 0)
    if key >= history:
        return query == key  # a target
    if key < context:
        return True
    if query > history:
        query = history  # where targets stand as queries
    left, right = mask.window
    too_late = mask.causal and key > query
    too_far = (left is not None and query - key > left) or (right is not None and key - query > right)
    elsewhere = mask.block is not None and query // mask.block != key // mask.block
    return not (too_late or too_far or elsewhere)


@cache
def visible(case: Case) -> Tensor:
    """Return which key each query of the batch sees, `(T, S)` bool, dense queries packed."""
    keys = case.lengths if case.kv_lengths is None else case.kv_lengths
    queries = case.lengths if case.dense is None else [case.dense] * len(keys)
    blocks = []
    for row, (m, n) in enumerate(zip(queries, keys, strict=True)):
        context, targets = (int(counts[row]) if isinstance(counts, Tensor) else counts or 0
                            for counts in (case.mask.context, case.mask.targets))
        pairs = [[sees(case.mask, n - m + i, j, keys=n, context=context, targets=targets) for j in range(n)]
                 for i in range(m)]
        blocks.append(torch.tensor(pairs, dtype=torch.bool).reshape(m, n))
    return torch.block_diag(*blocks).bool() if blocks else torch.zeros(0, 0, dtype=torch.bool)


def largest_score(case: Case, tensors: tuple[Tensor, ...], scale: float | None = None) -> float:
    """Return how large scores of any pair are, in magnitude."""
    q, k = (x.detach().double() for x in tensors[:2])
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    query, key = q.reshape(-1, *q.shape[-2:]), k.repeat_interleave(q.shape[-2] // k.shape[1], 1)
    scores = torch.einsum("ihd,jhd->hij", query, key)
    return float(scores.abs().amax()) * abs(factor) if scores.numel() else 0.0


def dense(case: Case, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp as `attention` does, from the scores `(H, T, S)` of all pairs."""
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    heads = q.shape[-2]
    query = q.reshape(-1, *q.shape[-2:])
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    seen = visible(case).to(q.device)
    blind = ~seen.any(-1, keepdim=True)
    scores = torch.einsum("ihd,jhd->hij", query, k) * factor
    weights = scores.masked_fill(~seen & ~blind, -torch.inf).softmax(-1) * seen
    if case.dropout:
        seed = torch.tensor(case.arguments()["seed"], device=q.device)
        places = (torch.arange(len(x), device=q.device) for x in (query, k))
        weights = weights * kept(seed, case.dropout, heads, *places) / (1 - case.dropout)
    lse = scores.masked_fill(~seen, -torch.inf).logsumexp(-1).T
    return torch.einsum("hij,jhd->ihd", weights, v).reshape(*q.shape[:-1], v.shape[2]), lse.reshape(q.shape[:-1])


# --- any call ---


@st.composite
def masks(draw: st.DrawFn, rows: int) -> Mask:
    """Strategy for masks of a batch of so many rows; limits and counts go up to 6."""
    number = st.integers(0, 6)
    limit = st.none() | number
    counts = limit | st.lists(number, min_size=rows, max_size=rows).map(lambda x: torch.tensor(x, dtype=torch.int64))
    return Mask(draw(st.booleans()), (draw(limit), draw(limit)), draw(st.none() | st.integers(1, 6)),
                draw(counts), draw(counts))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Strategy for small cases of every shape, mask, grouping and width, with and without dropout."""
    rows = draw(lengths(max_rows=5, max_length=8))
    shape = draw(st.sampled_from(("self", "cross", "target", "pooling")))
    keys = draw(lengths(max_rows=len(rows), min_rows=len(rows), max_length=8)) if shape == "cross" else None
    heads, kv_heads = draw(st.sampled_from(((1, 1), (2, 2), (4, 2), (3, 1))))
    return Case("drawn", tuple(rows), heads, draw(st.integers(1, 9)), draw(masks(len(rows))),
                kv_lengths=None if keys is None else tuple(keys), shared=shape == "pooling", kv_heads=kv_heads,
                dense=draw(st.integers(0, 4)) if shape in ("target", "pooling") else None,
                value_width=draw(st.integers(1, 9)), dropout=draw(st.sampled_from((0.0, 0.0, 0.4))))


# --- one call, held to the promise ---


@dataclass(frozen=True)
class Result:
    """What a call gave: the output, the log-sum-exp where it was asked for, all gradients end to end."""

    out: Tensor
    lse: Tensor | None
    grads: Tensor


def with_gradients(compute: Callable[..., Tensor | tuple[Tensor, Tensor]], tensors: tuple[Tensor, ...],
                   dtype: torch.dtype | None = None) -> Result:
    """Run `compute(q, k, v)`, which gives an output and perhaps a log-sum-exp, and its backward pass.

    The gradients that come in are random, the same for all dtypes; `dtype` is that of the tensors where None.
    """
    leaves = tuple(x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors)
    result = compute(*leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    generator = torch.Generator().manual_seed(9)
    incoming = [torch.randn(x.shape, generator=generator).to(x.device, tensors[0].dtype).to(x.dtype) for x in outputs]
    grads = torch.cat([grad.flatten() for grad in torch.autograd.grad(outputs, leaves, incoming)])
    return Result(outputs[0].detach(), outputs[1].detach() if len(outputs) == 2 else None, grads)


def run(name: str, case: Case, tensors: tuple[Tensor, ...], *, lse: bool = False, scale: float | None = None,
        dtype: torch.dtype | None = None, offsets_dtype: torch.dtype = torch.int64) -> Result:
    """Attend by an implementation, forward and backward; see `with_gradients`."""
    device = str(tensors[0].device)
    offsets = case.tensors(device=device, offsets_dtype=offsets_dtype)[3]
    arguments = case.arguments(device, offsets_dtype)
    return with_gradients(
        lambda q, k, v: attention(q, k, v, offsets, scale=scale, return_lse=lse, implementation=name, **arguments),
        tensors, dtype)


def check(name: str, case: Case, tensors: tuple[Tensor, ...], *, scale: float | None = None,
          extreme: bool = False) -> Result:
    """Hold an implementation to the numerics promise: output, log-sum-exp where it serves that, and gradients.

    A backward pass recomputes the weights as exp(score - logsumexp), both rounded to float32 at the size of the
    scores. Where scores are `extreme`, or the plain softmax happens to be exact because a mask leaves one key, that and
    not the plain computation bounds the gradients in float32.
    """
    usable(name, case, tensors)
    lse = unusable(name, call_of(case, tensors, lse=True)) is None
    actual = run(name, case, tensors, lse=lse, scale=scale)
    oracle = run("reference", case, tensors, lse=lse, scale=scale, dtype=torch.float64)
    assert actual.out.dtype == tensors[0].dtype
    if actual.out.dtype == torch.float64:
        torch.testing.assert_close(vars(actual), vars(oracle), rtol=1e-12, atol=1e-12)
        return actual

    def plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return dense(case, q, k, v, scale) if lse else dense(case, q, k, v, scale)[0]

    plain = with_gradients(plainly, tensors)
    assert_within_budget(actual.out, oracle.out, plain.out)
    rounding = 0.0
    if extreme or call_of(case, tensors).beyond_plain():
        rounding = 2 * ulp(torch.float32, largest_score(case, tensors, scale))
    budget = error_budget(oracle.grads, plain.grads, actual.grads.dtype, gradient=True)
    budget += rounding * float(oracle.grads.abs().max()) if rounding and oracle.grads.numel() else 0.0
    error = largest_error(actual.grads, oracle.grads)
    assert error <= budget, f"gradients: error {error:.3e} is over the budget {budget:.3e}"
    if actual.lse is not None and oracle.lse is not None:
        _check_lse(actual.lse, oracle.lse, dense(case, *_floats(tensors), scale)[1], rounding, actual.out.dtype)
    return actual


def _floats(tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.detach().float() for x in tensors)
    return q, k, v


def _check_lse(actual: Tensor, oracle: Tensor, plain: Tensor, rounding: float, dtype: torch.dtype) -> None:
    """Half precision or not, the log-sum-exp is held to the plain computation in float32.

    Two allowances: kernels count in base 2, and the change of base is one rounding more; torch's kernel for half
    precision on the CPU takes exponentials that are good to 1e-4 only, which is far less than a log-sum-exp kept in
    half precision would lose.
    """
    assert actual.dtype == torch.float32
    finite = oracle[oracle.isfinite()]
    budget = error_budget(oracle, plain, torch.float32) + rounding
    budget += ulp(torch.float32, float(finite.abs().max())) if finite.numel() else 0.0
    budget += torch.finfo(torch.float16).eps / 8 if dtype != torch.float32 else 0.0
    error = largest_error(actual, oracle)
    assert error <= budget, f"log-sum-exp: error {error:.3e} is over the budget {budget:.3e}"
