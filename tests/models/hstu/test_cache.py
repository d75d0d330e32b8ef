"""What is cached of histories: more events and candidates behind them are what they are in whole histories."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument
from serrate.jagged import EventBatch, JaggedTensor, concatenate_events, gather_rows, split_events
from serrate.models.hstu.cache import encode_candidates, encode_events
from serrate.nn import HSTULayer, HSTUOptions
from serrate.ops.attention import Mask
from serrate.testing import assert_within_budget

WIDTH, HEADS = 6, 2
OPTIONS = {
    "paper": HSTUOptions(normaliser=50.0, position_reach=4, time_buckets=50),
    "far": HSTUOptions(normaliser=7.0, position_reach=200),
    "times alone": HSTUOptions(key_width=5, value_width=4, time_buckets=9, scale=0.4, bias_per_head=True),
    "softmax": HSTUOptions(activation="softmax", position_reach=5, time_buckets=30),
    "plain": HSTUOptions(normaliser=9.0, attention_dropout=0.3, recompute=True, norm_per_head=True),
}
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def stack(options: HSTUOptions, depth: int = 2, dtype: torch.dtype = torch.float64) -> torch.nn.ModuleList:
    """Layers all of whose parts are large enough to be seen in their results."""
    made = torch.nn.ModuleList(HSTULayer(WIDTH, HEADS, options) for _ in range(depth)).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return made


class Histories:
    """Random events `x` in rows of these lengths with their times `asked` and `happened`, behind histories or not."""

    def __init__(self, lengths: list[int], seed: int, dtype: torch.dtype = torch.float64, start: int = 0):
        generator = torch.Generator().manual_seed(seed)
        events = sum(lengths)
        self.x = JaggedTensor.from_lengths(torch.randn(events, WIDTH, generator=generator, dtype=dtype),
                                           torch.tensor(lengths, dtype=torch.int64))
        steps = (10 ** (6 * torch.rand(events, generator=generator))).long()
        self.happened = start + steps.cumsum(0)
        self.asked = self.happened + (10 ** (4 * torch.rand(events, generator=generator))).long()


def through(layers, x: JaggedTensor, asked: Tensor, happened: Tensor, mask: Mask | None = None) -> Tensor:
    for layer in layers:
        x = layer(x, query_times=asked, key_times=happened, mask=mask)
    return x.values


def one_by_one(layers, old: Histories, candidates: JaggedTensor, times: Tensor, mask: Mask | None = None) -> Tensor:
    """Each candidate as the last event of a history of its own, `(M, E)`; times are `(B,)`."""
    found = []
    asked, happened = (list(part.split(old.x.lengths.tolist())) for part in (old.asked, old.happened))
    for row, (past, behind) in enumerate(zip(old.x, candidates, strict=True)):
        for candidate in behind:
            events = torch.cat([past, candidate[None]])
            whole = JaggedTensor.from_lengths(events, torch.tensor([len(events)]))
            now = times[row : row + 1]
            times_asked, times_happened = (torch.cat([part[row], now]) for part in (asked, happened))
            found.append(through(layers, whole, times_asked, times_happened, mask)[-1])
    return torch.stack(found) if found else candidates.values


def behind(lengths: list[int], seed: int = 5, dtype: torch.dtype = torch.float64) -> JaggedTensor:
    return Histories(lengths, seed, dtype).x


def request_times(rows: int) -> Tensor:
    return 20_000_000 * 3 ** torch.arange(rows)  # each in a bucket of its own


@EVERY
def test_events_are_those_of_the_layers_and_the_cache_has_their_keys(options):
    layers, old = stack(options), Histories([3, 0, 5], 1)
    found, cache = encode_events(layers, old.x, query_times=old.asked, key_times=old.happened)
    torch.testing.assert_close(found.values, through(layers, old.x, old.asked, old.happened))
    assert list(cache) == ["time", "keys.0", "values.0", "keys.1", "values.1"]
    first = layers[0]
    assert isinstance(first, HSTULayer)
    _, values, _, keys = first.project(old.x.values)
    torch.testing.assert_close(cache["keys.0"].values, keys)
    torch.testing.assert_close(cache["values.0"].values, values)
    assert torch.equal(cache["time"].values, old.happened)
    assert torch.equal(cache.offsets, old.x.offsets)


@given(lengths=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), max_size=4),
       options=st.sampled_from(list(OPTIONS.values())), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_extended_histories_are_whole_ones(lengths, options, seed):
    layers = stack(options)
    parts = [Histories([row[n] for row in lengths], seed + n, start=10**7 * n) for n in range(3)]
    cache, found = None, []
    for part in parts:
        hidden, cache = encode_events(layers, part.x, cache, query_times=part.asked, key_times=part.happened)
        found.append(hidden)
    whole, asked, happened = joined(parts)
    expected, at_once = encode_events(layers, whole, query_times=asked, key_times=happened)
    torch.testing.assert_close(concatenate_events(found).values, expected.values)
    assert cache is not None
    assert torch.equal(cache.offsets, at_once.offsets.long())
    for name in at_once:
        torch.testing.assert_close(cache[name].values, at_once[name].values)


def joined(parts: list[Histories]) -> tuple[JaggedTensor, Tensor, Tensor]:
    """The events of all parts row by row, and both times."""
    x = concatenate_events([part.x for part in parts])
    asked, happened = (concatenate_events([part.x.with_values(getattr(part, name)) for part in parts]).values
                       for name in ("asked", "happened"))
    return x, asked, happened


@given(lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=4), microbatch=st.integers(1, 7),
       options=st.sampled_from(list(OPTIONS.values())), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_candidates_are_what_each_is_alone(lengths, microbatch, options, seed):
    layers = stack(options)
    old, candidates = Histories([row[0] for row in lengths], seed), behind([row[1] for row in lengths], seed + 1)
    now = request_times(len(lengths))
    _, cache = encode_events(layers, old.x, query_times=old.asked, key_times=old.happened)
    found = encode_candidates(layers, cache, candidates, asked=now, microbatch=microbatch)
    assert torch.equal(found.offsets, candidates.offsets)
    torch.testing.assert_close(found.values, one_by_one(layers, old, candidates, now))


@given(order=st.permutations(range(6)), microbatch=st.integers(1, 7))
@settings(max_examples=20)
def test_the_order_of_candidates_changes_nothing(order, microbatch):
    layers, old, candidates = stack(OPTIONS["paper"]), Histories([4], 1), behind([6])
    _, cache = encode_events(layers, old.x, query_times=old.asked, key_times=old.happened)
    now = request_times(1)
    found = encode_candidates(layers, cache, candidates.with_values(candidates.values[list(order)]), asked=now,
                              microbatch=microbatch)
    expected = encode_candidates(layers, cache, candidates, asked=now)
    torch.testing.assert_close(found.values, expected.values[list(order)])


@EVERY
@pytest.mark.parametrize("microbatch", [1, 3, 100])
def test_float32_keeps_the_promise_of_numerics(options, microbatch):
    lengths, shown = [7, 0, 30], [5, 2, 1]
    old, candidates, now = Histories(lengths, 2), behind(shown), request_times(3)
    reference = one_by_one(stack(options), old, candidates, now)
    low, layers = Histories(lengths, 2), stack(options, dtype=torch.float32)
    low.x, few = low.x.to(dtype=torch.float32), candidates.to(dtype=torch.float32)
    plain = one_by_one(layers, low, few, now)
    _, cache = encode_events(layers, low.x, query_times=low.asked, key_times=low.happened)
    found = encode_candidates(layers, cache, few, asked=now, microbatch=microbatch)
    assert_within_budget(found.values, reference, plain)


def test_the_length_of_the_history_normalises_without_the_candidate():
    layers = stack(HSTUOptions(normaliser="length", position_reach=4))
    old, candidates, now = Histories([4, 0], 1), behind([3, 2]), request_times(2)
    _, cache = encode_events(layers, old.x, key_times=old.happened)
    found = encode_candidates(layers, cache, candidates, microbatch=2)
    expected = one_by_one(layers, old, candidates, now, Mask(causal=True, targets=1))
    torch.testing.assert_close(found.values, expected)
    assert not torch.allclose(found.values, one_by_one(layers, old, candidates, now))


def test_candidates_are_not_kept():
    layers, old = stack(OPTIONS["paper"]), Histories([3, 2], 1)
    _, cache = encode_events(layers, old.x, query_times=old.asked, key_times=old.happened)
    before = {name: cache[name].values.clone() for name in cache}
    candidates, now = behind([4, 1]), request_times(2)
    first = encode_candidates(layers, cache, candidates, asked=now, microbatch=2)
    second = encode_candidates(layers, cache, candidates, asked=now, microbatch=2)
    assert torch.equal(first.values, second.values)
    assert all(torch.equal(cache[name].values, before[name]) for name in cache)


def test_a_microbatch_bounds_what_goes_through_a_layer_at_once(monkeypatch):
    layers, old = stack(OPTIONS["far"], depth=1), Histories([3, 2, 1], 1)
    _, cache = encode_events(layers, old.x)
    seen = []
    project = HSTULayer.project
    monkeypatch.setattr(HSTULayer, "project", lambda self, values, *rest: seen.append(len(values)) or
                        project(self, values, *rest))
    encode_candidates(layers, cache, behind([5, 0, 2]), microbatch=2)
    assert seen == [4, 2, 1]  # 2 and 2, 2, 1: no pass for rows that have no more


def test_caches_are_edited_as_batches_are():
    layers, old = stack(OPTIONS["paper"]), Histories([3, 2, 4], 1)
    _, cache = encode_events(layers, old.x, query_times=old.asked, key_times=old.happened)
    users = torch.tensor([2, 0, 2])
    candidates, now = behind([2, 1, 3]), request_times(3)
    found = encode_candidates(layers, gather_rows(cache, users), candidates, asked=now)
    parts = [x.with_values(values) for x, values in ((old.x, old.x.values), (old.x, old.asked), (old.x, old.happened))]
    x, asked, happened = (gather_rows(part, users) for part in parts)
    again = encode_events(layers, x, query_times=asked.values, key_times=happened.values)[1]
    torch.testing.assert_close(found.values, encode_candidates(layers, again, candidates, asked=now).values)


def test_a_newest_event_asked_at_another_time_is_forgotten_and_given_again():
    layers, old, new = stack(OPTIONS["paper"]), Histories([3, 4], 1), Histories([2, 1], 2, start=10**8)
    _, cache = encode_events(layers, old.x, query_times=old.asked, key_times=old.happened)
    x, asked, happened = joined([old, new])
    last = x.offsets[:-1] + old.x.lengths - 1
    asked = asked.index_copy(0, last, happened[last + 1])  # it was asked when the next event came
    kept = split_events(cache, cache.lengths - 1)[0]
    again, times_asked, times = (split_events(part, kept.lengths)[1] for part in (
        x, x.with_values(asked), x.with_values(happened)))
    found, _ = encode_events(layers, again, kept, query_times=times_asked.values, key_times=times.values)
    expected = split_events(x.with_values(through(layers, x, asked, happened)), kept.lengths)[1]
    torch.testing.assert_close(found.values, expected.values)
    stale, _ = encode_events(layers, new.x, cache, query_times=new.asked, key_times=new.happened)
    assert not torch.allclose(stale.values, split_events(expected, torch.tensor([1, 1]))[1].values)


@pytest.mark.parametrize("lengths", [[4], [3, 0, 2]], ids=str)
def test_offsets_of_32_bits_and_rows_that_nobody_has_measured(lengths):
    layers, old, new = stack(OPTIONS["paper"]), Histories(lengths, 1), Histories(lengths[::-1], 2, start=10**8)
    candidates, now = behind([5, 1, 3][:len(lengths)]), request_times(len(lengths)) + 2 * 10**8
    plain = [old.x, new.x, candidates]
    odd = [JaggedTensor.trusted(x.values, x.offsets.int(), None) for x in plain]
    results = []
    for first, then, shown in (plain, odd):
        _, cache = encode_events(layers, first, query_times=old.asked, key_times=old.happened)
        hidden, grown = encode_events(layers, then, cache, query_times=new.asked, key_times=new.happened)
        found = [encode_candidates(layers, each, shown, asked=now.int(), microbatch=2).values
                 for each in (cache, grown)]
        results.append([hidden.values, *found])
    torch.testing.assert_close(results[1], results[0])


def test_no_layers_leave_things_as_they_are():
    old, candidates = Histories([3, 2], 1), behind([2, 0])
    hidden, cache = encode_events([], old.x)
    assert torch.equal(hidden.values, old.x.values)
    assert torch.equal(encode_candidates([], cache, candidates).values, candidates.values)


def test_nothing_is_differentiated_and_a_cache_holds_no_graph():
    layers, old = stack(OPTIONS["far"]), Histories([3], 1)
    hidden, cache = encode_events(layers, old.x)
    found = encode_candidates(layers, cache, behind([3]), microbatch=1)
    parts = [hidden, found, *cache.events.values()]
    assert not any(part.values.requires_grad for part in parts)


def cached(options: HSTUOptions = OPTIONS["paper"], depth: int = 2) -> tuple[torch.nn.ModuleList, EventBatch]:
    layers, old = stack(options, depth), Histories([3, 2], 1)
    return layers, encode_events(layers, old.x, query_times=old.asked, key_times=old.happened)[1]


@pytest.mark.parametrize(("change", "message"), [
    ({"microbatch": 0}, "microbatch: expected 1 or more, got 0"),
    ({"asked": None}, "asked: expected the time of each request, as the layers have a table of times, got None"),
    ({"asked": torch.zeros(3, dtype=torch.int64)}, "asked: expected shape (2,), dtype int32 or int64, got (3,) torch"),
    ({"asked": torch.zeros(2)}, "asked: expected shape (2,), dtype int32 or int64, got (2,) torch.float32"),
    ({"x": behind([1, 1, 1])}, "cache: expected 3 rows, as what comes behind them, got 2"),
    ({"x": behind([1, 1], dtype=torch.float32)}, "cache: expected keys.0: events (2, 3) torch.float32, as the"),
    ({"cache": EventBatch({"time": behind([1, 1])})}, "cache: expected time, and keys and values of 2 layers, got"),
])
def test_what_does_not_fit_is_refused(change, message):
    layers, cache = cached()
    x = change.get("x", behind([2, 1]))
    if x.dtype == torch.float32:
        layers = layers.float()
    rest = {"asked": request_times(2), **change}
    rest.pop("x", None)
    with pytest.raises(InvalidArgument) as caught:
        encode_candidates(layers, rest.pop("cache", cache), x, **rest)
    assert str(caught.value).startswith(message)


def test_a_history_does_not_grow_under_a_normaliser_that_counts_it():
    layers, cache = cached(HSTUOptions(normaliser="length"))
    with pytest.raises(InvalidArgument, match=r"^past: expected None with normaliser 'length', which changes what"):
        encode_events(layers, behind([1, 1]), cache)


def test_layers_in_training_are_refused():
    layers, cache = cached()
    for call in (lambda: encode_candidates(layers.train(), cache, behind([1, 1]), asked=request_times(2)),
                 lambda: encode_events(layers.train(), behind([1, 1]))):
        with pytest.raises(InvalidArgument, match=r"^layers: expected HSTULayers in evaluation mode.*got in training"):
            call()
    with pytest.raises(InvalidArgument, match="got Linear"):
        encode_events([torch.nn.Linear(2, 2)], behind([1]))


def test_times_are_asked_for_where_they_are_read():
    layers, _ = cached()
    with pytest.raises(InvalidArgument, match=r"^key_times"):
        encode_events(layers, behind([1, 1]))


@pytest.mark.gpu
@pytest.mark.parametrize("microbatch", [7, 64, 1000])
def test_on_a_gpu_under_autocast(microbatch):
    torch.manual_seed(0)
    options = HSTUOptions(normaliser=300.0, position_reach=300, time_buckets=72)
    layers = torch.nn.ModuleList(HSTULayer(128, 2, options) for _ in range(2)).cuda().eval()
    lengths, shown = torch.tensor([250, 0, 33, 128]), torch.tensor([130, 3, 0, 65])
    x = JaggedTensor.from_lengths(torch.randn(int(lengths.sum()), 128), lengths).to("cuda")
    more = JaggedTensor.from_lengths(torch.randn(int(shown.sum()), 128), shown).to("cuda")
    happened = torch.arange(x.num_events, device="cuda") * 977
    now = torch.full((4,), 10**6, device="cuda")
    whole = concatenate_events([x, more])
    times = concatenate_events([x.with_values(happened), more.with_values(now.repeat_interleave(more.lengths))]).values
    with torch.no_grad():
        exact = through(layers.double(), whole.to(dtype=torch.float64), times, times,
                        Mask(causal=True, targets=more.lengths))
        exact = split_events(whole.with_values(exact), x.lengths)[1].values
        layers.float()
        with torch.autocast("cuda", torch.bfloat16):
            _, cache = encode_events(layers, x, key_times=happened)
            found = encode_candidates(layers, cache, more, asked=now, microbatch=microbatch).values
    assert cache["keys.1"].dtype == torch.bfloat16
    error = (found - exact).norm() / (exact - more.values).norm()
    assert error < 3e-2  # also fails where it is no number
