"""The HSTU layer against its equations, written as loops over rows, heads, queries and keys."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from serrate.errors import InvalidArgument
from serrate.jagged import JaggedTensor
from serrate.nn import HSTULayer, HSTUOptions
from serrate.ops.attention import Call, Mask
from serrate.ops.select import choose
from serrate.testing import JaggedCase, jagged_cases
from serrate.testing.graphs import nothing_waits

CASES = pytest.mark.parametrize("case", [case for case in jagged_cases() if sum(case.lengths) < 100], ids=str)
WIDTH, HEADS = 6, 2
BIASED = HSTUOptions(normaliser=50.0, position_reach=4, time_buckets=50, dropout=0.0)
OPTIONS = {
    "paper": BIASED,
    "plain": HSTUOptions(normaliser=50.0, dropout=0.0),
    "position": HSTUOptions(normaliser=7.0, position_reach=200, dropout=0.0),
    "widths": HSTUOptions(key_width=5, value_width=4, normaliser="length", scale=0.4, time_buckets=9, dropout=0.0),
    "per head": HSTUOptions(position_reach=3, time_buckets=30, bias_per_head=True, dropout=0.0),
    "softmax": HSTUOptions(activation="softmax", position_reach=5, scale=-0.7, dropout=0.0),
    "norm per head": HSTUOptions(normaliser=50.0, value_width=4, position_reach=3, norm_per_head=True, dropout=0.0),
    "recomputed": HSTUOptions(normaliser=50.0, position_reach=4, time_buckets=50, dropout=0.0, recompute=True),
}


def layer(options: HSTUOptions, *, seed: int = 3) -> HSTULayer:
    """A layer in float64, all of whose parts are large enough to be seen in its results."""
    made = HSTULayer(WIDTH, HEADS, options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return made


def batch(case: JaggedCase) -> JaggedTensor:
    made = case.make((WIDTH,), torch.float64)
    return made.with_values(made.values.requires_grad_())


def times(x: JaggedTensor, seed: int = 8) -> tuple[Tensor, Tensor]:
    """When the events of each row happened, increasing, and when each one's prediction is asked: at the next event."""
    generator = torch.Generator().manual_seed(seed)
    steps = (10 ** (6 * torch.rand(x.num_events, generator=generator))).long()
    happened = 1_700_000_000 + steps.cumsum(0)
    return happened + (10 ** (4 * torch.rand(x.num_events, generator=generator))).long(), happened


# --- against the equations ---


