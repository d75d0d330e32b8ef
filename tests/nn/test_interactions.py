"""Interactions of features against their formulas, one pair, one layer, one target at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from serrate.errors import InvalidArgument
from serrate.jagged import JaggedTensor, gather_rows
from serrate.nn import CrossNetwork, Dice, DINAttention, DotInteraction
from serrate.testing import jagged_cases

CASES = pytest.mark.parametrize("case", jagged_cases(), ids=str)


def randomised(module: nn.Module) -> nn.Module:
    """The module in float64 with no parameter at a value that hides it (ones, zeros)."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2, generator=generator)
    return module.double()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# --- pairs and crosses ---


def test_products_of_pairs_by_hand():
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5]]])
    assert DotInteraction(3)(x).tolist() == [[11.0, 0.0, -1.0]]  # (1, 0), (2, 0), (2, 1)
    assert DotInteraction(3)(x[:0]).shape == (0, 3)
    assert not DotInteraction(3).state_dict()


@given(st.integers(2, 6), st.integers(0, 4), st.integers(1, 5))
def test_products_of_pairs_one_by_one(vectors, rows, width):
    x = numbers(rows, vectors, width)
    expected = [(x[:, i] * x[:, j]).sum(-1) for i in range(vectors) for j in range(i)]
    torch.testing.assert_close(DotInteraction(vectors)(x), torch.stack(expected, 1))


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layers_are_the_formula(rank):
    network, x = randomised(CrossNetwork(5, 3, rank=rank)), numbers(4, 5)
    crossed = x
    for layer in network.layers:
        whole = layer.weight if rank is None else layer[1].weight @ layer[0].weight
        bias = layer.bias if rank is None else layer[1].bias
        crossed = torch.stack([x[b] * (whole @ crossed[b] + bias) + crossed[b] for b in range(4)])
    torch.testing.assert_close(network(x), crossed)


def test_a_low_rank_has_fewer_weights():
    count = [sum(parameter.numel() for parameter in CrossNetwork(50, 2, rank=rank).parameters()) for rank in (None, 3)]
    assert count == [2 * (2500 + 50), 2 * (2 * 150 + 50)]


# --- Dice ---


def test_dice_by_hand_in_training_and_after():
    dice, x = randomised(Dice(3)), numbers(7, 3)
    mean, variance = dice.norm.running_mean.clone(), dice.norm.running_var.clone()
    for made, m, v in ((dice.train()(x), x.mean(0), x.var(0, correction=0)), (dice.eval(), None, None)):
        if m is None:
            assert not torch.equal(dice.norm.running_mean, mean)  # training moved it
            made, m, v = dice(x), dice.norm.running_mean, dice.norm.running_var
        share = torch.sigmoid((x - m) / (v + dice.norm.eps).sqrt())
        torch.testing.assert_close(made, share * x + (1 - share) * dice.slope * x)
    assert variance.shape == (3,)


@pytest.mark.parametrize("rows", [0, 1])
def test_dice_without_a_deviation_takes_the_running_one(rows):
    dice, x = randomised(Dice(3)), numbers(rows, 3)
    assert torch.equal(dice.train()(x), dice.eval()(x))


# --- DIN ---


def by_hand(module: DINAttention, target: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """What one target `(E,)` finds in one history `(n, E)`, from the four features as the paper has them."""
    if not len(row):
        return target * 0
    q = target.expand_as(row)
    scores = module.unit(module.enter(torch.cat([q, row, q - row, q * row], 1)))[:, 0]
    weights = {"none": lambda s: s, "sigmoid": torch.sigmoid, "softmax": lambda s: s.softmax(0)}[module.weights](scores)
    return weights @ row


@CASES
@pytest.mark.parametrize("weights", ["none", "sigmoid", "softmax"])
def test_one_target_a_row_is_the_formula(case, weights):
    module = randomised(DINAttention(6, (5, 4), weights=weights)).eval()
    history = case.make((6,), torch.float64)
    history = history.with_values(history.values.requires_grad_())
    targets = numbers(len(history), 6).requires_grad_()
    rows = [by_hand(module, *pair) for pair in zip(targets, history, strict=True)]
    expected = torch.stack(rows) if rows else targets
    made = module(targets, history)
    torch.testing.assert_close(made, expected)
    leaves = [targets, history.values, *module.parameters()]
    got, want = (torch.autograd.grad(result.square().sum(), leaves, materialize_grads=True, allow_unused=True)
                 for result in (made, expected))
    torch.testing.assert_close(got, want)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.data())
