"""Dropout of attention weights: one draw for all implementations, and its statistics."""

import pytest
import torch

from serrate.ops.attention import Mask, Weights, attention
from serrate.ops.attention.cases import CAUSAL, Case
from serrate.ops.dropout import kept
from serrate.testing.attention import call_of, every_device, every_implementation, low_dtype, unusable, usable

CASE = Case("", (7, 0, 33, 1, 24), heads=3, mask=Mask(), dropout=0.3)
SEEDS = [0, 1, -1, 2**31, 2**40 + 7, -(2**63), 2**63 - 1]


def place(count: int) -> torch.Tensor:
    return torch.arange(count)


@every_device
@pytest.mark.parametrize("seed", SEEDS)
@every_implementation
def test_every_implementation_draws_the_same(name, seed, device):
    """Scores of 0 and values of one key each show which weights are left: those of `kept`, divided by the rate left."""
    q, k, _, offsets = CASE.tensors(low_dtype(name), device)
    v = torch.eye(len(k), device=device, dtype=k.dtype)[:, None].expand(-1, 3, -1)
    usable(name, CASE, (q, k, v))
    weights = Weights(dropout=0.3, seed=seed)
    out = attention(q * 0, k, v, offsets, weights=weights, implementation=name).float().cpu()
    rows = torch.repeat_interleave(torch.arange(5), torch.tensor(CASE.lengths))
    own = rows[:, None] == rows[None, :]
    stays = kept(torch.tensor(seed), 0.3, 3, place(len(q)), place(len(k))).transpose(0, 1) & own[:, None]
    assert torch.equal(out > 0, stays)
    expected = stays / own.sum(1)[:, None, None] / 0.7
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=0)


@every_device
@every_implementation
def test_dense_queries_stand_at_places_of_their_own(name, device):
    case = Case("", (7, 0, 33), dense=3, mask=Mask(), dropout=0.5)
    q, k, _, offsets = case.tensors(low_dtype(name), device)
    v = torch.eye(len(k), device=device, dtype=k.dtype)[:, None].expand(-1, 2, -1)
    usable(name, case, (q, k, v))
    weights = Weights(dropout=0.5, seed=3)
    out = attention(q * 0, k, v, offsets, weights=weights, implementation=name).cpu() > 0
    stays = kept(torch.tensor(3), 0.5, 2, place(9), place(40)).transpose(0, 1).unflatten(0, (3, 3))
    assert torch.equal(out[0, ..., :7], stays[0, ..., :7])
    assert torch.equal(out[2, ..., 7:], stays[2, ..., 7:])


@every_device
@every_implementation
def test_a_seed_is_an_int_or_a_tensor_and_gives_the_same_bits_again(name, device):
    *tensors, offsets = CASE.tensors(low_dtype(name), device)
    usable(name, CASE, tuple(tensors))

    def out(seed):
        return attention(*tensors, offsets, weights=Weights(dropout=0.3, seed=seed), implementation=name)

    first = out(5)
    assert torch.equal(out(5), first)
    assert torch.equal(out(torch.tensor(5, device=device)), first)
    assert torch.equal(out(torch.tensor([5], device=device)), first)
    assert not torch.equal(out(6), first)
    assert not torch.equal(out(5 + 2**32), first)  # the upper half counts too


@every_device
@every_implementation
def test_the_log_sum_exp_knows_no_dropout(name, device):
    *tensors, offsets = CASE.tensors(low_dtype(name), device)
    usable(name, CASE, tuple(tensors), lse=True)
    out, lse = attention(*tensors, offsets, return_lse=True, implementation=name)
    fewer, same = attention(*tensors, offsets, return_lse=True, weights=Weights(dropout=0.3), implementation=name)
    torch.testing.assert_close(same, lse)
    assert not torch.equal(out, fewer)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_no_dropout_is_no_dropout_whatever_the_seed(name):
    *tensors, offsets = CASE.tensors()
    assert unusable(name, call_of(Case("", ()), tuple(tensors))) is None
    plain = attention(*tensors, offsets, implementation=name)
    undropped = attention(*tensors, offsets, weights=Weights(dropout=0.0, seed=9), implementation=name)
    assert torch.equal(undropped, plain)


@every_device
@every_implementation
def test_the_expectation_is_attention_without_dropout(name, device):
    """Many rows of the same events, each with a draw of its own: their mean is what one gives without dropout."""
    rows, length, rate = 600, 5, 0.4
    case = Case("", (length,) * rows, heads=1, dropout=rate)
    one = Case("", (length,), heads=1).tensors(low_dtype(name), device, seed=8)[:3]
    tensors = tuple(x.repeat(rows, 1, 1) for x in one)
    offsets = case.tensors(device=device)[3]
    usable(name, case, tensors)
    exact = attention(*one, offsets[:2], mask=CAUSAL, implementation="reference").float()
    weights = Weights(dropout=rate, seed=1)
    drawn = attention(*tensors, offsets, mask=CAUSAL, weights=weights, implementation=name).float()
    drawn = drawn.unflatten(0, (rows, length))
    error = drawn.std(0) / rows**0.5
    assert ((drawn.mean(0) - exact).abs() <= 4.5 * error + 1e-3).all()
    assert (error > 0).all()


# --- the draw itself ---


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(rate, seed):
    heads, queries, keys = 4, 300, 500
    dropped = (~kept(torch.tensor(seed), rate, heads, place(queries), place(keys))).double()

    def within(share, count):
        return ((share - rate).abs() <= 5.5 * (rate * (1 - rate) / count) ** 0.5).all()

    assert within(dropped.mean(), heads * queries * keys)
    assert within(dropped.mean((1, 2)), queries * keys)  # each head
    assert within(dropped.mean((0, 2)), heads * keys)  # each query
    assert within(dropped.mean((0, 1)), heads * queries)  # each key


def test_no_rate_drops_nothing():
    assert kept(torch.tensor(3), 0.0, 2, place(50), place(50)).all()


@pytest.mark.parametrize("other", [
    "next head", "next query", "next key", "next seed", "seed a word away", "negative seed", "transposed"])
def test_draws_that_have_nothing_to_do_with_each_other(other):
    """Two draws at a rate of 1/2 agree in half of the places, within the noise of 60,000 coins."""
    seed, count = torch.tensor(12345), 250

    def at(seed=seed, head=0, query=0, key=0):
        return kept(seed, 0.5, 2, place(count) + query, place(count) + key)[head]

    others = {
        "next head": lambda: at(head=1),
        "next query": lambda: at(query=1),
        "next key": lambda: at(key=1),
        "next seed": lambda: at(seed + 1),
        "seed a word away": lambda: at(seed + 2**32),
        "negative seed": lambda: at(-seed),
        "transposed": lambda: at().T,
    }
    agree = (at() == others[other]()).double().mean()
    assert abs(float(agree) - 0.5) < 5 * 0.5 / count
    assert torch.equal(at(), at())


def test_a_part_of_the_places_is_a_part_of_the_draw():
    every = kept(torch.tensor(4), 0.5, 2, place(40), place(60))
    part = kept(torch.tensor(4), 0.5, 2, place(40)[13:30], place(60)[5:50])
    assert torch.equal(part, every[:, 13:30, 5:50])
    assert torch.equal(kept(torch.tensor(4), 0.5, 2, place(40).int(), place(60).int()), every)
    rows = kept(torch.tensor(4), 0.5, 2, place(40).view(4, 10), place(60).view(4, 15))
    assert torch.equal(rows, torch.stack([every[:, 10 * i:10 * i + 10, 15 * i:15 * i + 15] for i in range(4)]))
