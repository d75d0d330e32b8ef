"""Losses against hand-computed values and plain torch; sampled ones against what they estimate."""

import math

import pytest
import torch
import torch.nn.functional as F

from serrate.errors import InvalidArgument
from serrate.nn import BinaryCrossEntropy, DotProduct, FullSoftmax, MixtureOfLogits, MixtureOptions, SampledSoftmax
from serrate.nn.similarity import take
from serrate.ops.mixture_of_logits import mixture_of_logits_logsumexp

ITEMS, WIDTH = 13, 6


def material(events: int = 9, dtype: torch.dtype = torch.float64, items: int = ITEMS):
    """Return hidden `(T, E)`, table `(V, E)`, targets `(T,)`, weights `(T,)`, some of them 0."""
    generator = torch.Generator().manual_seed(events + items)
    hidden, table = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
                     for n in (events, items))
    targets = torch.randint(items, (events,), generator=generator)
    weights = torch.rand(events, generator=generator, dtype=torch.float64).float()
    weights[::4] = 0
    return hidden, table, targets, weights


def plain_full(hidden, table, targets, weights=None, temperature=1.0):
    losses = F.cross_entropy(hidden @ table.T / temperature, targets, reduction="none")
    return (losses if weights is None else losses * weights).sum()


def assert_same(loss, expected, leaves, **tolerance):
    torch.testing.assert_close(loss, expected, **tolerance)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), **tolerance)


# --- full softmax ---


def test_full_softmax_by_hand():
    # logits 0 and ln 3: the probabilities are 1/4 and 3/4
    hidden, table = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    loss = FullSoftmax()
    assert loss(hidden, table, torch.tensor([0])).item() == pytest.approx(math.log(4))
    assert loss(hidden, table, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3))
    both = loss(hidden.expand(2, 1), table, torch.tensor([0, 1]), torch.tensor([2.0, 0.0]))
    assert both.item() == pytest.approx(2 * math.log(4))  # a sum, and weight 0 is no target


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 3.0])
@pytest.mark.parametrize("chunk_logits", [1, ITEMS, 4 * ITEMS, 2**20])
@pytest.mark.parametrize("events", [0, 1, 9])
def test_full_softmax_is_cross_entropy_for_any_chunk(events, chunk_logits, temperature, weighted):
    hidden, table, targets, weights = material(events)
    weights = weights if weighted else None
    loss = FullSoftmax(temperature=temperature, chunk_logits=chunk_logits)(hidden, table, targets, weights)
    expected = plain_full(hidden, table, targets, weights, temperature)
    assert_same(loss, expected, (hidden, table), rtol=1e-10, atol=1e-10)


def test_full_softmax_gradcheck():
    hidden, table, targets, weights = material(5)
    assert torch.autograd.gradcheck(
        lambda h, t: FullSoftmax(temperature=0.5, chunk_logits=2 * ITEMS)(h, t, targets, weights), (hidden, table))


def test_full_softmax_on_a_large_catalogue():
    hidden, table, targets, weights = material(64, torch.float32, items=50_000)
    loss = FullSoftmax()(hidden, table, targets, weights)  # 20 events a chunk
    assert_same(loss, plain_full(hidden, table, targets, weights), (hidden, table), rtol=1e-5, atol=1e-5)


def test_full_softmax_in_low_precision_sums_in_float32():
    hidden, table, targets, _ = material(200, torch.bfloat16)
    loss = FullSoftmax()(hidden, table, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain_full(hidden.float(), table.float(), targets), rtol=1e-2, atol=0)


def test_full_softmax_under_autocast_multiplies_in_half_and_returns_gradients_in_float32():
    hidden, table, targets, _ = material(50, torch.float32)
    exact = plain_full(hidden, table, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = FullSoftmax()(hidden, table, targets)
    assert loss.dtype == torch.float32
    grads = torch.autograd.grad(loss, (hidden, table))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]
    for got, want in zip(grads, torch.autograd.grad(exact, (hidden, table)), strict=True):
        assert F.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.999


def test_full_softmax_scales_with_the_gradient_from_above_and_needs_none():
    hidden, table, targets, _ = material()
    loss = FullSoftmax()(hidden, table, targets)
    once = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss / 4, hidden)[0], once / 4)
    with torch.no_grad():
        torch.testing.assert_close(FullSoftmax()(hidden, table, targets), loss.detach())


def test_full_softmax_is_a_well_behaved_operator():
    hidden, table, targets, weights = material(5, torch.float32)
    for each in (weights, None):
        torch.library.opcheck(torch.ops.serrate.full_softmax.default, (hidden, table, targets, each, 0.5, 2, True))
    torch.library.opcheck(torch.ops.serrate.full_softmax.default,
                          (hidden.detach(), table.detach(), targets, None, 0.5, 2, False))


