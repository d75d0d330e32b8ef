"""HSTU's own: scores by hand, what times change, configuration. What all models promise: `test_next_item.py`."""

import math

import pytest
import torch
import torch.nn.functional as F

from serrate.errors import InvalidArgument, InvalidConfig
from serrate.jagged import EventBatch, JaggedTensor
from serrate.models import HSTU, HSTUConfig, build
from serrate.nn import HSTUOptions

ITEMS = 11
SMALL = {"width": 8, "blocks": 2, "heads": 2, "max_length": 20}
ROWS = [[7, 4, 1, 9], [], [3, 3]]
TIMES = [[100, 160, 4000, 900_000], [], [50, 50]]
ASKED = [[160, 4000, 900_000, 900_007], [], [50, 10_000]]


def model(**changes) -> HSTU:
    torch.manual_seed(0)
    made = build(HSTUConfig.parse({**SMALL, **changes}), ITEMS).eval()
    assert isinstance(made, HSTU)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch_of(rows=ROWS, **fields) -> EventBatch:
    lengths = torch.tensor([len(row) for row in rows])
    return EventBatch({name: JaggedTensor.from_lengths(torch.tensor([x for row in part for x in row]), lengths)
                       for name, part in {"item": rows, **fields}.items()})


def by_hand(made: HSTU, items: list[int], times: list[int], asked: list[int]) -> torch.Tensor:
    """The query vector of the newest event, one layer of one head after the other as the paper writes it."""
    config, n = made.config, len(items)
    x = torch.stack([made.items.weight[item] * config.width**0.5 + made.positions.weight[n - 1 - i]
                     for i, item in enumerate(items)])
    for layer in made.layers:
        wide = config.width // config.heads
        u, v, q, k = F.silu(F.layer_norm(x, x.shape[1:], eps=1e-6) @ layer.project_in.weight.T).chunk(4, 1)
        attended = torch.zeros(n, config.width, dtype=x.dtype)
        for head in range(config.heads):
            part = slice(head * wide, (head + 1) * wide)
            for i in range(n):
                for j in range(i + 1):
                    score = q[i, part] @ k[j, part]
                    score = score + layer.position_bias[config.max_length - 1 + i - j]
                    if config.time:
                        bucket = int(math.log(max(1, abs(asked[i] - times[j]))) / 0.301)
                        score = score + layer.time_bias[bucket]
                    attended[i, part] += F.silu(score) / config.max_length * v[j, part]
        gated = F.layer_norm(attended, attended.shape[1:], eps=1e-6) * u
        x = x + gated @ layer.project_out.weight.T + layer.project_out.bias
    return x[-1]


@pytest.mark.parametrize("time", [False, True])
def test_scores_by_hand(time):
    made = model(time=time, similarity="cosine").double()
    scores = made.score(batch_of(time=TIMES, asked=ASKED))
    for row, (items, times, asked) in enumerate(zip(ROWS, TIMES, ASKED, strict=True)):
        if items:
            expected = F.normalize(by_hand(made, items, times, asked), dim=0) @ F.normalize(made.items.weight, dim=1).T
            torch.testing.assert_close(scores[row], expected)


def test_dot_products_go_through_a_norm():
    made = model(similarity="dot").double()
    newest = made.newest(batch_of())[0]
    expected = by_hand(made, ROWS[0], TIMES[0], ASKED[0])
    torch.testing.assert_close(newest, F.layer_norm(expected, (8,), made.norm.weight, made.norm.bias))


def test_what_is_asked_depends_on_when_it_is_asked():
    later = [[*ASKED[0][:-1], 10**8], [], ASKED[2]]
    with_time, without = model(time=True), model()
    before, after = (with_time(batch_of(time=TIMES, asked=asked)) for asked in (ASKED, later))
    assert not torch.allclose(before[0][-1], after[0][-1])
    assert torch.equal(before[0][:-1], after[0][:-1])  # earlier predictions are asked earlier
    assert torch.equal(before[2], after[2])
    assert torch.equal(without(batch_of(time=TIMES, asked=ASKED)).values, without(batch_of()).values)


