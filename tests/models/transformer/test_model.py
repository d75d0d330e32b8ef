"""The transformer: jagged batches are one row at a time, positions count from the newest event, the table is tied."""

import pytest
import torch
import torch.nn.functional as F

from serrate.errors import InvalidConfig
from serrate.jagged import EventBatch, JaggedTensor
from serrate.models import Transformer, TransformerConfig, build
from serrate.testing import jagged_cases

ITEMS = 11
SMALL = {"width": 8, "blocks": 2, "heads": 2, "feedforward": 16, "max_length": 20}


def model(**changes) -> Transformer:
    torch.manual_seed(0)
    made = build(TransformerConfig.parse({**SMALL, **changes}), ITEMS).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch_of(*rows: list[int]) -> EventBatch:
    values = torch.tensor([item for row in rows for item in row], dtype=torch.int64)
    return EventBatch({"item": JaggedTensor.from_lengths(values, torch.tensor([len(row) for row in rows]))})


def histories(count: int = 6) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(ITEMS, (3 * n % 17,), generator=generator).tolist() for n in range(count)]  # 0, 3, 6, …


def test_scores_by_hand_without_blocks():
    made = model(blocks=0, similarity="dot")
    items, positions = made.items.weight, made.positions.weight
    newest = F.layer_norm(items[4] * 8**0.5 + positions[0], (8,), made.norm.weight, made.norm.bias)
    torch.testing.assert_close(made.score(batch_of([7, 4])), (newest @ items.T)[None])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_batch_is_its_rows_one_at_a_time(similarity):
    made, rows = model(similarity=similarity), histories()
    together = made.score(batch_of(*rows))
    assert together.shape == (6, ITEMS)
    assert together.dtype == torch.float32
    alone = torch.cat([made.score(batch_of(row)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    backwards = made.score(batch_of(*reversed(rows))).flip(0)
    torch.testing.assert_close(together, backwards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in jagged_cases() if case.name != "one long"], ids=str)
def test_gradients_of_a_batch_are_the_sum_over_its_rows(case):
    made = model(max_length=70).double()
    items = case.make((), torch.int64)
    rows = [row.abs() % ITEMS for row in items]

    def gradients(outputs):
        total = sum((out.square().sum() for out in outputs), torch.zeros((), dtype=torch.float64))
        total = total + 0 * sum(parameter.sum() for parameter in made.parameters())  # some may take no part
        return torch.autograd.grad(total, list(made.parameters()))

    together = gradients([made(EventBatch({"item": items.with_values(items.values.abs() % ITEMS)})).values])
    alone = gradients([made(batch_of(row.tolist())).values for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_no_event_sees_a_later_one():
    made = model()
    row = histories()[-1]
    before = made(batch_of([1, 2], row)).values
    changed = [*row[:9], (row[9] + 1) % ITEMS, *row[10:]]
    after = made(batch_of([1, 2], changed)).values
    assert torch.equal(before[: 2 + 9], after[: 2 + 9])
    assert not torch.equal(before[2 + 9], after[2 + 9])


def test_rows_without_events_score_zero():
    made = model()
    scores = made.score(batch_of([], [3], []))
    assert (scores[[0, 2]] == 0).all()
    assert scores[1].abs().sum() > 0
    assert torch.equal(made.score(batch_of([], [])), torch.zeros(2, ITEMS))
    assert made.score(EventBatch({"item": JaggedTensor(torch.zeros(0, dtype=torch.int64), torch.zeros(1).int())})
                      ).shape == (0, ITEMS)


def test_positions_count_from_the_newest_event():
    made = model(blocks=0)
    row = [5, 1, 5, 1]
    hidden = made(batch_of(row)).values
    cut = made(batch_of(row[2:])).values
    assert torch.equal(hidden[2:], cut)  # without attention, older events change nothing
    assert not torch.equal(hidden[0], hidden[2])  # the same item at another age


def test_histories_as_long_as_the_model_reads_are_served():
    made = model(max_length=5)
    assert made.score(batch_of([1, 2, 3, 4, 5])).isfinite().all()


def test_the_cosine_similarity_is_bounded():
    scores = model(similarity="cosine").score(batch_of(*histories()))
    assert scores.abs().max() <= 1 + 1e-6
    assert scores[1:].abs().max() > 0.1


def test_the_output_layer_is_the_item_table():
    made = model(similarity="dot")
    assert made.item_table() is made.items.weight
    names = {name.split(".")[0] for name, _ in made.named_parameters()}
    assert names == {"items", "positions", "blocks", "norm"}
    cosine = model(similarity="cosine")
    torch.testing.assert_close(cosine.item_table(), F.normalize(cosine.items.weight, dim=-1))


def test_dropout_works_in_training_only():
    made, batch = model(dropout=0.5), batch_of([1, 2, 3])
    assert torch.equal(made.score(batch), made.score(batch))
    made.train()
    assert not torch.equal(made.score(batch), made.score(batch))


def test_scores_stay_float32_under_autocast():
    made = model()
    with torch.autocast("cpu", torch.bfloat16):
        scores = made.score(batch_of(*histories()))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, made.score(batch_of(*histories())), rtol=0.1, atol=0.3)
    assert len(scores[5].unique()) == ITEMS  # rounded to bfloat16, some would tie


def test_the_start_is_small_and_seeded():
    torch.manual_seed(4)
    first = Transformer(TransformerConfig(), 100)
    torch.manual_seed(4)
    second = Transformer(TransformerConfig(), 100)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert float(first.items.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(first.blocks[0].attention.project_in.bias.detach().abs().max()) == 0


def test_the_model_compiles_whole():
    made = model()
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (histories(), histories(4), [[2, 5, 1]]):
        torch.testing.assert_close(compiled(batch_of(*rows)).values, made(batch_of(*rows)).values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 10, "heads": 3}, "config: heads must divide width 10"),
        ({"witdh": 10}, "config: unknown key 'witdh' (did you mean 'width'?)"),
        ({"dropout": 1.0}, "config: 'dropout': expected less than 1, got 1.0"),
        ({"max_length": 0}, "config: 'max_length': expected greater than or equal to 1, got 0"),
        ({"similarity": "euclid"}, "config: 'similarity': expected 'dot' or 'cosine', got 'euclid'"),
    ],
)
def test_a_wrong_configuration_is_one_line(values, message):
    with pytest.raises(InvalidConfig) as caught:
        TransformerConfig.parse(values)
    assert str(caught.value).replace("'", "") == message.replace("'", "")


def test_a_configuration_survives_being_written():
    config = TransformerConfig(width=48, heads=3)
    assert TransformerConfig.parse(config.plain()) == config
    assert config.plain()["kind"] == "transformer"
