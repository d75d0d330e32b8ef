"""Mixture of logits against the paper's equations in plain loops, its bound, its penalty, and what it can express."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.nn import MixtureOfLogits, MixtureOptions
from serrate.nn.similarity import balance, take

WIDTH = 6
SMALL = MixtureOptions(query_components=3, item_components=2, component_width=4, gate_hidden=5, query_hidden=7,
                       temperature=0.5)
OF_USERS = replace(SMALL, user_buckets=4)


def made(options=SMALL, seed=0) -> MixtureOfLogits:
    """In evaluation mode and float64, with weights far from zero, biases too."""
    torch.manual_seed(seed)
    similarity = MixtureOfLogits(WIDTH, options).double().eval()
    for parameter in similarity.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return similarity


def given_(rows=5, items=9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + items)
    return tuple(torch.randn(n, WIDTH, dtype=torch.float64, generator=generator) for n in (rows, items))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def linear(layer, x: list[float]) -> list[float]:
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [sum(w * value for w, value in zip(row, x, strict=True)) + b
            for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def mlp(gate, x: list[float]) -> list[float]:
    return linear(gate[2], [h * sigmoid(h) for h in linear(gate[0], x)])


def unit(x: list[float]) -> list[float]:
    length = max(math.sqrt(sum(value * value for value in x)), 1e-6)
    return [value / length for value in x]


def logits_by_hand(similarity, x, item, user_row=None) -> list[float]:
    options = similarity.options
    d = options.component_width
    doubled = linear(similarity.query[0], x)
    half = len(doubled) // 2
    hidden = [g * sigmoid(g) * v for g, v in zip(doubled[:half], doubled[half:], strict=True)]
    flat = linear(similarity.query[2], hidden)
    f = [flat[at : at + d] for at in range(0, len(flat), d)]
    if user_row is not None:
        f.append(similarity.user.weight[user_row].tolist())
    flat = linear(similarity.item[1], item)
    g = [flat[at : at + d] for at in range(0, len(flat), d)]
    return [sum(a * b for a, b in zip(unit(f_n), unit(g_m), strict=True)) / options.temperature
            for f_n in f for g_m in g]


def score_by_hand(similarity, x, item, user_row=None) -> float:
    """The equations of the paper, number by number."""
    logits = logits_by_hand(similarity, x, item, user_row)
    z = [a * b + c for a, b, c in zip(mlp(similarity.query_gate, x), mlp(similarity.item_gate, item),
                                      mlp(similarity.cross, logits), strict=True)]
    weights = [math.exp(value * sigmoid(value)) for value in z]
    return sum(w * logit for w, logit in zip(weights, logits, strict=True)) / sum(weights)


@pytest.mark.parametrize("options", [SMALL, OF_USERS, replace(SMALL, query_components=1, item_components=1)],
                         ids=["small", "of users", "one logit"])
def test_the_equations_of_the_paper(options):
    similarity = made(options)
    x, table = given_()
    users = torch.tensor([6, -1, 3, 0, 4])
    rows = [1 + user % 4 if user >= 0 else 0 for user in users.tolist()] if options.user_buckets else [None] * 5
    queries, items = similarity.queries(x, users), similarity.items(table)
    assert queries["components"].shape == (5, options.query_components, 4)
    assert items["components"].shape == (9, options.item_components, 4)
    assert queries["gate"].shape == (5, options.logits)
    expected = torch.tensor([[score_by_hand(similarity, q, item, row) for item in table.tolist()]
                             for q, row in zip(x.tolist(), rows, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(similarity.score(queries, items), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradients", [False, True])
def test_kept_sides_taken_by_ids_score_each_as_all_together(gradients):
    similarity = made(OF_USERS)
    x, table = given_()
    ids = torch.tensor([[0, 8, 8], [1, 2, 3], [4, 4, 4], [7, 0, 6], [5, 3, 1]])
    with torch.set_grad_enabled(gradients):  # without, an operator scores
        queries, items = similarity.queries(x, torch.arange(5)), similarity.items(table)
        scores = similarity.score(queries, items)
        torch.testing.assert_close(similarity.score_each(queries, take(items, ids)), scores.gather(1, ids))
        alone = torch.cat([similarity.score(queries, similarity.items(one)) for one in table.split(1)], 1)
        torch.testing.assert_close(scores, alone)
    assert scores.requires_grad is gradients


def test_scores_are_the_same_with_and_without_gradients():
    similarity = made(OF_USERS)
    x, table = given_()
    queries, items = similarity.queries(x, torch.arange(5)), similarity.items(table)
    with torch.no_grad():
        served = similarity.score(queries, items)
    torch.testing.assert_close(served, similarity.score(queries, items).detach(), rtol=1e-12, atol=1e-12)


def test_dropout_works_without_gradients_too():
    similarity = made(replace(SMALL, gate_dropout=0.5))
    x, table = given_()
    queries, items = similarity.queries(x), similarity.items(table)
    with torch.no_grad():
        assert torch.equal(similarity.score(queries, items), similarity.score(queries, items))
        similarity.train()
        assert not torch.equal(similarity.score(queries, items), similarity.score(queries, items))


@pytest.mark.parametrize(("rows", "items"), [(0, 3), (3, 0), (0, 0)])
def test_no_query_and_no_item(rows, items):
    similarity = made()
    x, table = given_(rows, items)
    assert similarity.score(similarity.queries(x), similarity.items(table)).shape == (rows, items)
    assert similarity.penalty(similarity.queries(x[:0]), similarity.items(table[:0])).item() == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), spread=st.floats(0.01, 10), temperature=st.floats(0.02, 5), training=st.booleans())
def test_a_score_is_never_above_its_largest_logit(seed, spread, temperature, training):
    torch.manual_seed(seed)
    similarity = MixtureOfLogits(WIDTH, replace(SMALL, temperature=temperature, gate_dropout=0.0)).train(training)
    for parameter in similarity.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    queries, items = similarity.queries(torch.randn(4, WIDTH)), similarity.items(torch.randn(6, WIDTH))
    logits = torch.einsum("rnd,vmd->rvnm", queries["components"], items["components"]).flatten(2) / temperature
    scores = similarity.score(queries, items)
    slack = 1e-5 / temperature
    assert (scores <= logits.amax(-1) + slack).all()
    assert (scores >= logits.amin(-1) - slack).all()
    assert scores.abs().max() <= 1 / temperature + slack


def test_components_have_length_one_and_zeros_stay_zero():
    similarity = made()
    x, _ = given_()
    torch.testing.assert_close(similarity.queries(x)["components"].norm(dim=-1), torch.ones(5, 3, dtype=torch.float64))
    for parameter in similarity.query.parameters():
        torch.nn.init.zeros_(parameter)
    assert (similarity.queries(x)["components"] == 0).all()


def test_it_can_express_any_scores():
    """The construction of Ding and Zhai: blocks of the singular value decomposition, weighed alike by a constant gate.

    A block of 4 singular triples is one pair of components; normalised, these lose their lengths, so each block here is
    the product of two unit vectors of width 4 + 2 whose last channels fill the length up, and all are scaled alike.
    """
    torch.manual_seed(0)
    wanted = torch.randn(64, 96, dtype=torch.float64)
    u, s, v = torch.linalg.svd(wanted, full_matrices=False)
    blocks, width = 16, 4
    left = (u * s.sqrt()).view(64, blocks, width)
    right = (v.T * s.sqrt()).view(96, blocks, width)
    scale = max(left.norm(dim=-1).max(), right.norm(dim=-1).max())

    def filled(side, channel):
        """Of length 1: what is missing goes to a channel that the other side has at zero."""
        side = side / scale
        rest = torch.zeros(*side.shape[:2], 2, dtype=side.dtype)
        rest[..., channel] = (1 - side.square().sum(-1)).clamp(min=0).sqrt()
        return torch.cat([side, rest], -1)

    # Component n of a query and m of an item are one of 16 × 16 pairs: all other pairs get a gate of nearly no weight.
    options = MixtureOptions(query_components=blocks, item_components=blocks, component_width=width + 2,
                             gate_hidden=1, query_hidden=1, temperature=float(1 / (blocks * scale**2)))
    similarity = MixtureOfLogits(1, options).double().eval()
    for parameter in similarity.cross.parameters():
        torch.nn.init.zeros_(parameter)
    own = torch.eye(blocks, dtype=torch.float64).flatten() * 60
    queries = {"components": filled(left, 0), "gate": own.expand(64, -1)}
    items = {"components": filled(right, 1), "gate": torch.ones(96, blocks**2, dtype=torch.float64)}
    with torch.no_grad():
        assert (similarity.score(queries, items) - wanted).abs().max() < 1e-4


# --- training ---


def balance_by_hand(shares: list[list[float]], weights: list[float]) -> float:
    def entropy(row):
        return -sum(p * math.log(p) for p in row if p > 0)

    total = sum(weights)
    mean = [sum(w * row[at] for w, row in zip(weights, shares, strict=True)) / total for at in range(len(shares[0]))]
    return sum(w * entropy(row) for w, row in zip(weights, shares, strict=True)) / total - entropy(mean)


@pytest.mark.parametrize("weighted", [False, True])
def test_balance_against_a_loop_and_its_gradient_against_differences(weighted):
    torch.manual_seed(2)
    scores = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0, 2, 0.5, 3], dtype=torch.float64) if weighted else None
    shares = scores.softmax(1)
    expected = balance_by_hand(shares.tolist(), [1.0] * 5 if weights is None else weights.tolist())
    assert balance(shares, weights).item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: balance(x.softmax(1), weights), (scores,))


def test_balance_ranges_from_each_pair_to_its_own_to_all_alike():
    choices = torch.eye(8)
    assert balance(choices).item() == pytest.approx(-math.log(8), abs=1e-4)
    assert balance(torch.full((3, 8), 1 / 8)).item() == pytest.approx(0, abs=1e-6)
    assert balance(choices[:1].expand(5, 8)).item() == pytest.approx(0, abs=1e-6)  # sure, but all of the same
    assert balance(choices[:0]).item() == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**20), rows=st.integers(1, 20), spread=st.floats(0, 30))
def test_balance_stays_in_its_range(seed, rows, spread):
    shares = (torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)) * spread).softmax(1)
    assert -math.log(6) - 1e-3 <= balance(shares).item() <= 1e-3


def test_balance_has_finite_gradients_where_dropout_emptied_shares():
    shares = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    balance(shares).backward()
    assert shares.grad.isfinite().all()


def test_the_penalty_is_balance_and_the_lengths_of_users():
    similarity = made(replace(OF_USERS, load_balancing=0.3, user_penalty=0.2))
    x, table = given_(5, 5)
    users, weights = torch.tensor([0, 1, 1, -1, 5]), torch.tensor([1.0, 2, 0, 1, 1])
    queries, items = similarity.queries(x, users), similarity.items(table)
    logits = torch.tensor([logits_by_hand(similarity, q, item, row) for q, item, row in
                           zip(x.tolist(), table.tolist(), [1, 2, 2, 0, 2], strict=True)], dtype=torch.float64)
    gates = [mlp(similarity.query_gate, q) for q in x.tolist()], [mlp(similarity.item_gate, t) for t in table.tolist()]
    z = [[a * b + c for a, b, c in zip(*parts, strict=True)] for parts in
         zip(*gates, [mlp(similarity.cross, row) for row in logits.tolist()], strict=True)]
    shares = torch.tensor([[value * sigmoid(value) for value in row] for row in z], dtype=torch.float64).softmax(1)
    lengths = similarity.user.weight.square().sum(1)[[1, 2, 2, 0, 2]].tolist()
    mean = sum(w * length for w, length in zip(weights.tolist(), lengths, strict=True)) / 5
    expected = 0.3 * balance_by_hand(shares.tolist(), weights.tolist()) + 0.2 * mean
    penalty = similarity.penalty(queries, items, users=users, weights=weights)
    assert penalty.item() == pytest.approx(expected, rel=1e-6)
    nobody = similarity.penalty(queries, items, weights=weights).item()
    assert nobody == pytest.approx(expected - 0.2 * mean, rel=1e-6)


def test_stage_one_scores_by_the_cosine_of_a_vector_of_its_own_on_each_side():
    similarity = made(replace(SMALL, stage_one_width=3))
    x, table = given_(4, 5)
    queries, items = similarity.queries(x), similarity.items(table)
    itself, first = similarity.stages()
    assert itself is similarity
    asked, found = ([unit(linear(layer, row)) for row in rows.tolist()]
                    for layer, rows in ((similarity.query_first, x), (similarity.item_first, table)))
    expected = [[sum(a * b for a, b in zip(q, t, strict=True)) / 0.5 for t in found] for q in asked]
    torch.testing.assert_close(first.score(queries, items), torch.tensor(expected, dtype=torch.float64))
    without = made()
    assert without.stages() == (without,)
    assert "stage_one" not in without.queries(x)


def test_dropped_shares_still_add_up_to_one():
    similarity = made(replace(SMALL, gate_dropout=0.5)).train()
    shares = similarity._shares(torch.zeros(500, 6, dtype=torch.float64), *torch.randn(2, 6, dtype=torch.float64))
    dropped = (shares == 0).double().mean(0)
    assert (dropped - 0.5).abs().max() < 0.1
    kept = shares.sum(1) > 0
    torch.testing.assert_close(shares.sum(1)[kept], torch.ones(int(kept.sum()), dtype=torch.float64))
    assert 0.95 < kept.double().mean() < 1  # of 6, all are dropped once in 64


def test_training_takes_the_unknown_user_as_often_as_told_and_learns_it():
    similarity = made(replace(OF_USERS, user_dropout=0.25)).train()
    x = torch.zeros(4000, WIDTH, dtype=torch.float64)
    users = torch.full((4000,), 2)
    queries = similarity.queries(x, users)["components"][:, -1]
    rows = torch.nn.functional.normalize(similarity.user.weight, dim=-1)
    unknown, own = ((queries - rows[row]).norm(dim=1) < 1e-9 for row in (0, 3))
    assert (unknown ^ own).all()
    assert 0.2 < unknown.double().mean() < 0.3
    queries.square().sum(0)[0].backward()
    touched = similarity.user.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [True, False, False, True, False]
    similarity.eval()
    torch.testing.assert_close(similarity.queries(x, users)["components"][:, -1], rows[3].expand(4000, -1))
    torch.testing.assert_close(similarity.queries(x)["components"][:, -1], rows[0].expand(4000, -1))


def test_items_lose_channels_in_training_only():
    similarity = made(replace(SMALL, item_dropout=0.5))
    _, table = given_()
    still = similarity.items(table)
    similarity.train()
    first, second = similarity.items(table), similarity.items(table)
    assert not torch.allclose(first["components"], second["components"])
    assert torch.equal(first["gate"], still["gate"])  # the gate sees the whole item


def test_gradients_reach_every_weight():
    similarity = made(OF_USERS).train()
    x, table = given_(5, 5)
    users = torch.arange(5)
    queries, items = similarity.queries(x, users), similarity.items(table)
    (similarity.score(queries, items).square().sum() + similarity.penalty(queries, items, users=users)).backward()
    for name, parameter in similarity.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_scores_of_low_precision_are_near_and_float32():
    similarity = made().float()
    x, table = (part.float() for part in given_())
    exact = similarity.score(similarity.queries(x), similarity.items(table)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        low = similarity.score(similarity.queries(x), similarity.items(table)).detach()
        with torch.no_grad():
            served = similarity.score(similarity.queries(x), similarity.items(table))
    with torch.no_grad():
        kept = {name: side.bfloat16() for name, side in similarity.items(table).items()}
        stored = similarity.score(similarity.queries(x), kept)
    assert exact.dtype == low.dtype == served.dtype == stored.dtype == torch.float32
    torch.testing.assert_close(served, exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(low, exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(stored, exact, rtol=0.05, atol=0.05)


def test_the_start_is_seeded_and_of_its_own_scale():
    first, second = ((torch.manual_seed(3), MixtureOfLogits(WIDTH, OF_USERS))[1] for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    for name, parameter in first.named_parameters():
        assert parameter.abs().sum() == 0 if name.endswith("bias") else parameter.abs().min() > 0
    assert [name for name in first.state_dict() if name.startswith("cross")] == [
        "cross.0.weight", "cross.0.bias", "cross.2.weight", "cross.2.bias"]


@torch.no_grad()
def test_at_the_start_all_logits_weigh_nearly_alike():
    torch.manual_seed(3)
    similarity = MixtureOfLogits(64).eval()
    queries, items = similarity.queries(torch.randn(50, 64)), similarity.items(torch.randn(40, 64) * 0.02)
    even = torch.einsum("rnd,vmd->rvnm", queries["components"], items["components"]).mean((2, 3)) / 0.05
    assert (similarity.score(queries, items) - even).abs().max() < even.std()  # 9 times it from a sharp start


@pytest.mark.parametrize(("changes", "message"), [
    ({"query_components": 0}, "query_components: expected at least 1, got 0"),
    ({"gate_hidden": 0}, "gate_hidden: expected at least 1, got 0"),
    ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
    ({"temperature": math.nan}, "temperature: expected a number above 0, got nan"),
    ({"user_buckets": -1}, "user_buckets: expected 0 or more, got -1"),
    ({"stage_one_width": -2}, "stage_one_width: expected 0 or more, got -2"),
    ({"user_buckets": 3, "query_components": 1}, "query_components: expected 2 or more with users"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InvalidArgument, match=message):
        MixtureOfLogits(WIDTH, replace(SMALL, **changes))
