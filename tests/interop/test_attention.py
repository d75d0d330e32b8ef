"""The calls of other libraries: the numbers of ours and of plain torch row by row, and every refusal word for word.

The published signatures are written out here, since the libraries themselves need a GPU.
"""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from serrate.errors import InvalidArgument
from serrate.interop import flash_attn_varlen_func, nested_attention, varlen_attn
from serrate.interop.attention import VarlenOptions
from serrate.jagged import JaggedTensor, offsets_from_lengths, to_nested
from serrate.ops.attention import Mask, Weights, attention

SELF = (5, 0, 1, 9)
QUERIES, KEYS = (2, 3, 0, 4, 5), (5, 0, 3, 4, 2)  # fewer, none to see, none to ask, as many, more


def tensors(queries=SELF, keys=SELF, heads=(4, 4), widths=(8, 8)) -> tuple[Tensor, ...]:
    """Return q `(T, H, D)`, k `(S, G, D)`, v `(S, G, Dv)` in float64 that want gradients, and both offsets, int32."""
    generator = torch.Generator().manual_seed(sum(queries) + 7 * sum(keys))
    (ours, theirs), (width, value_width) = heads, widths
    shapes = ((sum(queries), ours, width), (sum(keys), theirs, width), (sum(keys), theirs, value_width))
    qkv = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    offsets = offsets_from_lengths(torch.tensor(queries, dtype=torch.int32))
    return (*qkv, offsets, offsets if keys == queries else offsets_from_lengths(torch.tensor(keys, dtype=torch.int32)))


def nested(values: Tensor, offsets: Tensor) -> Tensor:
    """`(T, H, D)` → `(B, H, ragged, D)`."""
    return torch.nested.nested_tensor_from_jagged(values, offsets).transpose(1, 2)


def row_by_row(q: Tensor, k: Tensor, v: Tensor, ours: Tensor, theirs: Tensor, *, causal: bool = False,
               window: tuple[int, int] = (-1, -1), scale: float | None = None) -> Tensor:
    """Torch's own attention, one row at a time; the last query stands at the last key."""
    rows = []
    for query, key, value in zip(*(x.split(o.diff().tolist()) for x, o in ((q, ours), (k, theirs), (v, theirs))),
                                 strict=True):
        at = torch.arange(len(query))[:, None] + len(key) - len(query)
        far = torch.arange(len(key))[None, :] - at  # above 0: to the right of the query
        left, right = window[0], 0 if causal else window[1]
        seen = ((far >= -left) | (left < 0)) & ((far <= right) | (right < 0))
        shared = q.shape[1] // k.shape[1]
        key, value = (x.repeat_interleave(shared, 1).transpose(0, 1) for x in (key, value))
        out = F.scaled_dot_product_attention(query.transpose(0, 1), key, value, attn_mask=seen, scale=scale)
        rows.append(torch.where(seen.any(1)[:, None], out, 0.0).transpose(0, 1))
    return torch.cat(rows)


def assert_same(out: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)
    got, want = (torch.autograd.grad(result, leaves, weights) for result in (out, expected))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


BATCHES = pytest.mark.parametrize(("queries", "keys"), [(SELF, SELF), (QUERIES, KEYS)], ids=["self", "cross"])


# --- flash_attn_varlen_func ---