@pytest.mark.parametrize("weights", ["none", "softmax"])
def test_targets_that_share_a_row_find_what_each_would_alone(weights, lengths, data):
    module = randomised(DINAttention(3, activation="silu", weights=weights))
    history = JaggedTensor.from_lengths(numbers(sum(lengths), 3), torch.tensor(lengths))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)), dtype=torch.int64)
    targets = numbers(len(rows), 3)
    made = module(targets, history, rows, num_events=int(history.lengths[rows].sum()))
    torch.testing.assert_close(made, module(targets, gather_rows(history, rows)))
    assert torch.equal(made, module(targets, history, rows))


@pytest.mark.parametrize("activation", ["dice", "silu", "relu"])
def test_activations_differ_and_train(activation):
    module = DINAttention(4, (8,), activation=activation)
    assert type(module.unit[0]).__name__.lower() == activation
    history = JaggedTensor.from_lengths(torch.randn(9, 4), torch.tensor([4, 0, 5]))
    module(torch.randn(3, 4), history).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("call", "message"), [
    (lambda: DotInteraction(1), "vectors: expected 2 or more, got 1"),
    (lambda: CrossNetwork(0), "width: expected 1 or more, got 0"),
    (lambda: CrossNetwork(3, 0), "layers: expected 1 or more, got 0"),
    (lambda: CrossNetwork(3, rank=0), "rank: expected 1 or more, got 0"),
    (lambda: DINAttention(4, ()), r"hidden: expected widths of 1 or more, at least one, got \(\)"),
    (lambda: DINAttention(4, (3, 0)), "hidden: expected widths"),
    (lambda: DINAttention(4, activation="dize"), r"activation: expected .*\(did you mean 'dice'\?\), got 'dize'"),
    (lambda: DINAttention(4, weights="soft"), r"weights: expected one of .*\(did you mean 'softmax'\?\), got 'soft'"),
    (lambda: DINAttention(4)(torch.zeros(2, 4), JaggedTensor(torch.zeros(3, 4), torch.tensor([0, 3]))),
     r"targets: expected shape \(1, E\), got \(2, 4\)"),
])
def test_a_wrong_call_is_one_line(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["none", "softmax"])
def test_on_a_gpu_as_on_the_cpu(weights):
    found = []
    for device in ("cpu", "cuda"):
        module = randomised(DINAttention(8, (6,), weights=weights)).float().eval().to(device)
        history = JaggedTensor.from_lengths(numbers(60, 8).float(), torch.tensor([40, 0, 20])).to(device)
        targets, rows = numbers(5, 8).float().to(device), torch.tensor([2, 0, 0, 1, 2], device=device)
        made = module(targets, history, rows, num_events=120)
        made.square().sum().backward()
        found.append([made.detach().cpu(), *(parameter.grad.cpu() for parameter in module.parameters())])
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-3)


def test_a_wrong_number_of_events_is_seen_on_the_cpu():
    history = JaggedTensor(torch.zeros(3, 4), torch.tensor([0, 3]))
    with pytest.raises(InvalidArgument, match="num_events: expected 3, the events that the targets read, got 2"):
        DINAttention(4)(torch.zeros(1, 4), history, num_events=2)


def test_exported_with_any_number_of_targets_and_events():
    module = randomised(DINAttention(4, (5,), weights="softmax")).eval()

    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.din = module

        def forward(self, targets, values, offsets, rows):
            return self.din(targets, JaggedTensor.trusted(values, offsets), rows)

    def inputs(lengths, rows):
        history = JaggedTensor.from_lengths(numbers(sum(lengths), 4), torch.tensor(lengths))
        return numbers(len(rows), 4), history.values, history.offsets, torch.tensor(rows)

    auto = torch.export.Dim.AUTO
    exported = torch.export.export(Read(), inputs([3, 2, 4], [1, 0, 2, 2]), strict=False,
                                   dynamic_shapes=({0: auto}, {0: auto}, {0: auto}, {0: auto})).module()
    for other in (([1, 5], [1, 1, 0]), ([2, 0, 3, 4, 1], [1, 0, 4, 3, 2, 2])):
        torch.testing.assert_close(exported(*inputs(*other)), Read()(*inputs(*other)))
