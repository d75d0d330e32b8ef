"""`build`: a typed config becomes the model it describes."""

from serrate.models import Transformer, TransformerConfig, build


def test_a_config_becomes_its_model():
    config = TransformerConfig(width=8, feedforward=16, max_length=7)
    made = build(config, 5)
    assert isinstance(made, Transformer)
    assert made.config is config
    assert made.num_items == 5
    assert made.items.weight.shape == (5, 8)
    assert made.positions.weight.shape == (7, 8)