def test_the_signature_is_flash_attentions():
    published = {"dropout_p": 0.0, "softmax_scale": None, "causal": False, "window_size": (-1, -1), "softcap": 0.0,
                 "alibi_slopes": None, "deterministic": False, "return_attn_probs": False, "block_table": None}
    needed = ["q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    parameters = inspect.signature(flash_attn_varlen_func).parameters

    assert list(parameters) == [*needed, *published]
    assert {name: parameters[name].default for name in published} == published
    assert {one.kind for one in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@BATCHES
@pytest.mark.parametrize(("causal", "window"), [(False, (-1, -1)), (True, (-1, -1)), (False, (2, 1)), (True, (2, -1)),
                                                (True, (1, 5)), (False, (-1, 0)), (False, (0, 0)), (False, (-1, 2))])
def test_flash_attention_is_torchs_own_row_by_row(queries, keys, causal, window):
    *qkv, ours, theirs = tensors(queries, keys)
    out = flash_attn_varlen_func(*qkv, ours, theirs, 9, 9, causal=causal, window_size=window)
    assert_same(out, row_by_row(*qkv, ours, theirs, causal=causal, window=window), tuple(qkv))


@BATCHES
def test_flash_attention_is_ours(queries, keys):
    *qkv, ours, theirs = tensors(queries, keys)
    mask = Mask(causal=True, window=(3, None))
    expected = attention(*qkv, ours, kv_offsets=theirs, mask=mask, scale=0.3, implementation="reference")
    given = flash_attn_varlen_func(*qkv, ours, theirs, 9, 9, 0.0, 0.3, True, (3, -1))
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)


def test_flash_attention_groups_heads_and_takes_values_of_another_width():
    *qkv, ours, theirs = tensors(QUERIES, KEYS, heads=(6, 2), widths=(8, 5))
    out = flash_attn_varlen_func(*qkv, ours, theirs, 5, 5)
    assert out.shape == (sum(QUERIES), 6, 5)
    assert_same(out, row_by_row(*qkv, ours, theirs), tuple(qkv))


def test_causal_cross_attention_aligns_the_last_query_with_the_last_key():
    # the two matrices of flash-attention's documentation: 2 queries on 5 keys, 5 queries on 2 keys
    for queries, keys, published in ((2, 5, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
                                     (5, 2, [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]])):
        q, k, v = torch.zeros(queries, 1, 1), torch.zeros(keys, 1, 1), torch.eye(keys)[:, None]
        ours, theirs = (torch.tensor([0, count], dtype=torch.int32) for count in (queries, keys))
        out = flash_attn_varlen_func(q, k, v, ours, theirs, queries, keys, causal=True)
        wanted = torch.tensor(published).float()
        torch.testing.assert_close(out[:, 0], wanted / wanted.sum(1, keepdim=True).clamp(min=1))


def test_the_longest_rows_may_be_tensors_and_are_not_read():
    *qkv, ours, theirs = tensors()
    given = flash_attn_varlen_func(*qkv, ours, theirs, torch.empty((), device="meta"), 9)
    assert torch.equal(given, flash_attn_varlen_func(*qkv, ours, theirs, 9, 9))


def test_a_deterministic_backward_may_be_asked_for():
    *qkv, ours, theirs = tensors()
    assert torch.equal(flash_attn_varlen_func(*qkv, ours, theirs, 9, 9, deterministic=True),
                       flash_attn_varlen_func(*qkv, ours, theirs, 9, 9))


def dropped_calls():
    *qkv, ours, theirs = tensors()
    calls = {"flash": lambda p: flash_attn_varlen_func(*qkv, ours, theirs, 9, 9, p),
             "nested": lambda p: nested_attention(*(nested(x, ours) for x in qkv), None, p).transpose(1, 2).values()}
    return [pytest.param(call, qkv, ours, id=name) for name, call in calls.items()]


@pytest.mark.parametrize(("call", "qkv", "offsets"), dropped_calls())
def test_dropout_draws_from_torchs_generator(call, qkv, offsets):
    torch.manual_seed(5)
    first, second = call(0.4), call(0.4)
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, ())
    expected = attention(*qkv, offsets, weights=Weights(dropout=0.4, seed=seed))
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)
    torch.manual_seed(5)
    assert torch.equal(call(0.4), first)
    assert not torch.equal(second, first)
    before = torch.get_rng_state()
    call(0.0)
    assert torch.equal(torch.get_rng_state(), before)  # and none where nothing is dropped


@pytest.mark.parametrize(("options", "message"), [
    ({"softcap": 30.0}, "softcap: expected 0.0, as nothing else is served, got 30.0"),
    ({"alibi_slopes": torch.ones(4)}, "alibi_slopes: expected None, as nothing else is served, got a tensor"),
    ({"return_attn_probs": True}, "return_attn_probs: expected False, as nothing else is served, got True"),
    ({"block_table": torch.zeros(4, 1)}, "block_table: expected None, as nothing else is served, got a tensor"),
    ({"window_size": (-2, 0)},
     "window_size: expected (left, right), each -1 for no limit or 0 and more, got (-2, 0)"),
    ({"window_size": (3,)}, "window_size: expected (left, right), each -1 for no limit or 0 and more, got (3,)"),
    ({"dropout_p": 1.0}, "dropout_p: expected a number from 0 to below 1, got 1.0"),
])
def test_flash_attention_refuses_what_it_does_not_serve(options, message):
    *qkv, ours, theirs = tensors()
    with pytest.raises(InvalidArgument) as caught:
        flash_attn_varlen_func(*qkv, ours, theirs, 9, 9, **options)
    assert str(caught.value) == message