def test_full_softmax_compiles_whole():
    hidden, table, targets, weights = material(7, torch.float32)
    loss = FullSoftmax(chunk_logits=2 * ITEMS)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_same(compiled(hidden, table, targets, weights), loss(hidden, table, targets, weights), (hidden, table))


# --- sampled softmax ---


def draws(loss, *arguments, count: int):
    torch.manual_seed(0)
    return torch.stack([loss(*arguments).detach() for _ in range(count)])


def test_sampled_softmax_by_hand():
    # two items, the target is 0: a draw is 1, or it is 0 and masked. Logits: 2 for item 0, 3 for item 1.
    hidden, table = torch.tensor([[1.0]]), torch.tensor([[2.0], [3.0]])
    loss = SampledSoftmax(torch.tensor([1, 3]), 1, smoothing=1.0)  # q = 1/4, 3/4
    drawn = math.log(1 + math.exp(3 - math.log(0.75) - 2))  # K = 1: the correction is log q
    values = draws(loss, hidden, table, torch.tensor([0]), count=200).double()
    assert {round(value, 5) for value in values.tolist()} == {0.0, round(drawn, 5)}
    assert 0.6 < (values > 0).double().mean() < 0.9


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0])
def test_many_negatives_give_the_full_softmax(shared, smoothing):
    hidden, table, targets, weights = material(4, torch.float32)
    counts = torch.arange(1, ITEMS + 1)
    # accidental hits are masked, so the target is counted once, as in the full softmax
    loss = SampledSoftmax(counts, 100_000, smoothing=smoothing, temperature=2.0, shared=shared)
    expected = plain_full(hidden, table, targets, weights, 2.0)
    torch.testing.assert_close(loss(hidden, table, targets, weights), expected, rtol=2e-2, atol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_the_partition_function_is_estimated_without_bias(shared):
    hidden, table, targets, _ = material(1, torch.float32)
    loss = SampledSoftmax(torch.arange(1, ITEMS + 1), 8, smoothing=0.75, shared=shared)
    # loss = log(Z / exp(positive)), so exp(loss) estimates 1 / the target's probability
    estimates = draws(loss, hidden, table, targets, count=4000).exp()
    exact = plain_full(hidden, table, targets).exp()
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - exact) < 4 * error


def test_shared_negatives_are_one_draw_for_the_batch_and_others_one_for_each_event():
    targets = torch.zeros(50, dtype=torch.int64)
    for shared, shape in ((True, (3,)), (False, (50, 3))):
        ids, correction = SampledSoftmax(torch.ones(ITEMS), 3, shared=shared)._draw(targets)
        assert ids.shape == correction.shape == shape
        torch.testing.assert_close(correction, torch.full_like(correction, math.log(3 / ITEMS)))
    assert len(ids.unique(dim=0)) > 20  # the last ones: drawn for each event


def test_negatives_follow_the_smoothed_counts():
    torch.manual_seed(1)
    loss = SampledSoftmax(torch.tensor([16, 4, 1, 0]), 40_000, smoothing=0.5)
    ids, _ = loss._draw(torch.zeros(1, dtype=torch.int64))
    shares = torch.bincount(ids, minlength=4) / len(ids)
    torch.testing.assert_close(shares, torch.tensor([4, 2, 1, 1]) / 8, rtol=0, atol=0.01)  # a count of 0 counts as 1


@pytest.mark.parametrize("shared", [True, False])
def test_sampled_softmax_on_no_events(shared):
    hidden, table, targets, weights = material(0, torch.float32)
    loss = SampledSoftmax(torch.ones(ITEMS), 4, shared=shared)(hidden, table, targets, weights)
    assert loss.item() == 0
    loss.backward()
    assert table.grad.abs().sum() == 0


def test_a_catalogue_of_one_item_has_nothing_to_learn():
    hidden, table, targets, _ = material(3, torch.float32, items=1)
    assert SampledSoftmax(torch.ones(1), 5)(hidden, table, targets).item() == 0  # every draw is a hit
    assert FullSoftmax()(hidden, table, targets).item() == pytest.approx(0, abs=1e-6)