def normed(x: Tensor) -> Tensor:
    """Each event less its mean over its standard deviation."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def by_hand(module: HSTULayer, row: Tensor, asked: list[int], happened: list[int]) -> Tensor:
    """One row `(n, E)` through the equations of the paper, a head and a query at a time → `(n, E)`."""
    options, n = module.options, len(row)
    key_width, value_width = (WIDTH // HEADS if width is None else width
                              for width in (options.key_width, options.value_width))
    hidden = normed(row) @ module.project_in.weight.T
    hidden = hidden * hidden.sigmoid()
    values, keys = HEADS * value_width, HEADS * key_width
    u, v, q, k = hidden[:, :values], hidden[:, values:2 * values], hidden[:, 2 * values:-keys], hidden[:, -keys:]
    heads = []
    for h in range(HEADS):
        of_values, of_keys = (slice(h * width, (h + 1) * width) for width in (value_width, key_width))
        found = []
        for i in range(n):
            scores = torch.stack([options.scale * (q[i, of_keys] @ k[j, of_keys])
                                  + bias(module, h, i - j, asked[i] - happened[j]) for j in range(i + 1)])
            found.append(weighed(options, scores, n) @ v[:i + 1, of_values])
        heads.append(torch.stack(found))
    attended = torch.cat([normed(head) for head in heads], 1) if options.norm_per_head else normed(torch.cat(heads, 1))
    return row + module.project_out(attended * u)


def bias(module: HSTULayer, head: int, distance: int, seconds: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    if module.position_bias is not None:
        table = torch.atleast_2d(module.position_bias)
        reach = module.options.position_reach
        total = total + table[head % len(table), min(distance, reach - 1) + reach - 1]
    if module.time_bias is not None:
        table = torch.atleast_2d(module.time_bias)
        size = max(abs(seconds), 1)
        beyond = max(size.bit_length() - 12, 0)  # 12 bits decide
        bucket = math.floor(math.log(size >> beyond << beyond) / 0.301)
        total = total + table[head % len(table), min(bucket, table.shape[1] - 1)]
    return total


def weighed(options: HSTUOptions, scores: Tensor, length: int) -> Tensor:
    if options.activation == "softmax":
        return scores.exp() / scores.exp().sum()
    divisor = {"length": length, None: 1}.get(options.normaliser, options.normaliser)
    return scores * scores.sigmoid() / divisor


@CASES
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients_are_those_of_the_equations(case, options):
    module, x = layer(options), batch(case)
    asked, happened = times(x)
    result = module(x, query_times=asked, key_times=happened)
    ends = x.offsets.tolist()
    rows = [by_hand(module, row, asked[start:end].tolist(), happened[start:end].tolist())
            for row, start, end in zip(x, ends, ends[1:], strict=False) if len(row)]
    expected = torch.cat([x.values[:0], *rows])
    assert torch.equal(result.offsets, x.offsets)
    torch.testing.assert_close(result.values, expected, rtol=1e-10, atol=1e-10)
    leaves = [x.values, *module.parameters()]
    incoming = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    got, want = (torch.autograd.grad((values * incoming).sum(), leaves, materialize_grads=True, allow_unused=True)
                 for values in (result.values, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def padded(module: HSTULayer, x: JaggedTensor, asked: Tensor, happened: Tensor) -> Tensor:
    """The layer as public code has it: `(B, N, E)` with zeros where there is no event → the events of the result."""
    longest, options = max([len(row) for row in x], default=0), module.options
    wide, ask, happen = (torch.nn.utils.rnn.pad_sequence(list(part.split(x.lengths.tolist())), batch_first=True)
                         for part in (x.values, asked, happened))
    u, v, q, k = F.silu(module.project_in(F.layer_norm(wide, (WIDTH,), eps=1e-6))).split(module.widths, -1)
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * options.scale
    places = torch.arange(longest)
    distance = (places[:, None] - places).clamp(1 - options.position_reach, options.position_reach - 1)
    scores = scores + module.position_bias[distance + options.position_reach - 1]
    apart = (ask[:, :, None] - happen[:, None, :]).abs().clamp(min=1).double().log() / 0.301
    scores = scores + module.time_bias[apart.floor().long().clamp(max=options.time_buckets - 1)][:, None]
    weights = (F.silu(scores) / options.normaliser).tril()
    attended = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
    out = wide + module.project_out(F.layer_norm(attended, attended.shape[-1:], eps=1e-6) * u)
    return torch.cat([out[row, :length] for row, length in enumerate(x.lengths.tolist())])


def test_jagged_is_padded():
    module, x = layer(BIASED), batch(JaggedCase("", (5, 17, 1, 0, 32, 8)))
    _, happened = times(x)
    happened = (happened - 1_700_000_000) // 10_000  # under 4096, where no bits are cut
    asked = happened + 3
    result, expected = module(x, query_times=asked, key_times=happened).values, padded(module, x, asked, happened)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    leaves = [x.values, *module.parameters()]
    torch.testing.assert_close(torch.autograd.grad(result.square().sum(), leaves),
                               torch.autograd.grad(expected.square().sum(), leaves), rtol=1e-8, atol=1e-8)


# --- properties ---


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.data())
def test_a_later_event_changes_no_earlier_result(lengths, data):
    module, x = layer(BIASED), JaggedCase("", tuple(lengths)).make((WIDTH,), torch.float64)
    if not x.num_events:
        return
    changed = data.draw(st.integers(0, x.num_events - 1))
    row = int(x.row_index()[changed])
    asked, happened = times(x)
    other = x.values.clone()
    other[changed] += 1.0
    later = happened.clone()
    later[changed] += 5  # when it happened is seen by later events only, and by itself
    before = module(x, query_times=asked, key_times=happened).values
    after = module(x.with_values(other), query_times=asked, key_times=later).values
    reached = torch.arange(x.num_events) >= changed
    reached &= x.row_index() == row
    assert torch.equal(before[~reached], after[~reached])
    assert not torch.allclose(before[changed], after[changed])


def test_when_a_prediction_is_asked_changes_that_one_alone():
    module, x = layer(BIASED), JaggedCase("", (4, 6)).make((WIDTH,), torch.float64)
    asked, happened = times(x)
    other = asked.clone()
    other[6] = happened[6]
    before, after = (module(x, query_times=each, key_times=happened).values for each in (asked, other))
    differs = (before != after).any(1)
    assert differs.tolist() == [at == 6 for at in range(10)]


def test_without_query_times_an_event_asks_when_it_happens():
    module, x = layer(BIASED), JaggedCase("", (4, 6)).make((WIDTH,), torch.float64)
    _, happened = times(x)
    assert torch.equal(module(x, key_times=happened).values,
                       module(x, query_times=happened, key_times=happened).values)


@pytest.mark.parametrize("normaliser", [50.0, "length", None])
def test_a_row_depends_on_nothing_but_itself(normaliser):
    module = layer(HSTUOptions(normaliser=normaliser, position_reach=4, time_buckets=50, dropout=0.0))
    x = JaggedCase("", (5, 0, 9, 3)).make((WIDTH,), torch.float64)
    asked, happened = times(x)
    whole = module(x, query_times=asked, key_times=happened)
    for row, (start, end) in enumerate(zip(x.offsets.tolist(), x.offsets.tolist()[1:], strict=False)):
        alone = JaggedTensor.from_lengths(x.values[start:end], torch.tensor([end - start]))
        alone = JaggedTensor.trusted(alone.values, alone.offsets, longest=1000)  # a bound, as a caller may give
        result = module(alone, query_times=asked[start:end], key_times=happened[start:end])
        torch.testing.assert_close(result.values, whole[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["paper", "per head", "softmax", "norm per head", "recomputed"])
def test_every_parameter_learns(name):
    module, x = layer(OPTIONS[name]), batch(JaggedCase("", (7, 12, 3)))
    asked, happened = times(x)
    result = module(x, query_times=asked, key_times=happened)
    result.values.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name
    of_positions = torch.atleast_2d(module.position_bias.grad)
    reach = module.options.position_reach
    assert (of_positions[:, :reach - 1] == 0).all()  # keys after their query, which a causal mask hides
    assert (of_positions[:, reach - 1:] != 0).all()


@pytest.mark.parametrize("recompute", [False, True])
def test_targets_and_other_masks_are_those_of_the_call(recompute):
    options = HSTUOptions(normaliser=50.0, position_reach=4, dropout=0.0, recompute=recompute)
    module, x = layer(options), batch(JaggedCase("", (9,)))
    asked_alone = [module(x.with_values(x.values)[0:1] if target is None else
                          JaggedTensor.from_lengths(torch.cat([x.values[:6], x.values[target:target + 1]]),
                                                    torch.tensor([7]))).values[-1] for target in (6, 7, 8)]
    together = module(x, mask=Mask(causal=True, targets=3)).values
    torch.testing.assert_close(together[6:], torch.stack(asked_alone), rtol=1e-10, atol=1e-10)
    full = module(x, mask=Mask()).values
    assert not torch.allclose(full[0], module(x).values[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_is_of_training_and_of_the_gated_outputs(recompute):
    torch.manual_seed(0)
    x = JaggedCase("", (9, 4)).make((WIDTH,), torch.float64)
    module = layer(HSTUOptions(dropout=0.999999, recompute=recompute))
    bare = x.values + module.project_out.bias
    torch.testing.assert_close(module(x).values, bare)  # nothing but the residual path is left
    assert not torch.allclose(module.eval()(x).values, bare)
    half = layer(HSTUOptions(dropout=0.5, recompute=recompute))
    assert not torch.equal(half(x).values, half(x).values)
    assert torch.equal(half.eval()(x).values, half(x).values)


def test_what_is_recomputed_drops_the_same():
    x = batch(JaggedCase("", (9, 4)))
    results = []
    for recompute in (False, True):
        module = layer(HSTUOptions(dropout=0.5, attention_dropout=0.3, recompute=recompute))
        torch.manual_seed(5)
        out = module(x).values
        results.append((out, *torch.autograd.grad(out.square().sum(), [x.values, *module.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_dropout_of_attention_keeps_the_mean():
    torch.manual_seed(0)
    x = JaggedCase("", (30,)).make((WIDTH,), torch.float64)
    module = layer(HSTUOptions(attention_dropout=0.5, dropout=0.0))
    module.finish = lambda values, attended, *_: attended.flatten(1)  # before the norm, which is not linear
    exact = module.eval()(x).values
    drawn = torch.stack([module.train()(x).values.detach() for _ in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    error = (drawn.mean(0) - exact.detach()).abs() / (drawn.std(0) / 20 + 1e-12)
    assert float(error.max()) < 5


def test_a_new_layer_is_near_the_identity_and_as_wide_as_told():
    torch.manual_seed(0)
    module = HSTULayer(64, 4, HSTUOptions(key_width=8, position_reach=10, time_buckets=129))
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {"project_in.weight": (2 * 64 + 2 * 32, 64), "project_out.weight": (64, 64),
                      "project_out.bias": (64,), "position_bias": (19,), "time_bias": (129,)}
    for name, spread in (("project_in.weight", 0.02), ("time_bias", 0.02), ("project_out.weight", (2 / 128) ** 0.5)):
        assert float(module.get_parameter(name).detach().std()) == pytest.approx(spread, rel=0.25)
    per_head = HSTULayer(64, 4, HSTUOptions(position_reach=10, time_buckets=5, bias_per_head=True))
    assert (per_head.position_bias.shape, per_head.time_bias.shape) == ((4, 19), (4, 5))


def test_under_autocast_the_residual_stays_wide():
    module, x = layer(HSTUOptions(normaliser=20.0, dropout=0.0)).float(), JaggedCase("", (9, 0, 4)).make((WIDTH,))
    exact = module(x).values
    with torch.autocast("cpu", torch.bfloat16):
        result = module(x).values
    assert result.dtype == torch.float32
    assert 0 < float((result - exact).detach().abs().max()) < 0.1


# --- what the backward pass keeps ---


class Living(TorchDispatchMode):
    """Notes the memory of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in torch.utils._pytree.tree_leaves(result):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes(self) -> int:
        """Return how much of it is still held."""
        return sum(size for storage, size in self.made.values() if not storage.expired())


