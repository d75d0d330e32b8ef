"""The ranking model against padded PyTorch of the same weights; candidates alone, odd batches, fallbacks, learning."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torch.fx.experimental._config as tracing
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.jagged import EventBatch, JaggedTensor, RankingBatch, gather_rows
from serrate.models import RankingConfig, RankingModel

from .made import EVERYTHING, FEATURES, HISTORIES, SIZES, TASKS, batch, model


@pytest.fixture
def models(monkeypatch):
    """The padded models of the benchmark."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    yield importlib.import_module("ranking_models")
    for name in ("ranking_models", "hstu_models"):
        sys.modules.pop(name, None)


def only(*histories: int, **changes) -> dict:
    return {"histories": [HISTORIES[i] for i in histories], **changes}


# --- the oracle ---


@pytest.mark.parametrize("changes", [
    {}, only(0), only(1), only(2), only(3), only(), {"interactions": "dot"},
    {"interactions": "cross", "cross_rank": None, "top": []}, {"sparse": True},
], ids=["everything", "transformer", "hstu", "din", "causal", "no histories", "dot", "cross", "sparse"])
def test_outputs_and_gradients_are_those_of_padded_pytorch(models, changes):
    made, given_ = model(**changes), batch()
    plain = models.PaddedRanker(made)
    got, want = made(given_), plain(models.PaddedBatch.of(given_))
    assert got.shape == (6, 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    weights = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
    grads = [torch.autograd.grad((outputs * weights).sum(), list(made.parameters()), allow_unused=True)
             for outputs in (got, want)]
    for (name, _), one, other in zip(made.named_parameters(), *grads, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            torch.testing.assert_close(one.to_dense(), other, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("changes", [only(0, 1), only(2)], ids=["layers", "din"])
def test_training_goes_the_way_of_padded_pytorch(models, changes):
    one, other = model(**changes).float().train(), model(**changes).float().train()
    plain = models.PaddedRanker(other)
    optimizers = [torch.optim.SGD(made.parameters(), lr=0.05) for made in (one, other)]
    for step in range(5):
        for run, made, optimizer in ((one, one, optimizers[0]), (plain, other, optimizers[1])):
            given_ = batch(seed=step)
            outputs = run(given_) if run is one else run(models.PaddedBatch.of(given_))
            optimizer.zero_grad()
            (outputs - made.targets(given_)).square().mean().backward()
            optimizer.step()
    for (name, got), want in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# --- candidates of one state ---


def taken(whole: RankingBatch, index: list[int]) -> RankingBatch:
    """The batch of some of its candidates, in this order."""
    at = torch.tensor(index, dtype=torch.int64)
    candidates = {name: part[at] if isinstance(part, torch.Tensor) else gather_rows(part, at)
                  for name, part in whole.candidates.items()}
    return RankingBatch(whole.owner[at], whole.histories, whole.context, candidates)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)))
def test_a_score_depends_neither_on_the_others_nor_on_the_order(order):
    made, whole = model(), batch()
    scores = made.predict(whole)
    torch.testing.assert_close(made.predict(taken(whole, order)), scores[order])
    torch.testing.assert_close(torch.cat([made.predict(taken(whole, [i])) for i in order]), scores[order])


def test_histories_are_read_once_however_many_candidates_there_are(monkeypatch):
    made, read = model(), []
    block = made.histories[0].layers[0]
    block.register_forward_hook(lambda module, inputs, output: read.append(output.num_events))
    made(batch())
    made(batch(owner=[2] * 50))
    assert read == [7, 7]


def test_a_state_that_is_copied_for_each_candidate_gives_the_same():
    made, whole = model(), batch()
    copied = RankingBatch(
        torch.arange(6), {name: gather_rows(history, whole.owner) for name, history in whole.histories.items()},
        {name: part[whole.owner] if isinstance(part, torch.Tensor) else gather_rows(part, whole.owner)
         for name, part in whole.context.items()}, whole.candidates)
    torch.testing.assert_close(made(copied), made(whole))