def test_weights_weigh_the_sampled_losses():
    hidden, table, targets, _ = material(6, torch.float32)
    for loss in (SampledSoftmax(torch.ones(ITEMS), 4), BinaryCrossEntropy(ITEMS, 4)):
        def at(weights, loss=loss):
            torch.manual_seed(7)
            return loss(hidden, table, targets, weights).item()

        parts = [at(one) for one in torch.eye(6)]
        assert sum(parts) == pytest.approx(at(None), rel=1e-5)
        assert at(torch.tensor([2.0, 0, 0, 0, 0, 1])) == pytest.approx(2 * parts[0] + parts[5], rel=1e-5)


# --- binary cross-entropy ---


def test_binary_cross_entropy_by_hand():
    # two items, the target is 0: the draw is 1 (two binary decisions) or 0 (masked, one decision)
    hidden, table = torch.tensor([[1.0]]), torch.tensor([[2.0], [-1.0]])
    loss = BinaryCrossEntropy(2, temperature=0.5)  # logits 4 and -2
    one, other = math.log(1 + math.exp(-4)), math.log(1 + math.exp(-2))
    values = draws(loss, hidden, table, torch.tensor([0]), count=100).double()
    assert {round(value, 5) for value in values.tolist()} == {round(one, 5), round(one + other, 5)}


def test_binary_cross_entropy_on_average():
    hidden, table, targets, weights = (x.detach() for x in material(5, torch.float32))
    loss = BinaryCrossEntropy(ITEMS, 3)
    values = draws(loss, hidden, table, targets, weights, count=3000)
    logits = hidden @ table.T
    negative = F.softplus(logits).scatter(1, targets[:, None], 0.0).sum(1) * 3 / ITEMS
    exact = ((F.softplus(-logits.gather(1, targets[:, None])[:, 0]) + negative) * weights).sum()
    assert abs(values.mean() - exact) < 4 * values.std() / len(values) ** 0.5


# --- other similarities than the dot product ---


def mixture(**options) -> MixtureOfLogits:
    """A small one in evaluation mode, so that nothing is dropped."""
    torch.manual_seed(5)
    made = MixtureOfLogits(WIDTH, MixtureOptions(query_components=2, item_components=2, component_width=3,
                                                 gate_hidden=4, query_hidden=4, temperature=0.5, **options))
    return made.eval()


def test_a_cosine_is_the_dot_product_of_normalised_vectors():
    hidden, table, targets, weights = material()
    unit = [F.normalize(part, dim=1) for part in (hidden, table)]
    losses = (FullSoftmax(temperature=0.1), SampledSoftmax(torch.ones(ITEMS), 4, temperature=0.1),
              SampledSoftmax(torch.ones(ITEMS), 4, shared=False), BinaryCrossEntropy(ITEMS, 4))
    for loss in losses:
        torch.manual_seed(1)
        got = loss(hidden, table, targets, weights, similarity=DotProduct(normalise=True))
        torch.manual_seed(1)
        torch.testing.assert_close(got, loss(*unit, targets, weights))


