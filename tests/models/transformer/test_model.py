"""The transformer's own: scores by hand, parts, start, configuration. What all models promise: `test_next_item.py`."""

import pytest
import torch
import torch.nn.functional as F

from serrate.errors import InvalidConfig
from serrate.jagged import EventBatch, JaggedTensor
from serrate.models import Transformer, TransformerConfig, build

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


def test_scores_by_hand_without_blocks():
    made = model(blocks=0, similarity="dot")
    items, positions = made.items.weight, made.positions.weight
    newest = F.layer_norm(items[4] * 8**0.5 + positions[0], (8,), made.norm.weight, made.norm.bias)
    torch.testing.assert_close(made.score(batch_of([7, 4])), (newest @ items.T)[None])


def test_the_parts_and_their_start():
    torch.manual_seed(4)
    made = Transformer(TransformerConfig(), 100)
    assert {name.split(".")[0] for name, _ in made.named_parameters()} == {"items", "positions", "blocks", "norm"}
    assert float(made.blocks[0].attention.project_in.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(made.blocks[0].attention.project_in.bias.detach().abs().max()) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 10, "heads": 3}, "config: heads must divide width 10"),
        ({"witdh": 10}, "config: unknown key 'witdh' (did you mean 'width'?)"),
        ({"dropout": 1.0}, "config: 'dropout': expected less than 1, got 1.0"),
        ({"max_length": 0}, "config: 'max_length': expected greater than or equal to 1, got 0"),
        ({"similarity": "euclid"}, "config: 'similarity': expected 'dot' or 'cosine', got 'euclid'"),
        ({"similarity": {"kind": "mlp"}}, "config: 'similarity.kind': expected 'mol', got 'mlp' (did you mean 'mol'?)"),
        ({"similarity": {"kind": "mol", "item_component": 3}},
         "config: unknown key 'similarity.item_component' (did you mean 'item_components'?)"),
        ({"similarity": {"kind": "mol", "user_buckets": 3, "query_components": 1}},
         "config: 'similarity': query_components must be 2 or more with user_buckets: one is the user's"),
    ],
)
def test_a_wrong_configuration_is_one_line(values, message):
    with pytest.raises(InvalidConfig) as caught:
        TransformerConfig.parse(values)
    assert str(caught.value).replace("'", "") == message.replace("'", "")
