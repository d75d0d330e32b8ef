import copy
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from serrate.errors import InvalidArgument
from serrate.jagged import EventBatch, JaggedTensor, RankingBatch, from_lists
from serrate.testing import same_rows


def history(rows):
    return EventBatch({"item": from_lists(rows, torch.int64)})


def make(owner=(1, 0, 1), rows=((1, 2, 3), ())):
    """A batch with every kind of part; by default three candidates of two states, one without a history."""
    some = len(owner)
    return RankingBatch(
        torch.tensor(owner, dtype=torch.int64),
        {"clicked": history([list(row) for row in rows]), "bought": history([[7]] * len(rows))},
        {"asked": torch.arange(len(rows)), "tags": from_lists([[5, 6]] * len(rows), torch.int64)},
        {"item": torch.arange(some), "genres": from_lists([[1]] * some, torch.int64)},
        {"click": torch.ones(some)})


def same(a, b):
    x, y = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return x[1] == y[1] and all(torch.equal(one, other) for one, other in zip(x[0], y[0], strict=True))


def test_candidates_point_at_states():
    batch = make()
    assert (len(batch), batch.num_states, batch.device.type) == (3, 2, "cpu")
    assert batch.histories["clicked"]["item"][int(batch.owner[1])].tolist() == [1, 2, 3]
    assert repr(batch) == ("RankingBatch(3 candidates of 2 states; histories: clicked, bought; context: asked, tags; "
                           "candidates: item, genres; labels: click)")


def test_pairs_count_events_once_for_each_candidate_that_reads_them():
    batch = make((1, 0, 0), ((1, 2, 3), (4,)))
    assert dict(batch.pairs) == {"clicked": 1 + 3 + 3, "bought": 3}
    for same_pairs in (batch.to("meta"), pickle.loads(pickle.dumps(batch))):
        assert same_pairs.pairs == batch.pairs
    assert dict(pytree.tree_map(torch.clone, batch).pairs) == {}  # whose tensors may be others


def test_no_candidates_and_no_states():
    assert (len(make(())), make(()).num_states) == (0, 2)
    assert make((), ()).num_states == 0


def test_a_context_stands_without_histories():
    batch = RankingBatch(torch.tensor([0, 0]), {}, {"age": torch.tensor([30.0])})
    assert (len(batch), batch.num_states, dict(batch.labels)) == (2, 1, {})


ONE, TWO = history([[1]]), history([[1], [2]])
OWNER = torch.tensor([0, 0])


@pytest.mark.parametrize(("parts", "message"), [
    ((OWNER, {}), "histories: expected at least one history, or a context, got none"),
    ((OWNER, {"a": ONE["item"]}), r"histories\['a'\]: expected an EventBatch, got JaggedTensor"),
    ((OWNER, {"a": ONE, "b": TWO}), r"histories\['b'\]: expected 1 rows, got 2"),
    ((OWNER, {"a": ONE}, {"age": OWNER}), r"context\['age'\]: expected 1 rows, got 2"),
    ((OWNER, {"a": ONE}, {"age": torch.tensor(1)}), r"context\['age'\]: expected 1 rows, got a scalar"),
    ((OWNER, {}, {"age": torch.tensor(1)}), r"context\['age'\]: expected rows, got a scalar"),
    ((OWNER, {"a": ONE}, {}, {"item": OWNER[:1]}), r"candidates\['item'\]: expected 2 rows, got 1"),
    ((OWNER, {"a": ONE}, {}, {"item": [1, 2]}), r"candidates\['item'\]: expected a tensor or JaggedTensor, got list"),
    ((OWNER, {"a": ONE}, {}, {"tags": ONE["item"]}), r"candidates\['tags'\]: expected 2 rows, got 1"),
    ((OWNER, {"a": ONE}, {}, {}, {"click": OWNER[:1]}), r"labels\['click'\]: expected 2 rows, got 1"),
    (([0], {"a": ONE}), r"owner: expected a tensor \(M,\), int64, got list"),
    ((OWNER.int(), {"a": ONE}), r"owner: expected a tensor \(M,\), int64, got \(2,\) torch.int32"),
    ((OWNER[None], {"a": ONE}), r"owner: expected a tensor \(M,\), int64, got \(1, 2\)"),
    ((OWNER.to("meta"), {"a": ONE}), "owner: expected a tensor on cpu, as the histories, got meta"),
    ((OWNER + 1, {"a": ONE}), "owner: expected entries from 0 to below U = 1, got 1"),
    ((OWNER - 1, {"a": ONE}), "owner: expected entries from 0 to below U = 1, got -1"),
])
def test_malformed_parts(parts, message):
    with pytest.raises(InvalidArgument, match=message):
        RankingBatch(*parts)


def test_immutable():
    batch = make()
    for change in (lambda: setattr(batch, "owner", 1), lambda: delattr(batch, "owner")):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(TypeError):
        batch.candidates["item"] = OWNER


def test_every_part_moves():
    there = make().to("meta")
    assert {part.device.type for part in pytree.tree_leaves(there)} == {"meta"}
    assert there.histories["clicked"].longest == 3
    assert same(make().to("cpu"), make())


def test_every_part_is_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    assert same(make().pin_memory(), make())
    assert len(pinned) == len(pytree.tree_leaves(make()))


@pytest.mark.gpu
def test_pinned_and_moved_to_a_gpu():
    assert same(make().pin_memory().to("cuda", non_blocking=True).to("cpu"), make())


def test_pickle_copies_and_tree_map():
    batch = make()
    for made in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch), pytree.tree_map(torch.clone, batch)):
        assert same(made, batch)
        assert isinstance(made.candidates["genres"], JaggedTensor)


class Read(torch.nn.Module):
    def forward(self, batch):
        tags = batch.context["tags"]
        return RankingBatch(batch.owner, batch.histories, {"tags": tags.with_values(tags.values * 2)},
                            {"item": batch.candidates["item"] + batch.context["asked"][batch.owner]})


def test_compiled_whole_and_once_for_all_sizes():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(Read(), fullgraph=True, dynamic=True, backend=backend)
    for parts in (((1, 0, 1, 0, 0), ((1, 2, 4, 5), (3, 6, 7))), ((2, 2, 1, 0, 0, 1, 1), ((1, 2, 3), (), (4,)))):
        assert same(compiled(make(*parts)), Read()(make(*parts)))
    assert len(graphs) == 1


def test_exported_with_any_number_of_candidates_states_and_events():
    auto = pytree.tree_map(lambda _: {0: torch.export.Dim.AUTO}, pytree.tree_flatten(make())[0])
    exported = torch.export.export(Read(), (make(),), dynamic_shapes=(shapes(make(), auto),), strict=False)
    other = make((2, 2, 1, 0, 0), ((1, 2, 3), (), (4, 5)))
    out = exported.module()(other)
    assert same_rows(out.context["tags"], Read()(other).context["tags"])
    assert out.candidates["item"].tolist() == [2, 3, 3, 3, 4]


def shapes(batch, leaves):
    """The nested lists and dicts in which torch.export wants the shapes of the leaves of `batch`."""
    leaves = iter(leaves)
    return [next(leaves), *(_nested(dict(getattr(batch, kind)), leaves)
                            for kind in ("histories", "context", "candidates", "labels"))]


def _nested(part, leaves):
    if isinstance(part, dict):
        return {name: _nested(value, leaves) for name, value in part.items()}
    if isinstance(part, EventBatch):
        return [next(leaves), {name: next(leaves) for name in part}, {}]
    return [next(leaves), next(leaves)] if isinstance(part, JaggedTensor) else next(leaves)