def test_dense_queries_are_not_taken_for_packed_ones():
    q, k, v, ours, theirs = tensors((1, 1), (1, 1))
    with pytest.raises(InvalidArgument) as caught:
        flash_attn_varlen_func(q[:, None], k, v, ours, theirs, 1, 1)
    assert str(caught.value) == "q: expected shape (T, H, D), got (2, 1, 4, 8)"


def test_rows_of_keys_are_not_taken_to_be_those_of_queries():
    *qkv, ours, _ = tensors()
    with pytest.raises(InvalidArgument) as caught:
        flash_attn_varlen_func(*qkv, ours, None, 9, 9)
    assert str(caught.value) == "cu_seqlens_k: expected offsets (B + 1,), got None"


# --- varlen_attn ---


def test_the_signature_is_torchs():
    theirs = inspect.signature(pytest.importorskip("torch.nn.attention.varlen").varlen_attn).parameters
    by_name = [name for name, one in theirs.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    ours = list(inspect.signature(varlen_attn).parameters)
    assert ours[:-1] == [name for name in theirs if name not in by_name]
    assert list(VarlenOptions.__annotations__) == by_name


@BATCHES
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (3, 0), (2, 1)])
def test_varlen_attn_is_torchs_own_row_by_row(queries, keys, window):
    *qkv, ours, theirs = tensors(queries, keys)
    out = varlen_attn(*qkv, ours, theirs, 9, 9, window_size=window, scale=0.2)
    assert_same(out, row_by_row(*qkv, ours, theirs, window=window, scale=0.2), tuple(qkv))


def test_varlen_attn_groups_heads_when_told():
    *qkv, ours, theirs = tensors(heads=(4, 2))
    out = varlen_attn(*qkv, ours, theirs, 9, 9, enable_gqa=True)
    assert_same(out, row_by_row(*qkv, ours, theirs), tuple(qkv))


def test_varlen_attn_takes_a_request_for_nothing():
    *qkv, ours, theirs = tensors()
    nothing = pytest.importorskip("torch.nn.attention.varlen").AuxRequest()
    plain = varlen_attn(*qkv, ours, theirs, 9, 9)
    assert torch.equal(plain, varlen_attn(*qkv, ours, theirs, 9, 9, return_aux=nothing, num_splits=None))


@pytest.mark.parametrize(("options", "message"), [
    ({"seqused_k": torch.ones(4)}, "seqused_k: expected None, as nothing else is served, got a tensor"),
    ({"block_table": torch.ones(4)}, "block_table: expected None, as nothing else is served, got a tensor"),
    ({"num_splits": 1}, "num_splits: expected None, as nothing else is served, got 1"),
    ({"return_aux": True},
     "return_aux: expected None, as attention(..., return_lse=True) is what gives the log-sum-exp, got True"),
    ({"is_causal": True}, "varlen_attn: expected options among return_aux, scale, window_size, enable_gqa, seqused_k, "
                          "block_table, num_splits, got is_causal"),
    ({"windowsize": (1, 1)}, "varlen_attn: expected options among return_aux, scale, window_size, enable_gqa, "
                             "seqused_k, block_table, num_splits (did you mean 'window_size'?), got windowsize"),
])
def test_varlen_attn_refuses_what_it_does_not_serve(options, message):
    *qkv, ours, theirs = tensors()
    with pytest.raises(InvalidArgument) as caught:
        varlen_attn(*qkv, ours, theirs, 9, 9, **options)
    assert str(caught.value) == message


def test_varlen_attn_gives_no_log_sum_exp():
    *qkv, ours, theirs = tensors()
    wanted = pytest.importorskip("torch.nn.attention.varlen").AuxRequest(lse=True)
    with pytest.raises(InvalidArgument) as caught:
        varlen_attn(*qkv, ours, theirs, 9, 9, return_aux=wanted)
    assert str(caught.value) == ("return_aux: expected None, as attention(..., return_lse=True) is what gives the "
                                 "log-sum-exp, got AuxRequest(lse=True)")


