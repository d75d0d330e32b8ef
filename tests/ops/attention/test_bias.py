"""Pointwise weights and relative bias: hand-made values, what a pair of queries and keys gets, and what it does not."""

import math
from dataclasses import replace

import pytest
import torch

from serrate.errors import InvalidArgument
from serrate.ops.attention import Bias, Mask, Weights, attention
from serrate.ops.attention.bias import BUCKET, FARTHEST, bucket
from serrate.ops.attention.cases import CASES, CAUSAL, Case
from serrate.testing.attention import (
    bucket_of,
    check,
    every_device,
    every_implementation,
    low_dtype,
    run,
    usable,
    with_gradients,
)

NAMED = {case.name: case for case in CASES}
SIX = torch.tensor([0, 4, 4, 6])


def ones(*shape, **options):
    return torch.ones(*shape, 1, 1, **options)


# --- the definition, by hand ---


def test_buckets_of_the_published_table():
    """floor(ln(x) / .301) of x: e^.301 is 1.35, e^.602 1.83, e^.903 2.47, e^2.107 8.2, e^11.137 68,665."""
    seconds = torch.tensor([0, 1, 2, 3, 8, 9, 60, 3600, 86400, 604800, 2**30])
    assert bucket(seconds).tolist() == [0, 0, 2, 3, 6, 7, 13, 27, 37, 44, 69]
    assert bucket(-seconds).tolist() == bucket(seconds).tolist()
    assert bucket(seconds).tolist() == [bucket_of(int(x)) for x in seconds]


def test_a_difference_below_4096_is_exact_and_a_larger_one_keeps_twelve_bits():
    small = torch.arange(4096)
    assert bucket(small).tolist() == [math.floor(math.log(max(x, 1)) / BUCKET) for x in range(4096)]
    border = math.ceil(math.exp(40 * BUCKET))  # 169,735: as 12 bits 169,728, which is below the border
    assert (bucket(torch.tensor([border])).item(), bucket(torch.tensor([border + 64])).item()) == (39, 40)


def test_no_difference_is_so_close_to_a_border_that_float32_misses_it():
    """All differences of 12 bits up to 2³¹: float32 logarithms are good to 1e-5 of a bucket."""
    leading = torch.arange(2048, 4096, dtype=torch.float64)
    for shift in range(20):
        exact = (leading * 2**shift).log() / BUCKET
        assert (exact - exact.round()).abs().min() > 5e-5


def test_position_by_hand():
    """A row of 4: scores are all 0, so silu(bias) shows the entry of each pair; distances beyond 2 count as 2."""
    table = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    values = torch.eye(4)[:, None]
    out = attention(ones(4) * 0, ones(4), values, torch.tensor([0, 4]), bias=Bias(table), weights=Weights("identity"))
    assert out[:, 0].tolist() == [[0, -1, -2, -2], [1, 0, -1, -2], [2, 1, 0, -1], [2, 2, 1, 0]]


def test_time_by_hand():
    """Queries asked at 10 and 11 s of keys at 10, 2 and 1 s: 0, 8, 9 and 1, 9, 10 apart; buckets 0, 6, 7, 0, 7, 7."""
    table = torch.arange(8.0)
    out = attention(ones(2) * 0, ones(3), torch.eye(3)[:, None], torch.tensor([0, 2]),
                    kv_offsets=torch.tensor([0, 3]), weights=Weights("identity"),
                    bias=Bias(None, table, torch.tensor([10, 11]), torch.tensor([10, 2, 1])))
    assert out[:, 0].tolist() == [[0, 6, 7], [0, 7, 7]]


def test_targets_are_at_the_end_of_the_history_for_position():
    """History of 2, targets at 2 and 3: both see it at distances 2 and 1, and themselves at 0."""
    table = torch.tensor([0.0, 0.0, 0.0, 10.0, 20.0, 30.0, 40.0])  # R = 4
    out = attention(ones(4) * 0, ones(4), torch.eye(4)[:, None], torch.tensor([0, 4]), bias=Bias(table),
                    mask=Mask(causal=True, targets=2), weights=Weights("identity"))
    assert out[:, 0].tolist() == [[10, 0, 0, 0], [20, 10, 0, 0], [30, 20, 10, 0], [30, 20, 0, 10]]


