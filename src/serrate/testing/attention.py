"""The conformance suite of jagged attention, written once: any call, any implementation, against the float64 oracle.

`dense` is plain torch in the dtype of its inputs: one softmax of all queries over all keys, with a mask that is written
out pair by pair. It checks the oracle in float64, and in low precision its error sets the budget of an implementation.
"""

import math
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
from ..ops.dropout import kept
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
                cross=case.dense is not None or case.kv_lengths is not None, dropout=case.dropout > 0, with_lse=lse,
                pointwise=case.activation != "softmax", biased=case.reach + case.buckets > 0)


def unusable(name: str, call: Call) -> str | None:
    """Return why an implementation cannot serve a call."""
    return next(each for each in implementations("attention") if each.name == name).unusable(call)


def gives_lse(name: str, case: Case, tensors: tuple[Tensor, ...]) -> bool:
    """Return whether an implementation gives the log-sum-exp of this case, which only a softmax has."""
    return case.activation == "softmax" and unusable(name, call_of(case, tensors, lse=True)) is None


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


def plain_bias(case: Case, tables: tuple[Tensor, ...], queries: int, keys: int) -> Tensor | float:
    """Return what `Bias`'s words add to the scores of all pairs, `(H, T, S)` or `(1, T, S)`: pair by pair."""
    if not tables:
        return 0.0
    bias = case.bias(tables)
    assert bias is not None
    places, buckets = index_of_pairs(case)
    total = 0.0
    for table, index in ((bias.position, places), (bias.time, buckets)):
        if table is not None:
            total = total + torch.atleast_2d(table)[:, index.to(table.device)]
    return total


@cache
def index_of_pairs(case: Case) -> tuple[Tensor, Tensor]:
    """Return which entries of a table of positions and one of times all pairs take, `(T, S)` int64 each."""
    key_lengths = case.lengths if case.kv_lengths is None else case.kv_lengths
    query_lengths = case.lengths if case.dense is None else [case.dense] * len(case.lengths)
    places = torch.zeros(sum(query_lengths), sum(key_lengths), dtype=torch.int64)
    buckets = places.clone()
    bias = case.bias(case.tables())
    times = None if bias is None else bias.key_times
    asked = times if bias is None or bias.query_times is None else bias.query_times.flatten()
    q = k = 0
    for row, (m, n) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        counts = case.mask.targets
        history = max(n - (int(counts[row]) if isinstance(counts, Tensor) else counts or 0), 0)
        for i in range(m):
            for j in range(n):
                distance = min(n - m + i, history) - min(j, history)
                places[q + i, k + j] = max(-case.reach + 1, min(case.reach - 1, distance)) + case.reach - 1
                if case.buckets and times is not None and asked is not None:
                    apart = abs(int(asked[q + i] - times[k + j]))
                    buckets[q + i, k + j] = min(bucket_of(apart), case.buckets - 1)
        q, k = q + m, k + n
    return places, buckets


def bucket_of(difference: int) -> int:
    """Return the bucket of a difference in time: of its 12 leading bits."""
    beyond = max(difference.bit_length() - 12, 0)
    return math.floor(math.log(max(difference >> beyond << beyond, 1)) / 0.301)