def test_varlen_attn_refuses_other_shapes():
    q, k, v, ours, theirs = tensors(heads=(4, 2))
    for arguments, message in (
        ((q, k, v, ours, theirs), "key: expected 4 heads, as the queries have, or enable_gqa=True, got 2"),
        ((q, k, v, ours, None), "cu_seq_k: expected offsets (B + 1,), got None"),
        ((q[None], k, v, ours, theirs), "query: expected shape (T, H, D), got (1, 15, 4, 8)"),
        ((q, k[None], v, ours, theirs), "key: expected shape (T, H, D), got (1, 15, 2, 8)"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            varlen_attn(*arguments, 9, 9)
        assert str(caught.value) == message


# --- nested tensors ---


def test_the_signature_is_scaled_dot_product_attentions():
    # a builtin, which tells its own only in its documentation
    assert "scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0," in (
        F.scaled_dot_product_attention.__doc__ or "")
    parameters = inspect.signature(nested_attention).parameters
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    assert list(parameters) == ["query", "key", "value", *defaults]
    assert {name: parameters[name].default for name in defaults} == defaults
    by_name = {name for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert by_name == {"scale", "enable_gqa"}


@pytest.mark.parametrize("causal", [False, True])
def test_nested_self_attention_is_torchs_own_row_by_row(causal):
    *qkv, offsets, _ = tensors()
    query, key, value = (nested(x, offsets) for x in qkv)
    out = nested_attention(query, key, value, is_causal=causal, scale=0.3)
    assert out.shape == query.shape  # ragged size included
    assert (out + query).layout == torch.jagged  # so it goes where the queries went
    assert_same(out.transpose(1, 2).values(), row_by_row(*qkv, offsets, offsets, causal=causal, scale=0.3), tuple(qkv))


def test_nested_attention_is_scaled_dot_product_attention_of_nested_tensors():
    *qkv, offsets, _ = tensors()
    inputs = [nested(x, offsets) for x in qkv]
    theirs, ours = F.scaled_dot_product_attention(*inputs), nested_attention(*inputs)  # causal: not on torch's CPU
    assert ours.shape == theirs.shape
    assert (ours.stride(), ours.layout, ours.dtype) == (theirs.stride(), theirs.layout, theirs.dtype)
    for one, other in zip(ours.unbind(), theirs.unbind(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_nested_cross_attention_with_grouped_heads_and_values_of_another_width():
    *qkv, ours, theirs = tensors(QUERIES, KEYS, heads=(6, 2), widths=(8, 5))
    q, k, v = (nested(x, offsets) for x, offsets in zip(qkv, (ours, theirs, theirs), strict=True))
    out = nested_attention(q, k, v, enable_gqa=True)
    assert out.shape == (*q.shape[:3], 5)
    assert_same(out.transpose(1, 2).values(), row_by_row(*qkv, ours, theirs), tuple(qkv))


def test_nested_values_are_not_copied_on_the_way_in(monkeypatch):
    *qkv, offsets, _ = tensors()
    seen: list[Tensor] = []
    monkeypatch.setattr("serrate.interop.attention.attention",
                        lambda *given, **_: seen.extend(given) or attention(*given))
    nested_attention(*(nested(x, offsets) for x in qkv))
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in (*qkv, offsets)]


def test_a_moved_tensor_is_still_self_attention(monkeypatch):
    # a move copies the offsets of each tensor, and torch knows by the ragged size that they are the same rows
    *qkv, offsets, _ = tensors()
    query, key, value = (copy.deepcopy(nested(x.detach(), offsets)) for x in qkv)
    assert query.offsets() is not key.offsets()
    seen: list[Tensor | None] = []
    monkeypatch.setattr("serrate.interop.attention.attention",
                        lambda *given, **options: seen.append(options["kv_offsets"]) or attention(*given, **options))
    out = nested_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(out.transpose(1, 2).values(), row_by_row(*qkv, offsets, offsets, causal=True).detach())
    assert seen == [None]


def test_projections_of_one_nested_tensor_are_self_attention():
    # as people write it: (B, ragged, E) → a linear layer → heads
    x = JaggedTensor.from_lengths(torch.randn(15, 12, generator=torch.Generator().manual_seed(1)), torch.tensor(SELF))
    project = torch.nn.Linear(12, 36)
    q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in project(to_nested(x)).chunk(3, -1))
    out = nested_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    q, k, v = project(x.values).unflatten(-1, (3, 3, 4)).unbind(1)
    expected = attention(q, k, v, x.offsets, mask=Mask(causal=True)).flatten(1)
    torch.testing.assert_close(out.values(), expected)


@pytest.mark.parametrize("rows", [(), (0, 0)])
def test_nested_batches_without_events(rows):
    *qkv, offsets, _ = tensors(rows, rows)
    query, key, value = (nested(x, offsets) for x in qkv)
    out = nested_attention(query, key, value)
    assert out.shape == query.shape
    assert all(grad.shape == x.shape for grad, x in zip(
        torch.autograd.grad(out.transpose(1, 2).values().sum(), qkv), qkv, strict=True))


def with_holes() -> Tensor:
    starts, lengths = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 0, 2, 1])
    return torch.nested.narrow(torch.randn(4, 5, 4, 8, dtype=torch.float64), 1, starts, lengths,
                               layout=torch.jagged).transpose(1, 2)


def refusals():
    q, k, v, ours, theirs = tensors(SELF, (3, 1, 2, 4))
    query, key, value = nested(q, ours), nested(k, theirs), nested(v, theirs)
    few = nested(k[:, :2], theirs), nested(v[:, :2], theirs)
    return [
        ((query, key, value, torch.ones(1)), {}, "attn_mask: expected None, as nothing else is served, got a tensor"),
        ((q, key, value), {}, "query: expected a nested tensor of layout torch.jagged, got layout torch.strided"),
        ((query, [k], value), {}, "key: expected a nested tensor of layout torch.jagged, got list"),
        ((query, key, with_holes()), {},
         "value: expected rows without holes, got a nested tensor with lengths beside its offsets"),
        ((with_holes(), key, value), {},
         "query: expected rows without holes, got a nested tensor with lengths beside its offsets"),
        ((query, key, nested(v, theirs.clone())), {},
         "value: expected the offsets of key (the same tensor), got others"),
        ((query, key, value), {"is_causal": True},
         "is_causal: expected False where query and key are not made from the same offsets tensor, got True"),
        ((query, *few), {}, "key: expected 4 heads, as the queries have, or enable_gqa=True, got 2"),
        ((query, key, value), {"dropout_p": -0.1}, "dropout_p: expected a number from 0 to below 1, got -0.1"),
    ]


@pytest.mark.parametrize(("arguments", "options", "message"), refusals())
def test_nested_attention_refuses_what_it_does_not_serve(arguments, options, message):
    with pytest.raises(InvalidArgument) as caught:
        nested_attention(*arguments, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("change", [lambda x: x.transpose(1, 2), lambda x: x.transpose(1, 2).flatten(2)],
                         ids=["ragged before heads", "no heads"])
def test_the_ragged_axis_comes_third_of_four(change):
    *qkv, offsets, _ = tensors()
    query, key, value = (nested(x, offsets) for x in qkv)
    with pytest.raises(InvalidArgument, match=r"^query: expected shape \(B, H, ragged, D\), got \(4, j\d+, "):
        nested_attention(change(query), key, value)


# --- the package ---


@pytest.mark.parametrize("call", [
    lambda q, k, v, offsets: flash_attn_varlen_func(q, k, v, offsets, offsets, 9, 9, causal=True),
    lambda q, k, v, offsets: varlen_attn(q, k, v, offsets, offsets, 9, 9, window_size=(-1, 0)),
    lambda q, k, v, offsets: nested_attention(
        *(nested(x, offsets) for x in (q, k, v)), is_causal=True).transpose(1, 2).values(),
], ids=["flash", "varlen", "nested"])
def test_the_adapters_compile_whole(call):
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (SELF, (3, 4), (2, 7, 1)):
        *qkv, offsets, _ = tensors(rows, rows)
        torch.testing.assert_close(compiled(*qkv, offsets), call(*qkv, offsets))


def test_importing_the_adapters_loads_none_of_the_libraries():
    code = ("import sys, serrate.interop; print([name for name in sys.modules if name.split('.')[0] in "
            "('flash_attn', 'triton', 'pyarrow', 'duckdb') or name in ('torch.nn.attention.varlen', "
            "'torch._dynamo', 'torch.nested._internal.sdpa')])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
