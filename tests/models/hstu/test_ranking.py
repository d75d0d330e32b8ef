"""HSTU for ranking: outputs by hand, nothing of an action seen before it, candidates as if each came next, learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.errors import InvalidArgument, InvalidConfig
from serrate.jagged import EventBatch, JaggedTensor, from_lists, gather_rows
from serrate.models import HSTURanker, HSTURankingConfig

ITEMS = 11
LIKE = {"kind": "binary", "name": "like", "field": "rating", "threshold": 4}
STARS = {"kind": "regression", "name": "stars", "field": "rating", "centre": 3, "spread": 2, "weight": 0.5}
WATCHED = {"kind": "binary", "name": "watched", "field": "seconds", "threshold": 30}
TASKS = [LIKE, STARS, WATCHED]
SMALL = {"width": 8, "blocks": 2, "heads": 2, "max_length": 20, "time": True, "tasks": TASKS}
FIELDS = {
    "item": [[7, 4, 1, 9], [], [3, 3]],
    "rating": [[5, 1, 4, 2], [], [3, 4]],
    "seconds": [[29.5, 30.0, 0.0, 400.0], [], [1.0, 99.0]],
    "time": [[100, 160, 4000, 900_000], [], [50, 50]],
}


def model(**changes) -> HSTURanker:
    torch.manual_seed(0)
    made = HSTURanker(HSTURankingConfig.parse({**SMALL, **changes}), ITEMS).eval().double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch_of(**changes) -> EventBatch:
    types = {"seconds": torch.float32}
    return EventBatch({name: from_lists(rows, types.get(name, torch.int64))
                       for name, rows in {**FIELDS, **changes}.items()})


def changed(name: str, row: int, place: int, value) -> EventBatch:
    """The batch with one entry of a field replaced."""
    rows = [list(values) for values in FIELDS[name]]
    rows[row][place] = value
    return batch_of(**{name: rows})


def by_hand(made: HSTURanker, row: int) -> torch.Tensor:
    """The outputs `(n, K)` of a row, one token, one head after the other as the paper writes it."""
    config, tokens, times = made.config, [], []
    for item, rating, seconds, time in zip(*(FIELDS[name][row] for name in FIELDS), strict=True):
        action = torch.tensor([float(rating >= 4), (rating - 3) / 2, float(seconds >= 30)], dtype=torch.float64)
        tokens += [made.items.weight[item] * 8**0.5, (made.actions.weight @ action + made.actions.bias) * 8**0.5]
        times += [time, time]
    x = torch.stack(tokens)
    for layer in made.layers:
        u, v, q, k = F.silu(F.layer_norm(x, (8,), eps=1e-6) @ layer.project_in.weight.T).chunk(4, 1)
        attended = torch.zeros_like(x)
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(len(x)):
                for j in range(i + 1):
                    bucket = int(math.log(max(1, times[i] - times[j])) / 0.301)
                    score = q[i, head] @ k[j, head] + layer.time_bias[bucket]
                    score = score + layer.position_bias[2 * config.max_length - 1 + i - j]
                    attended[i, head] += F.silu(score) / (2 * config.max_length) * v[j, head]
        gated = F.layer_norm(attended, (8,), eps=1e-6) * u
        x = x + gated @ layer.project_out.weight.T + layer.project_out.bias
    norm, first, _, _, last = made.head
    shown = F.layer_norm(x[::2], (8,), norm.weight, norm.bias)
    return F.silu(shown @ first.weight.T + first.bias) @ last.weight.T + last.bias


def test_outputs_by_hand():
    made = model()
    outputs = made(batch_of())
    assert outputs.lengths.tolist() == [4, 0, 2]
    for row in (0, 2):
        torch.testing.assert_close(outputs[row], by_hand(made, row))


def test_predictions_are_probabilities_and_values():
    made = model()
    outputs, predicted = made(batch_of()).values, made.predict(batch_of()).values
    like, stars, watched = outputs.unbind(1)
    torch.testing.assert_close(predicted, torch.stack([like.sigmoid(), 3 + 2 * stars, watched.sigmoid()], 1))


def test_the_loss_by_hand():
    made, batch = model(), batch_of()
    like, stars, watched = made(batch).values.unbind(1)
    yes = torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64)
    rating = torch.tensor([5.0, 1, 4, 2, 3, 4], dtype=torch.float64)
    long = torch.tensor([0.0, 1, 0, 1, 0, 1], dtype=torch.float64)
    events = (-(yes * like.sigmoid().log() + (1 - yes) * (1 - like.sigmoid()).log())
              + 0.5 * (stars - (rating - 3) / 2) ** 2 / 2
              - (long * watched.sigmoid().log() + (1 - long) * (1 - watched.sigmoid()).log()))
    torch.testing.assert_close(made.loss(batch), events.sum())
    weights = torch.tensor([0.0, 1, 2, 0, 0.5, 1], dtype=torch.float64)
    torch.testing.assert_close(made.loss(batch, weights), (events * weights).sum())


@pytest.mark.parametrize(("name", "other"), [("rating", lambda stars: 6 - stars + (stars == 3)),
                                             ("seconds", lambda seconds: 99.0 if seconds < 30 else 0.0)])
@pytest.mark.parametrize("place", range(4))
def test_nothing_of_an_action_is_seen_before_it(name, other, place):
    made = model()
    before, after = made(batch_of()), made(changed(name, 0, place, other(FIELDS[name][0][place])))
    assert torch.equal(before[0][: place + 1], after[0][: place + 1])  # its own event included
    assert not torch.isclose(before[0][place + 1 :], after[0][place + 1 :]).any()
    assert torch.equal(before[2], after[2])


def test_an_item_is_seen_from_its_own_event_on():
    made = model()
    before, after = made(batch_of()), made(changed("item", 0, 2, 8))
    assert torch.equal(before[0][:2], after[0][:2])
    assert not torch.isclose(before[0][2:], after[0][2:]).any()


def test_a_task_without_weight_is_read_and_not_learnt():
    made = model(tasks=[LIKE, {**STARS, "weight": 0}, WATCHED])
    batch = batch_of()
    made.loss(batch).backward()
    learnt = made.head[-1].weight.grad.abs().sum(1) > 0
    assert learnt.tolist() == [True, False, True]
    assert made.actions.weight.grad[:, 1].abs().sum() > 0


# --- candidates ---


def one_at_a_time(made: HSTURanker, history: EventBatch, row: int, item: int, asked: int) -> torch.Tensor:
    """The prediction for an item that follows a history as its next event; its own action may be anything."""
    ends = {"item": item, "rating": 2, "seconds": 7.0, "time": asked}
    longer = {name: [[*history[name][row].tolist(), value]] for name, value in ends.items()}
    return made.predict(batch_of(**longer)).values[-1]


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=4), min_size=3, max_size=3), st.randoms())
def test_a_candidate_is_scored_as_if_it_came_next(candidates, random):
    made, batch, asked = model(), batch_of(), torch.tensor([900_500, 17, 60])
    found = made.score(batch, from_lists(candidates, torch.int64), asked)
    expected = [[one_at_a_time(made, batch, row, item, int(asked[row])) for item in items]
                for row, items in enumerate(candidates)]
    for row, some in enumerate(expected):
        torch.testing.assert_close(found[row], torch.stack(some) if some else found[row])
    orders = [random.sample(range(len(items)), len(items)) for items in candidates]
    mixed = [[items[i] for i in order] for items, order in zip(candidates, orders, strict=True)]
    again = made.score(batch, from_lists(mixed, torch.int64), asked)
    for row, order in enumerate(orders):
        torch.testing.assert_close(again[row], found[row][order])


def test_a_candidate_does_not_depend_on_the_rest_of_the_batch():
    made, batch, asked = model(time=False), batch_of(), None
    candidates = from_lists([[1, 2], [3], [4, 5, 6]], torch.int64)
    together = made.score(batch, candidates, asked)
    for row in range(3):
        one = torch.tensor([row])
        alone = made.score(gather_rows(batch, one), gather_rows(candidates, one))
        torch.testing.assert_close(alone.values, together[row])


def test_when_it_is_asked_counts_and_only_differences_of_times_do():
    made, candidates = model(), from_lists([[1], [2], [3]], torch.int64)
    asked = torch.tensor([900_500, 0, 60])
    found = made.score(batch_of(), candidates, asked).values
    later = made.score(batch_of(), candidates, asked + torch.tensor([0, 0, 10**6])).values
    assert torch.equal(made.score(batch_of(), candidates, asked.int()).values, found)
    assert torch.equal(found[:2], later[:2])
    assert not torch.isclose(found[2], later[2]).any()
    moved = batch_of(time=[[time + 10**9 for time in row] for row in FIELDS["time"]])
    torch.testing.assert_close(made.score(moved, candidates, asked + 10**9).values, found)


@pytest.mark.parametrize("normaliser", ["none", "length"])
def test_other_normalisers_score_candidates_alike(normaliser):
    made = model(normaliser=normaliser, time=False)
    few = made.score(batch_of(), from_lists([[1], [2], [3]], torch.int64)).values
    many = made.score(batch_of(), from_lists([[1, 5, 6], [2, 9], [3, 3]], torch.int64))
    torch.testing.assert_close(torch.stack([row[0] for row in many]), few)


# --- odd input, refusals ---


def test_nothing_gives_nothing():
    made, nothing = model(), batch_of(**{name: [] for name in FIELDS})
    assert made(nothing).values.shape == (0, 3)
    assert float(made.loss(nothing).detach()) == 0
    assert made.score(nothing, from_lists([], torch.int64), torch.empty(0, dtype=torch.int64)).values.shape == (0, 3)
    empty = batch_of(**{name: [[], []] for name in FIELDS})
    scores = made.score(empty, from_lists([[1, 2], []], torch.int64), torch.tensor([5, 5]))
    assert scores.lengths.tolist() == [2, 0]
    assert scores.values.isfinite().all()


def without(name: str) -> EventBatch:
    return EventBatch({field: values for field, values in batch_of().events.items() if field != name})


@pytest.mark.parametrize(("call", "message"), [
    (lambda made: made(without("time")),
     r"^batch: expected a field 'time', which model\.time reads, got item, rating, seconds"),
    (lambda made: made(without("seconds")),
     r"^batch: expected a field 'seconds', which task 'watched' reads, got item, rating, time"),
    (lambda made: made.score(batch_of(), from_lists([[1], [2], [3]], torch.int64)),
     r"^asked: expected shape \(3,\), dtype int32 or int64, as the model reads time, got None"),
    (lambda made: made.score(batch_of(), from_lists([[1], [2], [3]], torch.int64), torch.zeros(3)),
     r"^asked: expected shape \(3,\), dtype int32 or int64, as the model reads time, got \(3,\) torch\.float32"),
    (lambda made: made.score(batch_of(), from_lists([[1], [2]], torch.int64), torch.tensor([1, 2, 3])),
     r"^candidates: expected 3 rows, as batch, got 2"),
])
def test_a_wrong_call_is_one_line(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(model())


@pytest.mark.parametrize(("changes", "message"), [
    ({"tasks": []}, "config: tasks: Tuple should have at least 1 item"),
    ({"tasks": [LIKE, LIKE]}, "config: tasks: 'like' is given twice"),
    ({"tasks": [{**LIKE, "threshhold": 3}]}, "config: unknown key 'tasks.0.threshhold' (did you mean 'threshold'?)"),
    ({"tasks": [{**LIKE, "kind": "ranking"}]}, "config: 'tasks.0.kind': expected one of"),
    ({"tasks": [{**STARS, "spread": 0}]}, "config: 'tasks.0.spread': expected greater than 0, got 0"),
    ({"tasks": [{**LIKE, "weight": -1}]}, "config: 'tasks.0.weight': expected greater than or equal to 0, got -1"),
    ({"similarity": "dot"}, "config: unknown key 'similarity'"),
    ({"heads": 3}, "config: heads must divide width 8"),
])
def test_a_wrong_configuration_is_one_line(changes, message):
    with pytest.raises(InvalidConfig) as caught:
        HSTURankingConfig.parse({**SMALL, **changes})
    assert str(caught.value).replace("'", "").startswith(message.replace("'", ""))


def test_a_configuration_survives_being_written():
    config = HSTURankingConfig.parse(SMALL)
    assert HSTURankingConfig.parse(config.plain()) == config
    assert (config.layer.position_reach, config.layer.normaliser) == (40, 40.0)  # two tokens an event


# --- as a module ---


def test_outputs_stay_float32_under_autocast():
    made, batch = model().float(), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = made(batch)
        loss = made.loss(batch)
    assert outputs.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(outputs.values, made(batch).values, rtol=0.1, atol=0.3)


def test_the_start_is_small_and_seeded():
    config = HSTURankingConfig.parse({**SMALL, "width": 64})
    torch.manual_seed(4)
    first = HSTURanker(config, 1000)
    torch.manual_seed(4)
    second = HSTURanker(config, 1000)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    for table in (first.items.weight, first.actions.weight):
        assert float(table.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_the_model_compiles_whole():
    made = model(blocks=1)
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (slice(0, 3), slice(0, 1)):
        batch = EventBatch({name: values[rows] for name, values in batch_of().events.items()})
        torch.testing.assert_close(compiled(batch).values, made(batch).values)


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu():
    asked, candidates = torch.tensor([900_500, 17, 60]), from_lists([[1, 2], [3], [4, 5, 6]], torch.int64)
    found = []
    for device in ("cpu", "cuda"):
        made = model().float().to(device)
        batch = batch_of().to(device)
        made.loss(batch).backward()
        scores = made.score(batch, candidates.to(device), asked.to(device)).values.detach()
        found.append([scores.cpu(), made.actions.weight.grad.cpu(), made.layers[0].time_bias.grad.cpu()])
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=2e-2, atol=2e-2)


def test_it_learns_from_actions_what_items_do_not_tell():
    """Some like even items, some odd ones: which, only what they did tells."""
    generator = torch.Generator().manual_seed(0)

    def people(count: int) -> EventBatch:
        lengths = torch.randint(2, 9, (count,), generator=generator)
        items = JaggedTensor.from_lengths(torch.randint(ITEMS, (int(lengths.sum()),), generator=generator), lengths)
        likes = torch.randint(2, (count,), generator=generator)[items.row_index()]
        return EventBatch({"item": items, "rating": items.with_values(5 * (items.values % 2 == likes).long())})

    torch.manual_seed(0)
    config = {"width": 32, "blocks": 2, "heads": 2, "dropout": 0.0, "max_length": 8, "tasks": [LIKE]}
    made = HSTURanker(HSTURankingConfig.parse(config), ITEMS)
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    for _ in range(150):
        batch = people(64)
        loss = made.loss(batch) / batch.num_events
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = people(200)
    predicted, truth = made.eval().predict(held).values[:, 0], made.targets(held)[:, 0]
    first = held.offsets[:-1]
    right = (predicted > 0.5) == (truth > 0.5)
    assert right[first].float().mean() < 0.65  # nothing tells it yet
    assert right[first + 1].float().mean() > 0.9  # one action tells it