def test_softmax_with_a_bias_by_hand():
    """Two keys with scores 0 and ln 3: weights 1/4 and 3/4."""
    table = torch.tensor([0.0, 0.0, math.log(3)])
    out = attention(ones(2) * 0, ones(2), torch.tensor([8.0, 16.0])[:, None, None], torch.tensor([0, 2]),
                    bias=Bias(table))
    torch.testing.assert_close(out.flatten(), torch.tensor([12.0, 8 * 0.75 + 16 * 0.25]))


@pytest.mark.parametrize(("activation", "expected"), [
    ("silu", 2 / (1 + math.exp(-2))), ("gelu", 1 + math.erf(math.sqrt(2))), ("relu_squared", 4.0), ("identity", 2.0)])
def test_activations_by_hand(activation, expected):
    out = attention(ones(1) * 2, ones(1), ones(1), torch.tensor([0, 1]), scale=1.0, weights=Weights(activation))
    assert out.item() == pytest.approx(expected, rel=1e-6)


def test_normalisers_by_hand():
    """Rows of 4, 0 and 2 keys with weights of 1; the second row has a target, which is no history."""
    def out(normaliser, mask=Mask()):  # noqa: B008
        return attention(ones(6), ones(6), ones(6), SIX, mask=mask, scale=1.0,
                         weights=Weights("identity", normaliser)).flatten().tolist()

    assert out(None) == [4, 4, 4, 4, 2, 2]
    assert out(8.0) == [0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert out("length") == [1, 1, 1, 1, 1, 1]
    assert out("length", Mask(targets=torch.tensor([0, 0, 1]))) == [1, 1, 1, 1, 1, 2]


# --- every implementation ---


@every_device
@every_implementation
def test_times_far_apart_count_as_far_apart(name, device):
    """From the first key of the row: what is more than 2³⁰ s away counts as that, whatever int64 holds."""
    case = Case("", (3,), heads=1, buckets=80, mask=Mask())
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    table = case.tables(device)[0]

    def out(times):
        times = torch.tensor(times, device=device)
        return attention(q, k, v, offsets, bias=Bias(None, table, times, times), implementation=name)

    start = 1_700_000_000
    far = out([start, start + FARTHEST, start + 5])
    assert torch.equal(out([start, 2**62, start + 5]), far)
    assert torch.equal(out([start, start + FARTHEST + 1, start + 5]), far)
    assert not torch.equal(out([start, start + FARTHEST // 2, start + 5]), far)
    assert torch.equal(out([5, 5 + FARTHEST, 10]), far)
    opposite = out([5, 5 + FARTHEST, 5 - FARTHEST])  # 2³¹ apart, more than int32 holds
    assert torch.equal(out([5, 2**40, -(2**40)]), opposite)
    pairs = torch.tensor([[0, 69, 69], [69, 0, 71], [69, 71, 0]], device=device)
    scores = (q[:, 0] @ k[:, 0].T * case.width**-0.5).double() + table[pairs]
    torch.testing.assert_close(opposite[:, 0].double(), scores.softmax(-1) @ v[:, 0].double(), rtol=1e-5, atol=1e-5)


@every_device
@every_implementation
def test_entries_that_no_pair_hits_get_no_gradient(name, device):
    case = Case("", (3, 0, 5), reach=30, buckets=60, apart=True)
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors))
    position, time = (table.requires_grad_() for table in case.tables(device))
    out = attention(*tensors, offsets, implementation=name, **case.arguments(device, tables=(position, time)))
    out.float().sum().backward()
    assert position.grad.shape == (2, 59)
    reached = (position.grad != 0).any(0).nonzero().flatten() - 29
    assert reached.min() >= 0
    assert reached.max() <= 4  # causal rows of at most 5: distances 0 to 4
    assert (time.grad != 0).any()
    assert not time.grad[:, 50:].any()  # e^15 s is more than the events are apart


@every_device
@every_implementation
def test_one_table_may_ask_for_a_gradient_alone(name, device):
    case = NAMED["both_softmax"]
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors))
    position, time = case.tables(device)
    time.requires_grad_()
    out = attention(*tensors, offsets, implementation=name, **case.arguments(device, tables=(position, time)))
    out.float().square().sum().backward()
    assert time.grad.any()
    assert position.grad is None


def gradients(name, case, device, loss, dtype=None):
    """Return the gradients of `loss(out, lse)` with tables of entries up to ±150, those of tables apart."""
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors), lse=True)

    def compute(q, k, v, *tables):
        arguments = case.arguments(device, tables=tables)
        return loss(*attention(q, k, v, offsets, return_lse=True, implementation=name, **arguments)) + 0 * v.sum()

    found = with_gradients(compute, tuple(tensors), dtype, tuple(60 * table for table in case.tables(device)))
    return found.grads.double(), found.table_grads.double()