def bytes_kept(module: HSTULayer, events: int, dtype: torch.dtype) -> int:
    """Return how many bytes are held from the forward pass of one row on, its result apart and its events included."""
    width = module.project_in.in_features
    start = torch.randn(events, width, dtype=dtype, requires_grad=True)
    with Living() as living:
        result = module(JaggedTensor.from_lengths(start * 1.0, torch.tensor([events]))).values
        gc.collect()
        held = living.bytes() - result.untyped_storage().nbytes()
    torch.autograd.grad(result.float().square().sum(), [start, *module.parameters()])  # and it suffices
    return held


@pytest.mark.parametrize("activation", ["silu", "softmax"])
@pytest.mark.parametrize(("recompute", "autocast", "most"), [
    (False, False, 12), (True, False, 4), (False, True, 14), (True, True, 6)])
def test_as_many_bytes_are_kept_as_is_said(activation, recompute, autocast, most):
    width, heads = 64, 4
    options = HSTUOptions(activation=activation, dropout=0.2, recompute=recompute)
    module = HSTULayer(width, heads, options).to(torch.float32 if autocast else torch.bfloat16)
    call = Call(torch.device("cpu"), torch.bfloat16, 16, 16, Mask(causal=True), pointwise=activation == "silu")
    if choose("attention", call).implementation.name == "reference":
        pytest.skip("the oracle of attention keeps all its scores")
    few, many = 300, 900
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        less, more = (bytes_kept(module, events, torch.float32 if autocast else torch.bfloat16)
                      for events in (few, many))
    an_event = (more - less) / (many - few)
    assert an_event <= most * width + 4 * heads  # the log-sum-exp
    assert an_event >= most * width - 1  # and what is said is what is kept, a bias apart that autocast casts once