def test_what_the_future_holds_and_what_is_not_theirs_does_not_move_them():
    made, whole = model(), batch()
    other = batch(seed=2)
    mixed = RankingBatch(whole.owner, {**whole.histories}, whole.context, whole.candidates, other.labels)
    assert torch.equal(made(mixed), made(whole))
    alone = taken(whole, [1, 2])  # of state 0: whatever the other states hold
    changed = {name: EventBatch({field: part.with_values(torch.where(part.row_index() == 0, part.values, 0))
                                 for field, part in history.events.items()})
               for name, history in alone.histories.items()}
    torch.testing.assert_close(made(RankingBatch(alone.owner, changed, alone.context, alone.candidates)), made(alone))


# --- odd batches ---


@pytest.mark.parametrize(("owner", "lengths"), [
    ((), ((1, 2), (0, 1), (3, 0), (1, 1))), ((), ((),) * 4), ((0, 0), ((0,),) * 4), ((1,), ((0, 1),) * 4),
], ids=["no candidates", "no states", "all empty", "one event"])
@pytest.mark.parametrize("training", [False, True])
def test_batches_of_little(owner, lengths, training):
    made = model().train(training)
    given_ = batch(owner, lengths)
    loss = made.loss(given_)
    loss.backward()
    assert made(given_).shape == (len(owner), 2)
    assert loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in made.parameters())


def without(part: str, name: str, whole: RankingBatch | None = None) -> RankingBatch:
    parts = {kind: dict(getattr(whole or batch(), kind))
             for kind in ("histories", "context", "candidates", "labels")}
    del parts[part][name]
    return RankingBatch((whole or batch()).owner, **parts)


def replaced(part: str, name: str, value) -> RankingBatch:
    parts = {kind: dict(getattr(batch(), kind)) for kind in ("histories", "context", "candidates", "labels")}
    parts[part][name] = value
    return RankingBatch(batch().owner, **parts)


@pytest.mark.parametrize(("given_", "message"), [
    (lambda: without("histories", "liked"), r"histories: expected a history 'liked' .*got clicked, bought, seen"),
    (lambda: without("candidates", "price"), "candidates: expected a feature 'price', got score, item, category"),
    (lambda: without("context", "user"), "context: expected a feature 'user', got asked, years, interests"),
    (lambda: without("context", "asked"), r"context\['asked'\]: expected int64 \(U,\), as history 'clicked'"),
    (lambda: replaced("candidates", "genres", torch.zeros(6)),
     r"candidates\['genres'\]: expected a JaggedTensor, as the feature is multi, got Tensor"),
    (lambda: replaced("candidates", "item", batch().candidates["genres"]),
     r"candidates\['item'\]: expected a tensor \(R,\), got JaggedTensor"),
    (lambda: replaced("candidates", "item", torch.tensor([1, 2, 9, 1, 1, 1])),
     "feature 'item': expected ids from 0 to below 9, the rows of table 'items', got 9"),
    (lambda: replaced("histories", "liked", EventBatch({"time": batch().histories["liked"]["time"]})),
     r"histories\['liked'\]: expected a field 'item', got time"),
])
def test_a_wrong_batch_is_one_line(given_, message):
    with pytest.raises(InvalidArgument, match=message):
        model()(given_())


def test_a_label_that_is_missing_is_told_when_it_is_read():
    unlabelled = without("labels", "stars")
    assert model()(unlabelled).isfinite().all()
    with pytest.raises(InvalidArgument, match="labels: expected a label 'stars', which task 'stars' reads, got click"):
        model().loss(unlabelled)


def test_unknown_ids_and_missing_numbers_fall_back_as_the_feature_says():
    made = model()
    beyond = replaced("context", "user", torch.tensor([99, -3, 0]))
    unknown = replaced("context", "user", torch.tensor([0, 0, 0]))
    assert torch.equal(made(beyond), made(unknown))
    infinite = batch().candidates["price"].nan_to_num(float("inf"))
    assert torch.equal(made(replaced("candidates", "price", infinite)), made(batch()))
    strict = model(features=[{**FEATURES[0], "missing": None}, *FEATURES[1:]])
    with pytest.raises(InvalidArgument, match="feature 'price': expected finite numbers, as it has no missing, got"):
        strict(batch())


