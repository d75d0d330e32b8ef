"""The learning rate: linear warm-up, then decay to zero at the end of the last epoch."""

import pytest

from serrate.train import TrainConfig
from serrate.train.schedule import learning_rate


def rates(steps: int = 10, **changes) -> list[float]:
    train = TrainConfig.parse({"learning_rate": 1.0, "warmup_steps": 0, **changes})
    return [learning_rate(train, step, step / steps) for step in range(steps + 1)]


def test_warm_up_is_a_line_that_ends_at_the_full_rate():
    assert rates(warmup_steps=3, decay="constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1])
    assert rates(decay="constant") == [1.0] * 11


def test_decay_goes_to_zero():
    assert rates(decay="linear") == pytest.approx([1 - n / 10 for n in range(11)])
    cosine = rates(decay="cosine")
    assert cosine[0] == 1
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[10] == pytest.approx(0)
    assert cosine == sorted(cosine, reverse=True)


def test_both_multiply():
    assert rates(warmup_steps=1, decay="linear", learning_rate=0.2)[0] == pytest.approx(0.1)
