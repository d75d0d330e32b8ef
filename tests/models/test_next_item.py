"""What every model of the next item promises, of each: a batch is its rows one at a time, no event sees a later one."""

import pytest
import torch
import torch.nn.functional as F

from serrate.jagged import EventBatch, JaggedTensor
from serrate.models import HSTUConfig, NextItemModel, TransformerConfig, build
from serrate.nn import SampledSoftmax, Similarity
from serrate.testing import jagged_cases

ITEMS = 11
SMALL = {"width": 8, "blocks": 2, "heads": 2, "max_length": 20}
CONFIGS = {
    "transformer": TransformerConfig.parse({**SMALL, "feedforward": 16}),
    "hstu": HSTUConfig.parse(SMALL),
    "hstu with time": HSTUConfig.parse({**SMALL, "time": True, "bias_per_head": True}),
    "hstu, softmax": HSTUConfig.parse({**SMALL, "activation": "softmax", "key_width": 3, "value_width": 5}),
}
MIXTURE = {"kind": "mol", "query_components": 3, "item_components": 2, "component_width": 4, "gate_hidden": 8,
           "query_hidden": 8, "user_buckets": 5, "temperature": 0.5}


@pytest.fixture(params=CONFIGS)
def model(request):
    """A function: changes to the configuration of one of the models → that model, with weights far from zero."""

    def make(**changes) -> NextItemModel:
        torch.manual_seed(0)
        config = CONFIGS[request.param]
        made = build(config.parse({**config.plain(), **changes}), ITEMS).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return made

    return make


def batch_over(items: JaggedTensor) -> EventBatch:
    """A batch of these items, the n-th event of a row n² minutes after the first, what comes next asked 5 s later."""
    place = torch.arange(items.num_events) - items.offsets[items.row_index()]
    times = 60 * place * place
    return EventBatch({"item": items, "time": items.with_values(times), "asked": items.with_values(times + 5)})


def batch_of(*rows: list[int]) -> EventBatch:
    values = torch.tensor([item for row in rows for item in row], dtype=torch.int64)
    return batch_over(JaggedTensor.from_lengths(values, torch.tensor([len(row) for row in rows], dtype=torch.int64)))


def histories(count: int = 6) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(ITEMS, (3 * n % 17,), generator=generator).tolist() for n in range(count)]  # 0, 3, 6, …


