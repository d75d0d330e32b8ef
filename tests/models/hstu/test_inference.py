"""Cached ranking: scores are those of whole histories read for each candidate alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.jagged import EventBatch, JaggedTensor, gather_rows, newest
from serrate.models import HSTU, HSTUConfig, HSTURanker, HSTURankingConfig
from serrate.models.hstu import encode_history, score_candidates
from serrate.testing import assert_within_budget

ITEMS, FIELDS = 11, ("item", "time", "click", "rating")
TASKS = [{"kind": "binary", "name": "click", "field": "click"},
         {"kind": "regression", "name": "rating", "field": "rating", "centre": 3, "spread": 2}]


def model(dtype: torch.dtype = torch.float64, **changes) -> HSTURanker:
    """A model all of whose parts are large enough to be seen in its scores."""
    config = {"width": 8, "blocks": 2, "heads": 2, "max_length": 20, "time": True, "tasks": TASKS, **changes}
    made = HSTURanker(HSTURankingConfig.parse(config), ITEMS).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return made.to(dtype)


def histories(lengths: list[int], seed: int = 0, start: int = 0) -> EventBatch:
    generator, events = torch.Generator().manual_seed(seed), sum(lengths)
    drawn = {"item": torch.randint(ITEMS, (events,), generator=generator),
             "time": start + (10 ** (5 * torch.rand(events, generator=generator))).long().cumsum(0),
             "click": torch.randint(2, (events,), generator=generator),
             "rating": torch.randint(1, 6, (events,), generator=generator)}
    rows = torch.tensor(lengths, dtype=torch.int64)
    return EventBatch({name: JaggedTensor.from_lengths(values, rows) for name, values in drawn.items()})


def rows_of(values: list[list[int]]) -> JaggedTensor:
    return JaggedTensor.from_lengths(torch.tensor([x for row in values for x in row], dtype=torch.int64),
                                     torch.tensor([len(row) for row in values], dtype=torch.int64))


def joined(old: EventBatch, new: EventBatch) -> EventBatch:
    return EventBatch({name: rows_of([a + b for a, b in zip(old[name].tolist(), new[name].tolist(), strict=True)])
                       for name in FIELDS})


def one_by_one(made: HSTURanker, batch: EventBatch, candidates: list[list[int]], asked: torch.Tensor) -> torch.Tensor:
    """Each candidate as the newest event of its history, its action not known: what the model predicts for that."""
    found = []
    for row, shown in enumerate(candidates):
        past = {name: batch[name][row].tolist() for name in FIELDS}
        for item in shown:
            last = {"item": item, "time": int(asked[row]), "click": 1, "rating": 5}  # an action that nothing may see
            whole = EventBatch({name: rows_of([[*past[name], last[name]]]) for name in FIELDS})
            found.append(made.predict(whole).values[-1])
    return torch.stack(found) if found else torch.empty(0, len(TASKS), dtype=torch.float64)


def request_times(rows: int) -> torch.Tensor:
    return 20_000_000 * 3 ** torch.arange(rows)  # each in a bucket of its own


shown_lists = st.lists(st.integers(0, ITEMS - 1), max_size=6)


@given(rows=st.lists(st.tuples(st.integers(0, 5), shown_lists), max_size=4), microbatch=st.integers(1, 7),
       activation=st.sampled_from(["silu", "softmax"]))
@settings(max_examples=25)
def test_scores_are_those_of_each_candidate_alone_for_any_microbatch_and_order(rows, microbatch, activation):
    made, batch = model(activation=activation), histories([row[0] for row in rows], seed=len(rows))
    shown, asked = [row[1] for row in rows], request_times(len(rows))
    cache = encode_history(made, batch)
    found = score_candidates(made, cache, rows_of(shown), asked=asked, microbatch=microbatch)
    torch.testing.assert_close(found.values, one_by_one(made, batch, shown, asked).to(found.values))
    torch.testing.assert_close(found.values, made.score(batch, rows_of(shown), asked).values)
    turned = score_candidates(made, cache, rows_of([row[::-1] for row in shown]), asked=asked, microbatch=microbatch)
    torch.testing.assert_close(torch.cat([found.values[:0], *(row.flip(0) for row in turned)]), found.values)


@given(lengths=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_a_history_that_grew_is_cached_as_if_read_whole(lengths, seed):
    made = model()
    parts = [histories([row[n] for row in lengths], seed + n, start=10**7 * n) for n in range(3)]
    cache = None
    for part in parts:
        cache = encode_history(made, part, cache)
    assert cache is not None
    whole = encode_history(made, joined(joined(parts[0], parts[1]), parts[2]))
    assert torch.equal(cache.offsets, whole.offsets)
    for name in whole:
        torch.testing.assert_close(cache[name].values, whole[name].values)


def test_the_cache_has_what_was_done_and_when():
    made, shown, asked = model(), rows_of([[1, 2]]), request_times(1)
    batch = histories([4])
    expected = score_candidates(made, encode_history(made, batch), shown, asked=asked)
    for name in FIELDS:
        changed = batch[name].values.clone()
        changed[1] = {"click": 1 - changed[1], "rating": 6 - changed[1] % 3}.get(name, changed[1] // 2)
        other = EventBatch({**batch.events, name: batch[name].with_values(changed)})
        assert not torch.equal(changed, batch[name].values)
        found = score_candidates(made, encode_history(made, other), shown, asked=asked)
        assert not torch.allclose(found.values, expected.values), name
    later = score_candidates(made, encode_history(made, batch), shown, asked=asked * 100)
    assert not torch.allclose(later.values, expected.values)


def test_float32_scores_keep_the_promise_of_numerics():
    batch, shown, asked = histories([9, 0, 16]), [[3, 1, 4, 1], [5], [9, 2, 6]], request_times(3)
    low = model(torch.float32)
    cache = encode_history(low, newest(batch, 12))
    cache = encode_history(low, histories([2, 3, 0], 4, start=10**7), cache)
    whole = joined(newest(batch, 12), histories([2, 3, 0], 4, start=10**7))
    found = score_candidates(low, cache, rows_of(shown), asked=asked, microbatch=2)
    assert_within_budget(found.values, one_by_one(model(), whole, shown, asked), one_by_one(low, whole, shown, asked))


def test_a_model_without_times_needs_none():
    made, shown = model(time=False), rows_of([[1, 2], [3]])
    batch = histories([3, 2])
    cache = encode_history(made, EventBatch({name: batch[name] for name in ("item", "click", "rating")}))
    expected = made.score(batch, shown)
    for asked in (None, request_times(2)):
        found = score_candidates(made, cache, shown, asked=asked, microbatch=1)
        torch.testing.assert_close(found.values, expected.values)


def test_users_are_picked_from_a_cache():
    made, batch, shown = model(), histories([3, 2, 4]), rows_of([[1, 2], [3]])
    users = torch.tensor([2, 0])
    found = score_candidates(made, gather_rows(encode_history(made, batch), users), shown, asked=request_times(2))
    expected = made.score(gather_rows(batch, users), shown, request_times(2))
    torch.testing.assert_close(found.values, expected.values)


def test_a_history_may_grow_up_to_what_the_model_reads():
    made, cache = model(max_length=6), None
    for lengths in ([4, 1], [2, 5]):
        cache = encode_history(made, histories(lengths), cache)
    assert cache is not None
    assert cache.lengths.tolist() == [12, 12]
    with pytest.raises(InvalidArgument, match=r"^past: expected histories of at most 6 events together with those of"):
        encode_history(made, histories([0, 1]), cache)


def test_what_does_not_fit_is_refused():
    made, batch, shown = model(), histories([3, 2]), rows_of([[1], [2]])
    cache = encode_history(made, batch)
    with pytest.raises(InvalidArgument, match=r"^asked: expected the time of each request, as the layers have a table"):
        score_candidates(made, cache, shown)
    with pytest.raises(InvalidArgument, match=r"^cache: expected time, and keys and values of 1 layers, got"):
        score_candidates(model(blocks=1), cache, shown, asked=request_times(2))
    with pytest.raises(InvalidArgument, match=r"^batch: expected a field 'time', which model\.time reads"):
        encode_history(made, EventBatch({name: batch[name] for name in ("item", "click", "rating")}))
    counted = model(normaliser="length")
    past = encode_history(counted, batch)
    with pytest.raises(InvalidArgument, match=r"^past: expected None with normaliser 'length'"):
        encode_history(counted, batch, past)
    next_item = HSTU(HSTUConfig(), ITEMS).eval()
    for other, got in ((made.train(), "in training"), (next_item, "HSTU")):
        for call in (lambda other=other: encode_history(other, batch),
                     lambda other=other: score_candidates(other, cache, shown)):
            with pytest.raises(InvalidArgument, match=f"^model: expected an HSTURanker in evaluation mode.*got {got}$"):
                call()


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_whole_histories():
    made = model(torch.float32, width=64, max_length=300).cuda()
    batch, new = histories([200, 3, 0]).to("cuda"), histories([5, 0, 40], 1, start=10**8).to("cuda")
    shown = rows_of([[n % ITEMS for n in range(count)] for count in (150, 0, 70)]).to("cuda")
    asked = (request_times(3) + 2 * 10**8).cuda()
    with torch.inference_mode():
        expected = made.score(joined(batch, new).to("cuda"), shown, asked)
    cache = encode_history(made, new, encode_history(made, batch))
    found = score_candidates(made, cache, shown, asked=asked, microbatch=64)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-4)