def bytes_asked() -> int:
    """Return the bytes of all tensors on the GPU: of 26 MiB a block may be that has 25 asked for, the projections."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


@pytest.mark.gpu
@pytest.mark.parametrize(("recompute", "most"), [(False, 12), (True, 4)])
def test_on_a_gpu_no_more_is_held_and_nothing_waits(recompute, most):
    width, lengths = 256, torch.full((64,), 200)
    options = HSTUOptions(normaliser=200.0, recompute=recompute, position_reach=200)
    module = HSTULayer(width, 4, options).cuda().bfloat16()
    start = torch.randn(12800, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    x = JaggedTensor.from_lengths(start, lengths.cuda())
    module(x).values.sum().backward()  # compiles, and makes what is made once
    torch.cuda.synchronize()
    before = bytes_asked()
    with nothing_waits():
        result = module(x.with_values(start * 1.0)).values
        held = bytes_asked() - before - result.nbytes
        result.sum().backward()
    assert held <= 1.02 * most * width * 12800


# --- compiled ---


@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_whole_and_once_for_all_lengths(recompute):
    options = HSTUOptions(activation="softmax", dropout=0.0, recompute=recompute)  # served by an operator on the CPU
    module = layer(options).float()

    def loss(values: Tensor, offsets: Tensor) -> Tensor:
        return module(JaggedTensor.trusted(values * 2, offsets)).values.square().sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((5, 3), (2, 0, 7, 4), (30, 1, 1)):
            x = JaggedCase("", lengths).make((WIDTH,))
            leaves = [x.values.requires_grad_(), *module.parameters()]
            eager = torch.autograd.grad(loss(x.values, x.offsets), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(x.values, x.offsets), leaves), eager,
                                       rtol=1e-4, atol=1e-4)


# --- errors ---


@pytest.mark.parametrize(("width", "heads", "options", "message"), [
    (6, 4, HSTUOptions(), "heads: expected a divisor of width 6, got 4"),
    (6, 0, HSTUOptions(key_width=2, value_width=2), "heads: expected 1 or more, got 0"),
    (0, 1, HSTUOptions(), "width: expected 1 or more, got 0"),
    (6, 2, HSTUOptions(key_width=0), "key_width: expected 1 or more, got 0"),
    (6, 2, HSTUOptions(value_width=-1), "value_width: expected 1 or more, got -1"),
    (6, 2, HSTUOptions(position_reach=-1), "position_reach: expected 0 or more, got -1"),
    (6, 2, HSTUOptions(time_buckets=-1), "time_buckets: expected 0 or more, got -1"),
    (6, 2, HSTUOptions(dropout=1.0), "dropout: expected a number from 0 to below 1, got 1.0"),
    (6, 2, HSTUOptions(attention_dropout=-0.1), "weights.dropout: expected a number from 0 to below 1, got -0.1"),
    (6, 2, HSTUOptions(activation="softmax", normaliser=3.0),
     "weights.normaliser: expected None under a softmax, which normalises, got 3.0"),
])  # fmt: skip
def test_a_layer_that_cannot_be_is_refused(width, heads, options, message):
    with pytest.raises(InvalidArgument) as caught:
        HSTULayer(width, heads, options)
    assert str(caught.value) == message


def test_heads_need_not_divide_a_width_when_their_own_are_given():
    module = HSTULayer(7, 2, HSTUOptions(key_width=3, value_width=2))
    assert module(JaggedCase("", (3, 2)).make((7,))).values.shape == (5, 7)


def test_a_table_of_times_without_times_is_refused():
    with pytest.raises(InvalidArgument) as caught:
        layer(BIASED)(batch(JaggedCase("", (3,))))
    assert str(caught.value) == "key_times: expected times of the events, as the layer has a table of times, got None"
