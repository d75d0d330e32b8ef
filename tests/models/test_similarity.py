"""`build_similarity`: what a configuration names; models of products keep the weights they had."""

import pytest
import torch

from serrate.models import HSTUConfig, MixtureOfLogitsConfig, TransformerConfig, build
from serrate.models.similarity import build_similarity
from serrate.nn import DotProduct, MixtureOfLogits, MixtureOptions

SMALL = {"width": 8, "blocks": 1, "max_length": 7}


@pytest.mark.parametrize(("name", "normalise"), [("dot", False), ("cosine", True)])
def test_a_name_is_a_product(name, normalise):
    similarity = build_similarity(name, 8)
    assert isinstance(similarity, DotProduct)
    assert similarity.normalise is normalise


def test_a_mixture_is_configured_as_its_module_is():
    assert MixtureOfLogitsConfig().options == MixtureOptions()
    config = TransformerConfig.parse({**SMALL, "similarity": {"kind": "mol", "item_components": 3, "user_buckets": 5}})
    similarity = build(config, 4).similarity
    assert isinstance(similarity, MixtureOfLogits)
    assert similarity.options == MixtureOptions(item_components=3, user_buckets=5)
    assert TransformerConfig.parse(config.plain()) == config


def test_only_a_mixture_with_a_table_of_users_reads_them():
    configs = [TransformerConfig.parse({"similarity": value}) for value in (
        "dot", "cosine", {"kind": "mol"}, {"kind": "mol", "user_buckets": 1})]
    assert [config.reads_users for config in configs] == [False, False, False, True]


@pytest.mark.parametrize("config", [TransformerConfig, HSTUConfig])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_weights_of_products_have_the_names_they_had(config, similarity):
    names = build(config.parse({**SMALL, "similarity": similarity}), 5).state_dict()
    assert {name.partition(".")[0] for name in names} <= {"items", "positions", "blocks", "layers", "norm"}


@pytest.mark.parametrize("config", [TransformerConfig, HSTUConfig])
def test_a_mixture_starts_by_itself_behind_a_norm_with_learned_scale(config):
    torch.manual_seed(0)
    made = build(config.parse({**SMALL, "width": 64, "similarity": {"kind": "mol"}}), 500)
    assert isinstance(made.norm, torch.nn.LayerNorm)
    assert float(made.items.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    spread = made.similarity.item[1].weight.detach().std()
    assert float(spread) == pytest.approx((2 / (64 + 256)) ** 0.5, rel=0.1)  # Glorot and Bengio's
