"""The whole run as one configuration: it round-trips, and what is wrong is one line."""

import pytest

from serrate.errors import InvalidConfig
from serrate.train import RunConfig, read_run_config


def test_a_run_is_complete_without_a_word_and_survives_being_written():
    config = RunConfig()
    assert RunConfig.parse(config.plain()) == config
    written = {**config.plain(), "format_version": 1, "dataset": {"num_users": 3}, "serrate_version": "0"}
    assert read_run_config(written) == config


@pytest.mark.parametrize("kind", ["full-softmax", "sampled-softmax", "bce"])
def test_the_loss_is_told_by_its_kind(kind):
    assert RunConfig.parse({"loss": {"kind": kind}}).loss.kind == kind


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"monitor": "ndcg@20"}},
         "config: train.monitor must be one of mrr, hr@10, ndcg@10, recall@10, hr@50, ndcg@50, recall@50"),
        ({"loss": {"kind": "softmax"}}, "config: loss.kind: expected one of 'full-softmax', 'sampled-softmax', 'bce', "
                                        "got 'softmax' (did you mean 'full-softmax'?)"),
        ({"train": {"epoch": 3}}, "config: unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ({"model": {"heads": 3}}, "config: model: heads must divide width 64"),
        ({"train": {"learning_rate": 0}}, "config: train.learning_rate: expected greater than 0, got 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(values, message):
    with pytest.raises(InvalidConfig) as caught:
        RunConfig.parse(values)
    assert str(caught.value) == message