def test_only_differences_in_time_count():
    made = model(time=True)
    moved = [[[time + 10**9 for time in row] for row in part] for part in (TIMES, ASKED)]
    torch.testing.assert_close(made.score(batch_of(time=moved[0], asked=moved[1])),
                               made.score(batch_of(time=TIMES, asked=ASKED)))


@pytest.mark.parametrize("fields", [{}, {"time": TIMES}, {"asked": ASKED}], ids=lambda fields: "+".join(fields) or "-")
def test_a_batch_without_times_is_refused(fields):
    with pytest.raises(InvalidArgument, match=r"^batch: expected a field '(time|asked)', which model\.time reads, got"):
        model(time=True).score(batch_of(**fields))


def test_tables_of_bias_learn():
    made = model(time=True, bias_per_head=True)
    made.score(batch_of(time=TIMES, asked=ASKED)).square().sum().backward()
    for layer in made.layers:
        assert layer.position_bias.shape == (2, 39)
        for table in (layer.position_bias, layer.time_bias):
            assert table.grad.abs().sum() > 0
        assert (layer.position_bias.grad[:, :19] == 0).all()  # the future, which nothing sees


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, {"normaliser": 20.0, "position_reach": 20, "time_buckets": 0}),
    ({"normaliser": "length", "position": False}, {"normaliser": "length", "position_reach": 0}),
    ({"normaliser": 211, "time": True}, {"normaliser": 211.0, "time_buckets": 72}),
    ({"normaliser": "none", "scale": 0.25, "activation": "gelu"}, {"normaliser": None, "scale": 0.25}),
    ({"activation": "softmax", "key_width": 3, "value_width": 5},
     {"activation": "softmax", "normaliser": None, "key_width": 3, "value_width": 5}),
    ({"dropout": 0.5, "attention_dropout": 0.1, "recompute": True, "bias_per_head": True},
     {"dropout": 0.5, "attention_dropout": 0.1, "recompute": True, "bias_per_head": True}),
])
def test_what_a_layer_is_told(changes, expected):
    options = HSTUConfig.parse({**SMALL, **changes}).layer
    assert isinstance(options, HSTUOptions)
    assert {name: getattr(options, name) for name in expected} == expected


def test_the_parts_and_their_start():
    torch.manual_seed(4)
    made = HSTU(HSTUConfig(width=64, time=True, similarity="dot"), 100)
    assert {name.split(".")[0] for name, _ in made.named_parameters()} == {"items", "positions", "layers", "norm"}
    assert not any(True for _ in HSTU(HSTUConfig(), 9).norm.parameters())  # cosines need none
    for part in (made.positions.weight, made.layers[0].project_in.weight, made.layers[0].position_bias):
        assert float(part.detach().std()) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 10, "heads": 3}, "config: heads must divide width 10, or key_width and value_width be given"),
        ({"tiem": True}, "config: unknown key 'tiem' (did you mean 'time'?)"),
        ({"activation": "softmax", "normaliser": 3}, "config: normaliser must be null with activation softmax"),
        ({"normaliser": 0}, "config: 'normaliser': expected greater than 0, or 'length' or 'none', got 0"),
        ({"key_width": 0}, "config: 'key_width': expected greater than or equal to 1, got 0"),
        ({"activation": "swish"}, "config: 'activation': expected 'softmax', 'silu', 'gelu', 'relu_squared' or"),
    ],
)
def test_a_wrong_configuration_is_one_line(values, message):
    with pytest.raises(InvalidConfig) as caught:
        HSTUConfig.parse(values)
    assert str(caught.value).replace("'", "").startswith(message.replace("'", ""))


def test_heads_need_not_divide_a_width_of_their_own():
    made = model(width=10, heads=3, key_width=4, value_width=2)
    assert made.score(batch_of()).shape == (3, ITEMS)