@every_device
@pytest.mark.parametrize("loss", [
    lambda out, lse: out, lambda out, lse: lse, lambda out, lse: 1e-6 * out[..., 0] + lse],
    ids=["output", "log-sum-exp", "both"])
@pytest.mark.parametrize("case", [
    Case("full", (9, 0, 21, 5), mask=Mask(), reach=6, buckets=30), Case("causal", (9, 0, 21, 5), reach=6, apart=True),
    Case("cross", (9, 4, 21, 5), kv_lengths=(3, 4, 5, 7), mask=Mask(window=(3, 9)), reach=6, buckets=30),
    Case("times", (9, 0, 21, 5), buckets=30)], ids=lambda case: case.name)
@every_implementation
def test_entries_may_be_as_large_as_scores(name, case, loss, device):
    """The exponential of 150 is past the range of float32: whatever queries past a row's end make of it is nothing."""
    exact = gradients("reference", case, device, loss, torch.float64)
    largest = max(float(each.abs().amax()) for each in exact)
    for found, expected in zip(gradients(name, case, device, loss), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * largest)


@every_device
@pytest.mark.parametrize("shape", [{}, {"kv_lengths": (3, 4, 5, 7)}, {"dense": 3}], ids=["self", "cross", "dense"])
@every_implementation
def test_offsets_and_times_may_be_views(name, shape, device):
    case = Case("", (9, 0, 21, 5), mask=Mask(), reach=6, buckets=30, **shape)
    *tensors, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors))
    given = case.arguments(device)

    def column(x):
        return None if x is None else torch.stack([x, x + 77], -1)[..., 0]

    bias = given["bias"]
    views = {"bias": replace(bias, query_times=column(bias.query_times), key_times=column(bias.key_times))}
    if "kv_offsets" in given:
        views["kv_offsets"] = column(given["kv_offsets"])
    assert not views["bias"].key_times.is_contiguous()
    assert torch.equal(attention(*tensors, column(offsets), implementation=name, **given | views),
                       attention(*tensors, offsets, implementation=name, **given))


@every_device
@pytest.mark.parametrize("case", [NAMED["both_silu"], NAMED["both_softmax"], NAMED["everything_both"]],
                         ids=lambda case: case.name)
@every_implementation
def test_gradients_of_tables_are_the_same_bits_again(name, case, device):
    *tensors, _ = case.tensors(low_dtype(name), device)
    usable(name, case, tuple(tensors))
    first, again = (run(name, case, tuple(tensors)) for _ in range(2))
    assert torch.equal(first.table_grads, again.table_grads)


@every_device
@every_implementation
def test_a_row_does_not_depend_on_its_batch(name, device):
    case = Case("", (9, 40, 3), activation="silu", normaliser="length", reach=10, buckets=50)
    q, k, v, offsets = case.tensors(low_dtype(name), device)
    usable(name, case, (q, k, v))
    tables = case.tables(device)
    every = attention(q, k, v, offsets, implementation=name, **case.arguments(device, tables=tables))
    bias = case.bias(tables)
    alone = attention(q[9:49], k[9:49], v[9:49], offsets[1:3] - 9, mask=CAUSAL, weights=Weights("silu", "length"),
                      bias=Bias(bias.position, bias.time, None, bias.key_times[9:49]), implementation=name)
    torch.testing.assert_close(every[9:49], alone, rtol=1e-5, atol=1e-5)


@every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("score", [-8.0, -3.0, 20.0, -150.0])
@pytest.mark.parametrize("width", [16, 64])
@every_implementation
def test_weights_of_low_and_high_scores_keep_their_digits(name, width, score, dtype, device):
    """Every score is the same, so there is no large weight beside which the error of a small one could hide."""
    case = Case("", (40, 3, 0, 170), width=width, activation="silu", normaliser=8.0)
    q, k, v, _ = case.tensors(dtype, device)
    usable(name, case, (q, k, v))
    check(name, case, (torch.full_like(q, 0.5), torch.full_like(k, 2 * score / width), v), scale=1.0)


def test_a_bias_of_nothing_is_none():
    *tensors, offsets = Case("", (5, 2)).tensors()
    plain = attention(*tensors, offsets)
    assert torch.equal(attention(*tensors, offsets, bias=Bias()), plain)
    with pytest.raises(InvalidArgument, match="key_times"):
        attention(*tensors, offsets, bias=Bias(time=torch.zeros(3)))