def dense(case: Case, q: Tensor, k: Tensor, v: Tensor, *tables: Tensor,
          scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp as `attention` does, from the scores `(H, T, S)` of all pairs."""
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    heads = q.shape[-2]
    query = q.reshape(-1, *q.shape[-2:])
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    seen = visible(case).to(q.device)
    scores = torch.einsum("ihd,jhd->hij", query, k) * factor
    scores = scores + plain_bias(case, tuple(table.to(q.dtype) for table in tables), len(query), len(k))
    weights = _plain_weights(case, scores, seen)
    if case.dropout:
        seed = torch.tensor(case.arguments()["weights"].seed, device=q.device)
        places = (torch.arange(len(x), device=q.device) for x in (query, k))
        weights = weights * kept(seed, case.dropout, heads, *places) / (1 - case.dropout)
    lse = scores.masked_fill(~seen, -torch.inf).logsumexp(-1).T
    return torch.einsum("hij,jhd->ihd", weights, v).reshape(*q.shape[:-1], v.shape[2]), lse.reshape(q.shape[:-1])


def _plain_weights(case: Case, scores: Tensor, seen: Tensor) -> Tensor:
    """Return the weights `(H, T, S)` of scores, 0 of what is not seen."""
    if case.activation == "softmax":
        blind = ~seen.any(-1, keepdim=True)
        return scores.masked_fill(~seen & ~blind, -torch.inf).softmax(-1) * seen
    activations = {"silu": lambda x: x * x.sigmoid(), "gelu": torch.nn.functional.gelu,
                   "relu_squared": lambda x: x.clamp(min=0) ** 2, "identity": lambda x: x}
    return activations[case.activation](scores) * seen / divisors(case).to(scores)


def divisors(case: Case) -> Tensor:
    """Return what the weights of each query are divided by, `(T, 1)`."""
    keys = torch.tensor(case.lengths if case.kv_lengths is None else case.kv_lengths, dtype=torch.float64)
    if case.normaliser == "length":
        counts = case.mask.targets
        history = (keys - (0 if counts is None else counts)).clamp(min=1)
    else:
        history = torch.full_like(keys, case.normaliser or 1.0)
    queries = torch.tensor(case.lengths if case.dense is None else [case.dense] * len(keys), dtype=torch.int64)
    return history.repeat_interleave(queries)[:, None]


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
    """Strategy for small cases of every shape, mask, grouping, width, activation and bias, dropping or not."""
    rows = draw(lengths(max_rows=5, max_length=8))
    shape = draw(st.sampled_from(("self", "cross", "target", "pooling")))
    activation = draw(st.sampled_from(("softmax", "softmax", "silu", "gelu", "relu_squared", "identity")))
    normaliser = None if activation == "softmax" else draw(st.sampled_from((None, 20.0, "length")))
    keys = draw(lengths(max_rows=len(rows), min_rows=len(rows), max_length=8)) if shape == "cross" else None
    heads, kv_heads = draw(st.sampled_from(((1, 1), (2, 2), (4, 2), (3, 1))))
    return Case("drawn", tuple(rows), heads, draw(st.integers(1, 9)), draw(masks(len(rows))),
                kv_lengths=None if keys is None else tuple(keys), shared=shape == "pooling", kv_heads=kv_heads,
                dense=draw(st.integers(0, 4)) if shape in ("target", "pooling") else None,
                value_width=draw(st.integers(1, 9)), dropout=draw(st.sampled_from((0.0, 0.0, 0.4))),
                activation=activation, normaliser=normaliser, reach=draw(st.sampled_from((0, 0, 1, 4, 20))),
                buckets=draw(st.sampled_from((0, 0, 1, 50))), apart=draw(st.booleans()))


# --- one call, held to the promise ---


@dataclass(frozen=True)
class Result:
    """What a call gave: the output, the log-sum-exp where it was asked for, all gradients end to end.

    grads: of q, k and v; table_grads: of the tables of bias.
    """

    out: Tensor
    lse: Tensor | None
    grads: Tensor
    table_grads: Tensor


def with_gradients(compute: Callable[..., Tensor | tuple[Tensor, Tensor]], tensors: tuple[Tensor, ...],
                   dtype: torch.dtype | None = None, tables: tuple[Tensor, ...] = ()) -> Result:
    """Run `compute(q, k, v, *tables)`, which gives an output and perhaps a log-sum-exp, and its backward pass.

    The gradients that come in are random, the same for all dtypes; `dtype` is that of the tensors where None.
    """
    if tensors[0].dtype == torch.float64:
        dtype = torch.float64
    leaves = tuple(x.detach().to(dtype or x.dtype).requires_grad_() for x in (*tensors, *tables))
    result = compute(*leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    generator = torch.Generator().manual_seed(9)
    incoming = [torch.randn(x.shape, generator=generator).to(x.device, tensors[0].dtype).to(x.dtype) for x in outputs]
    grads = [grad.flatten() for grad in torch.autograd.grad(outputs, leaves, incoming)]
    of_tables = torch.cat(grads[3:]) if tables else grads[0].new_zeros(0)
    return Result(outputs[0].detach(), outputs[1].detach() if len(outputs) == 2 else None, torch.cat(grads[:3]),
                  of_tables)


def run(name: str, case: Case, tensors: tuple[Tensor, ...], *, lse: bool = False, scale: float | None = None,
        dtype: torch.dtype | None = None, offsets_dtype: torch.dtype = torch.int64) -> Result:
    """Attend by an implementation, forward and backward; see `with_gradients`."""
    device = str(tensors[0].device)
    offsets = case.tensors(device=device, offsets_dtype=offsets_dtype)[3]

    def compute(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        arguments = case.arguments(device, offsets_dtype, tables)
        return attention(q, k, v, offsets, scale=scale, return_lse=lse, implementation=name, **arguments)

    return with_gradients(compute, tensors, dtype, case.tables(device))


def check(name: str, case: Case, tensors: tuple[Tensor, ...], *, scale: float | None = None,
          extreme: bool = False) -> Result:
    """Hold an implementation to the numerics promise: output, log-sum-exp where it serves that, and gradients.

    A backward pass recomputes the weights as exp(score - logsumexp), both rounded to float32 at the size of the
    scores. Where scores are `extreme`, or the plain softmax happens to be exact because a mask leaves one key, that and
    not the plain computation bounds the gradients in float32.
    """
    usable(name, case, tensors)
    lse = gives_lse(name, case, tensors)
    actual = run(name, case, tensors, lse=lse, scale=scale)
    oracle = run("reference", case, tensors, lse=lse, scale=scale, dtype=torch.float64)
    assert actual.out.dtype == tensors[0].dtype
    if actual.out.dtype == torch.float64:
        torch.testing.assert_close(vars(actual), vars(oracle), rtol=1e-12, atol=1e-12, check_dtype=False)
        return actual

    def plainly(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out, logsumexp = dense(case, q, k, v, *tables, scale=scale)
        return (out, logsumexp) if lse else out

    plain = with_gradients(plainly, tensors, tables=case.tables(str(tensors[0].device)))
    assert_within_budget(actual.out, oracle.out, plain.out)
    rounding = 0.0
    if extreme or call_of(case, tensors).beyond_plain():
        rounding = 2 * ulp(torch.float32, largest_score(case, tensors, scale))
    for told, found, exact, rough in (("gradients", actual.grads, oracle.grads, plain.grads),
                                      ("gradients of tables", actual.table_grads, oracle.table_grads,
                                       plain.table_grads)):
        budget = error_budget(exact, rough, found.dtype, gradient=True)
        budget += rounding * float(exact.abs().max()) if rounding and exact.numel() else 0.0
        error = largest_error(found, exact)
        assert error <= budget, f"{told}: error {error:.3e} is over the budget {budget:.3e}"
    if actual.lse is not None and oracle.lse is not None:
        exact = dense(case, *_floats(tensors), *case.tables(str(tensors[0].device)), scale=scale)[1]
        _check_lse(actual.lse, oracle.lse, exact, rounding, actual.out.dtype)
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
