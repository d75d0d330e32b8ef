"""`build`: a typed config becomes the model it describes."""

import pytest

from serrate.config import Config
from serrate.errors import InvalidConfig
from serrate.models import HSTU, HSTUConfig, ModelConfig, Transformer, TransformerConfig, build


@pytest.mark.parametrize(("config", "kind"), [
    (TransformerConfig(width=8, feedforward=16, max_length=7), Transformer), (HSTUConfig(width=8, max_length=7), HSTU)])
def test_a_config_becomes_its_model(config, kind):
    made = build(config, 5)
    assert type(made) is kind
    assert made.config is config
    assert made.num_items == 5
    assert made.items.weight.shape == (5, 8)
    assert made.positions.weight.shape == (7, 8)


class Holder(Config):
    """Something that has a model."""

    model: ModelConfig


def test_the_kind_chooses_the_config_and_a_transformer_need_not_say_its():
    assert Holder.parse({"model": {"kind": "hstu", "time": True}}).model == HSTUConfig(time=True)
    assert Holder.parse({"model": {"kind": "transformer"}}).model == TransformerConfig()
    assert Holder.parse({"model": {"width": 8}}).model == TransformerConfig(width=8)
    assert Holder.parse({"model": HSTUConfig()}).model == HSTUConfig()
    with pytest.raises(InvalidConfig, match=r"model\.kind: expected one of .*, got 'hsut' \(did you mean 'hstu'\?\)"):
        Holder.parse({"model": {"kind": "hsut"}})
    with pytest.raises(InvalidConfig, match=r"unknown key 'model\.time'"):
        Holder.parse({"model": {"time": True}})