@pytest.mark.parametrize("similarity", ["dot", "cosine", MIXTURE], ids=["dot", "cosine", "mol"])
def test_a_batch_is_its_rows_one_at_a_time(model, similarity):
    made, rows = model(similarity=similarity), histories()
    together = made.score(batch_of(*rows))
    assert together.shape == (6, ITEMS)
    assert together.dtype == torch.float32
    alone = torch.cat([made.score(batch_of(row)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    backwards = made.score(batch_of(*reversed(rows))).flip(0)
    torch.testing.assert_close(together, backwards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in jagged_cases() if case.name != "one long"], ids=str)
def test_gradients_of_a_batch_are_the_sum_over_its_rows(model, case):
    made = model(max_length=70).double()
    items = case.make((), torch.int64)
    items = items.with_values(items.values.abs() % ITEMS)

    def gradients(outputs):
        total = sum((out.square().sum() for out in outputs), torch.zeros((), dtype=torch.float64))
        total = total + 0 * sum(parameter.sum() for parameter in made.parameters())  # some may take no part
        return torch.autograd.grad(total, list(made.parameters()))

    together = gradients([made(batch_over(items)).values])
    alone = gradients([made(batch_of(row.tolist())).values for row in items])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_no_event_sees_a_later_one(model):
    made = model()
    row = histories()[-1]
    before = made(batch_of([1, 2], row)).values
    changed = [*row[:9], (row[9] + 1) % ITEMS, *row[10:]]
    after = made(batch_of([1, 2], changed)).values
    assert torch.equal(before[: 2 + 9], after[: 2 + 9])
    assert not torch.equal(before[2 + 9], after[2 + 9])


@pytest.mark.parametrize("similarity", ["cosine", MIXTURE], ids=["cosine", "mol"])
def test_rows_without_events_score_zero(model, similarity):
    made = model(similarity=similarity)
    scores = made.score(batch_of([], [3], []))
    assert (scores[[0, 2]] == 0).all()
    assert scores[1].abs().sum() > 0
    assert torch.equal(made.score(batch_of([], [])), torch.zeros(2, ITEMS))
    assert made.score(batch_of()).shape == (0, ITEMS)


def test_positions_count_from_the_newest_event(model):
    made = model(blocks=0)
    row = [5, 1, 5, 1]
    hidden = made(batch_of(row)).values
    cut = made(batch_of(row[2:])).values
    assert torch.equal(hidden[2:], cut)  # without attention, older events change nothing
    assert not torch.equal(hidden[0], hidden[2])  # the same item at another age


def test_histories_as_long_as_the_model_reads_are_served(model):
    assert model(max_length=5).score(batch_of([1, 2, 3, 4, 5])).isfinite().all()


def test_the_cosine_similarity_is_bounded(model):
    scores = model(similarity="cosine").score(batch_of(*histories()))
    assert scores.abs().max() <= 1 + 1e-6
    assert scores[1:].abs().max() > 0.1


def test_the_output_layer_is_the_item_table(model):
    made = model(similarity="dot")
    assert made.item_sides()["vector"] is made.items.weight
    cosine = model(similarity="cosine")
    torch.testing.assert_close(cosine.item_sides()["vector"], F.normalize(cosine.items.weight, dim=-1))


@pytest.mark.parametrize("similarity", ["cosine", MIXTURE], ids=["cosine", "mol"])
def test_dropout_works_in_training_only(model, similarity):
    made, batch = model(dropout=0.5, similarity=similarity), batch_of([1, 2, 3])
    assert torch.equal(made.score(batch), made.score(batch))
    made.train()
    assert not torch.equal(made.score(batch), made.score(batch))


@pytest.mark.parametrize("similarity", ["cosine", MIXTURE], ids=["cosine", "mol"])
def test_scores_stay_float32_under_autocast(model, similarity):
    made = model(similarity=similarity)
    with torch.autocast("cpu", torch.bfloat16):
        scores = made.score(batch_of(*histories()))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, made.score(batch_of(*histories())), rtol=0.1, atol=0.3)
    assert len(scores[5].unique()) == ITEMS  # rounded to bfloat16, some would tie


def test_the_start_is_small_and_seeded(model):
    config = model().config
    torch.manual_seed(4)
    first = build(config, 100)
    torch.manual_seed(4)
    second = build(config, 100)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert float(build(config, 1000).items.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_the_model_compiles_whole(model):
    made = model()
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (histories(), histories(4), [[2, 5, 1]]):
        torch.testing.assert_close(compiled(batch_of(*rows)).values, made(batch_of(*rows)).values)


def test_kept_sides_of_items_score_the_same(model):
    made, batch = model(similarity=MIXTURE), batch_of(*histories())
    assert torch.equal(made.score(batch, made.item_sides()), made.score(batch))
    assert made.item_sides()["components"].shape == (ITEMS, 2, 4)
    assert made.query_sides(batch)["components"].shape == (6, 3, 4)


def test_a_mixture_knows_its_users_and_scores_strangers_alike(model):
    made, rows = model(similarity=MIXTURE), histories(4)[1:]

    def scores(*keys):
        batch = batch_of(*rows)
        return made.score(EventBatch(dict(batch.events), {"user_key": torch.tensor(keys)}) if keys else batch)

    unknown = scores()
    assert torch.equal(scores(-1, -1, -1), unknown)
    known = scores(7, -1, 2)
    assert torch.equal(known[1], unknown[1])
    assert ((known - unknown).abs().amax(1) > 1e-3).tolist() == [True, False, True]
    assert torch.equal(known, scores(2, -1, 7))  # both are 2 of 5 buckets


def test_a_similarity_of_your_own_takes_the_place_of_the_configured_one(model):
    class Distance(Similarity):
        """Less the squared distance, of sides that are named otherwise."""

        def queries(self, x, users=None):
            return {"place": x}

        def items(self, table):
            return {"where": table, "length": table.square().sum(-1)}

        def score_each(self, queries, items):
            x = queries["place"]
            product = torch.einsum("re,rke->rk", x, items["where"])
            return 2 * product - items["length"] - x.square().sum(-1, keepdim=True)

    made, batch = model(similarity="dot"), batch_of([1, 2], [3])
    made.similarity = Distance()
    expected = -(made.newest(batch)[:, None] - made.items.weight).square().sum(-1)
    torch.testing.assert_close(made.score(batch), expected, rtol=1e-4, atol=1e-4)
    loss = SampledSoftmax(torch.ones(ITEMS), 4)(
        made(batch).values, made.items.weight, torch.tensor([2, 4, 5]), similarity=made.similarity)
    loss.backward()
    assert made.items.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_configuration_survives_being_written(config):
    assert type(config).parse(config.plain()) == config
    assert next(iter(config.plain())) == "kind"