@pytest.mark.parametrize("loss", [SampledSoftmax(torch.arange(1, 1 + ITEMS), 4, temperature=2.0),
                                  SampledSoftmax(torch.ones(ITEMS), 4, shared=False),
                                  SampledSoftmax(torch.ones(ITEMS), 40, smoothing=0.5),
                                  BinaryCrossEntropy(ITEMS, 3)], ids=["shared", "each", "more than items", "bce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mixture_of_logits_takes_the_place_of_the_product(loss, weighted):
    hidden, table, targets, weights = material(events=6, dtype=torch.float32, items=ITEMS)
    similarity, users = mixture(user_buckets=3, load_balancing=0.5), torch.tensor([0, 0, 4, -1, 2, 1])
    weights = weights if weighted else None
    torch.manual_seed(1)
    got = loss(hidden, table, targets, weights, similarity=similarity, users=users)
    torch.manual_seed(1)
    sampled = isinstance(loss, SampledSoftmax)
    ids, correction = loss._draw(targets) if sampled else (torch.randint(ITEMS, (6, 3)), 0.0)

    # each pair by itself, from its own two vectors
    ids = ids.expand(6, -1)
    correction = torch.as_tensor(correction).expand(6, ids.shape[1])
    total, own = 0.0, torch.ones(6) if weights is None else weights
    for event, (target, drawn) in enumerate(zip(targets.tolist(), ids.tolist(), strict=True)):
        queries = similarity.queries(hidden[event : event + 1], users[event : event + 1])

        def scored(item, queries=queries):
            return similarity.score(queries, similarity.items(table[item : item + 1]))[0, 0] / loss.temperature

        others = [scored(item) - correction[event, at] for at, item in enumerate(drawn) if item != target]
        positive = scored(target)
        each = (torch.stack([positive, *others]).logsumexp(0) - positive if sampled
                else F.softplus(-positive) + sum(F.softplus(other) for other in others))
        total = total + own[event] * each
    penalty = similarity.penalty(similarity.queries(hidden, users), similarity.items(table[targets]), users=users,
                                 weights=weights)
    assert penalty.abs() > 1e-4
    parameters = [hidden, table, *similarity.parameters()]
    assert_same(got, total + penalty * own.sum(), parameters, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("loss", [FullSoftmax(temperature=0.5), SampledSoftmax(torch.ones(ITEMS), 5, temperature=0.5),
                                  SampledSoftmax(torch.ones(ITEMS), 5, shared=False), BinaryCrossEntropy(ITEMS, 3)],
                         ids=["full", "shared", "each", "bce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_stage_one_learns_by_the_same_loss_beside_the_mixture(loss, weighted):
    hidden, table, targets, weights = material(events=6, dtype=torch.float32)
    weights = weights if weighted else None
    similarity = mixture(stage_one_width=4)

    def taught(similarity) -> torch.Tensor:
        torch.manual_seed(1)
        return loss(hidden, table, targets, weights, similarity=similarity)

    class Alone(DotProduct):  # stage one by itself, on the same sides
        def queries(self, x, users=None):
            return {"vector": similarity.queries(x)["stage_one"]}

        def items(self, table):
            return {"vector": similarity.items(table)["stage_one"]}

    both, alone = taught(similarity), taught(Alone())
    similarity.stages = lambda: (similarity,)
    leaves = [hidden, table, *similarity.query_first.parameters(), *similarity.item_first.parameters()]
    gradients = (torch.autograd.grad(each, leaves, allow_unused=True) for each in (both, taught(similarity), alone))
    torch.testing.assert_close(both, taught(similarity) + alone)
    for together, without, own in zip(*gradients, strict=True):
        torch.testing.assert_close(together, own if without is None else without + own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("items", "computed"), [(1000, 9), (13, 13)], ids=["distinct ones", "all, being fewer"])
def test_the_side_of_an_item_is_computed_once_a_step(items, computed):
    hidden, table, _, _ = material(events=20, dtype=torch.float32, items=items)
    targets = torch.arange(20) % 4
    similarity, rows = mixture(), []
    similarity.item.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    loss = SampledSoftmax(torch.ones(items), 7)
    loss._draw = lambda targets: (torch.tensor([3, 4, 4, 8, 9, 10, 11]), torch.zeros(7))
    loss(hidden, table, targets, similarity=similarity).backward()
    assert rows == [computed]
    touched = (table.grad.abs().sum(1) > 0).nonzero().squeeze(1).tolist()
    assert touched == [0, 1, 2, 3, 4, 8, 9, 10, 11]


def test_many_negatives_give_the_full_softmax_of_a_mixture():
    hidden, table, targets, weights = material(4, torch.float32)
    similarity = mixture(load_balancing=0.0)
    scores = similarity.score(similarity.queries(hidden), similarity.items(table))
    expected = (F.cross_entropy(scores, targets, reduction="none") * weights).sum()
    got = SampledSoftmax(torch.ones(ITEMS), 50_000)(hidden, table, targets, weights, similarity=similarity)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=0)


def test_no_events_and_a_mixture():
    hidden, table, targets, _ = material(0, torch.float32)
    loss = SampledSoftmax(torch.ones(ITEMS), 4)(hidden, table, targets, similarity=mixture())
    assert loss.item() == 0
    loss.backward()
    assert table.grad.abs().sum() == 0


@pytest.mark.parametrize("chunk_logits", [1, 3 * ITEMS, None])
def test_the_full_softmax_of_a_mixture_is_its_definition_in_any_chunks(chunk_logits):
    hidden, table, targets, weights = material(7)
    similarity = mixture(load_balancing=0.01).double()
    leaves = [hidden, table, *similarity.parameters()]
    queries, items = similarity.queries(hidden), similarity.items(table)
    expected = (F.cross_entropy(similarity.score(queries, items) / 0.5, targets, reduction="none") * weights).sum()
    torch.manual_seed(1)
    expected = expected + weights.sum() * similarity.penalty(queries, take(items, targets), weights=weights)
    torch.manual_seed(1)
    loss = FullSoftmax(temperature=0.5, chunk_logits=chunk_logits)
    got = loss(hidden, table, targets, weights, similarity=similarity)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(*(torch.autograd.grad(each, leaves, allow_unused=True) for each in (got, expected)),
                            strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_a_chunk_drops_stays_dropped_in_the_backward_pass():
    hidden, table, targets, _ = material(5)
    similarity = mixture(gate_dropout=0.5).double().train()

    def gradient(chunk_logits: int) -> torch.Tensor:
        torch.manual_seed(3)
        loss = FullSoftmax(chunk_logits=chunk_logits)(hidden, table, targets, similarity=similarity)
        return torch.autograd.grad(loss, hidden)[0]

    assert torch.equal(gradient(2 * ITEMS), gradient(2 * ITEMS))
    torch.manual_seed(3)
    queries, items = similarity.queries(hidden), similarity.items(table)
    whole = F.cross_entropy(similarity.score(queries, items), targets, reduction="sum")
    whole = whole + 5 * similarity.penalty(queries, take(items, targets))
    torch.testing.assert_close(gradient(5 * ITEMS), torch.autograd.grad(whole, hidden)[0])


@pytest.mark.parametrize("loss", [FullSoftmax(temperature=0.5), SampledSoftmax(torch.arange(ITEMS), 9, smoothing=1.0),
                                  SampledSoftmax(torch.ones(ITEMS), 40, temperature=0.5)], ids=["full", "few", "many"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_similarity_may_sum_over_items_itself(loss, weighted, monkeypatch):
    hidden, table, targets, weights = material(6)
    weights = weights if weighted else None
    similarity = mixture(load_balancing=0.01, stage_one_width=4).double()
    leaves, calls = [hidden, table, *similarity.parameters()], []

    def log_sum(queries, items, **terms):
        calls.append(terms)
        return mixture_of_logits_logsumexp(*similarity._operands(queries, items), temperature=similarity.temperature,
                                           implementation="reference", **terms)

    def taught() -> torch.Tensor:
        torch.manual_seed(1)
        return loss(hidden, table, targets, weights, similarity=similarity)

    expected = taught()
    monkeypatch.setattr(similarity, "log_sum", log_sum)
    got = taught()
    assert len(calls) == 1  # of the mixture alone: stage one is a product
    assert_same(got, expected, leaves)


def test_a_mixture_sums_by_itself_where_kernels_do():
    hidden, table, _, _ = material(6, torch.float32)
    similarity = mixture()
    with torch.autocast("cpu", torch.bfloat16):
        assert similarity.log_sum(similarity.queries(hidden), similarity.items(table)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("loss", [FullSoftmax(), SampledSoftmax(torch.ones(500), 300)], ids=["full", "shared"])
def test_on_a_gpu_sums_of_kernels_teach_the_same(loss, monkeypatch):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, table = (torch.randn(n, 32, generator=generator, device="cuda", requires_grad=True) for n in (100, 500))
    targets = torch.randint(500, (100,), generator=generator, device="cuda")
    similarity = MixtureOfLogits(32).cuda().eval()
    leaves, loss = [hidden, table, *similarity.parameters()], loss.cuda()

    def taught() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16):
            total = loss(hidden, table, targets, similarity=similarity)
        return total.detach(), *torch.autograd.grad(total, leaves)

    by_kernels = taught()
    monkeypatch.setattr(similarity, "log_sum", lambda *arguments, **terms: None)
    for one, other in zip(by_kernels, taught(), strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
    similarity.train()
    monkeypatch.undo()
    dropped = taught()
    assert torch.equal(dropped[0], taught()[0])
    assert not torch.equal(dropped[0], by_kernels[0])


def test_no_events_and_the_full_softmax_of_a_mixture():
    hidden, table, targets, _ = material(0, torch.float32)
    loss = FullSoftmax()(hidden, table, targets, similarity=mixture())
    assert loss.item() == 0
    loss.backward()


# --- arguments ---


@pytest.mark.parametrize("make", [lambda t: FullSoftmax(temperature=t),
                                  lambda t: SampledSoftmax(torch.ones(3), 1, temperature=t),
                                  lambda t: BinaryCrossEntropy(3, temperature=t)])  # fmt: skip
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_temperatures_are_above_zero(make, temperature):
    with pytest.raises(InvalidArgument, match="temperature: expected a number above 0, got"):
        make(temperature)


@pytest.mark.parametrize("make", [lambda n: SampledSoftmax(torch.ones(3), n), lambda n: BinaryCrossEntropy(3, n)])
def test_there_is_a_negative_at_least(make):
    with pytest.raises(InvalidArgument, match="negatives: expected at least 1, got 0"):
        make(0)


def test_a_second_derivative_of_the_full_softmax_is_refused():
    hidden, table = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    squared = FullSoftmax()(hidden, table, torch.tensor([0, 1, 2, 3, 6])).square()
    (gradient,) = torch.autograd.grad(squared, hidden, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