def test_dense_numbers_by_hand():
    dense = model().candidates.dense
    seen = []
    dense.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    dense({"price": torch.tensor([-3.0, float("nan")]), "score": torch.tensor([2.0, 5.0])})
    log4 = torch.tensor(4.0, dtype=torch.float64).log()
    assert seen[0].tolist() == [[pytest.approx((-float(log4) - 1.5) / 2), 2.0], [0.25, 5.0]]


def test_ages_by_hand():
    history = model().histories[0]
    asked = torch.tensor([100, 0, 0])
    clicked = batch().histories["clicked"]
    times = clicked["time"].with_values(torch.tensor([101, 100, 99, 0, -1, -3, -(2**40)]))
    fields = EventBatch({**clicked.events, "time": times})
    assert history._ages(fields, asked).tolist() == [0, 0, 1, 0, 1, 2, 33]


def test_a_table_without_a_size():
    with pytest.raises(InvalidArgument, match=r"sizes: expected rows of table 'items', which 'item' reads, got users"):
        RankingModel(RankingConfig.parse(EVERYTHING), {"users": 3})


# --- as a module ---


def test_compiled_whole_and_once_for_all_sizes():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    made = model()
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend=backend)
    with tracing.patch(use_duck_shape=False):  # sizes that are equal in the first batch by chance
        for other in (batch(), batch((1, 1, 0, 1, 0), ((2, 6), (3, 4), (5, 1), (4, 3)), seed=4)):
            torch.testing.assert_close(compiled(other), made(other))
    assert len(graphs) == 1


def test_outputs_stay_float32_under_autocast():
    made, given_ = model().float(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, loss = made(given_), made.loss(given_)
    assert outputs.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(outputs, made(given_), rtol=0.1, atol=0.3)


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu_without_waiting_for_it():
    found = []
    for device in ("cpu", "cuda"):
        made, given_ = model().float().to(device), batch().to(device)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            loss = made.loss(given_)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        loss.backward()
        found.append([made.predict(given_).detach().cpu(), *(parameter.grad.cpu() for parameter in made.parameters())])
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_on_a_gpu_what_would_be_an_error_is_read_as_the_fallback():
    made = model().float().cuda()
    beyond = replaced("candidates", "item", torch.tensor([9, -1, 2**40, 1, 1, 1])).to("cuda")
    unknown = replaced("candidates", "item", torch.tensor([0, 0, 0, 1, 1, 1])).to("cuda")
    assert torch.equal(made(beyond), made(unknown))


def test_what_is_kept_is_weights_alone_and_no_two_share_memory():
    state = model().state_dict()
    assert not [name for name in state if name.endswith(("sizes", "bases", "pairs", "centre", "boundaries"))]
    assert len({part.data_ptr() for part in state.values() if part.numel()}) == len(
        [part for part in state.values() if part.numel()])


def test_it_learns_what_only_histories_and_candidates_together_tell():
    """A candidate is clicked where its item is in the history: neither side alone says so."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = RankingConfig.parse({
        "width": 16, "features": [{"kind": "categorical", "name": "item", "table": "items"}], "top": [32],
        "histories": [{"name": "clicked", "fields": [{"name": "item", "table": "items"}],
                       "reads": [{"kind": "din", "hidden": [16], "activation": "silu"}]}],
        "tasks": [TASKS[0]]})
    made = RankingModel(config, SIZES)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.03)
    losses = []
    for _ in range(150):
        rows = torch.stack([torch.randperm(8, generator=generator)[:4] + 1 for _ in range(32)])
        owner = torch.arange(32).repeat_interleave(4)
        item = torch.randint(1, 9, (128,), generator=generator)
        clicked = (rows[owner] == item[:, None]).any(1).long()
        history = EventBatch({"item": JaggedTensor(rows.flatten(), torch.arange(0, 129, 4))})
        loss = made.loss(RankingBatch(owner, {"clicked": history}, {}, {"item": item}, {"click": clicked})) / 128
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < 0.3 * losses[0]
