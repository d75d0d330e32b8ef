import copy
import pickle

import pytest
import torch
from hypothesis import given
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from serrate.errors import InvalidArgument
from serrate.jagged import EventBatch, JaggedTensor, from_lists
from serrate.testing import jagged_tensors, same_rows

X = from_lists([[1, 2, 3], [], [4]])


def make(rows, offset=0):
    """A batch with every kind of part over `rows`."""
    item = from_lists(rows, torch.int64)
    return EventBatch({"item": item, "time": item.with_values(item.values * 10.0)},
                      {"user": torch.arange(len(rows)) + offset, "truth": from_lists([[9]] * len(rows), torch.int64)})


def same_batch(a, b):
    return (list(a) == list(b) and list(a.context) == list(b.context) and all(same_rows(a[n], b[n]) for n in a)
            and torch.equal(a.context["user"], b.context["user"])
            and same_rows(a.context["truth"], b.context["truth"]))


# ── construction ────────────────────────────────────────────────────────────────────────────────────────────


def test_fields_come_to_share_one_offsets():
    batch = EventBatch({"item": X, "time": JaggedTensor(X.values.float(), X.offsets.clone())})
    assert batch["time"].offsets is batch["item"].offsets is batch.offsets is X.offsets
    assert (len(batch), batch.num_events, batch.longest, batch.device.type) == (3, 4, 3, "cpu")
    assert batch.lengths.tolist() == [3, 0, 1]
    assert list(batch) == ["item", "time"]
    assert repr(batch) == "EventBatch(3 rows, 4 events: item, time)"
    assert repr(make([[1]])) == "EventBatch(1 rows, 1 events: item, time; context: user, truth)"


def test_longest_is_taken_from_any_field_that_knows_it():
    batch = EventBatch({"item": JaggedTensor.trusted(X.values, X.offsets), "time": X})
    assert batch["item"].longest == 3


@given(jagged_tensors())
def test_any_rows_make_a_batch(x):
    batch = EventBatch({"item": x}, {"user": torch.zeros(len(x), 2), "truth": x})
    assert same_rows(batch["item"], x)
    assert len(batch) == len(x)


@pytest.mark.parametrize(("events", "context", "message"), [
    ({}, {}, r"events: expected at least one jagged field, got none"),
    ({"item": torch.zeros(3)}, {}, r"events\['item'\]: expected a JaggedTensor, got Tensor"),
    ({"item": X, "time": from_lists([[1, 2], [3], [4]])}, {}, r"events\['time'\]: expected the rows of 'item', got"),
    ({"item": X, "time": from_lists([[1, 2, 3], [4]])}, {}, r"events\['time'\]: expected the rows of 'item', got"),
    ({"item": X, "time": X.to("meta")}, {}, r"events\['time'\]: expected the rows of 'item', got"),
    ({"item": X}, {"user": torch.zeros(2)}, r"context\['user'\]: expected 3 rows, got 2"),
    ({"item": X[:1]}, {"user": torch.tensor(1)}, r"context\['user'\]: expected 1 rows, got a scalar"),
    ({"item": X}, {"truth": X[:2]}, r"context\['truth'\]: expected 3 rows, got 2"),
    ({"item": X}, {"user": [1, 2, 3]}, r"context\['user'\]: expected a tensor or JaggedTensor, got list"),
])
def test_malformed_parts(events, context, message):
    with pytest.raises(InvalidArgument, match=message):
        EventBatch(events, context)


def test_an_unknown_field_is_answered_with_the_known_ones():
    with pytest.raises(InvalidArgument, match=r"one of item, time \(did you mean 'item'\?\), got 'items'"):
        make([[1]])["items"]


def test_immutable():
    batch = make([[1]])
    for change in (lambda: setattr(batch, "events", {}), lambda: delattr(batch, "context"),
                   lambda: setattr(batch, "other", 1)):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(TypeError):
        batch.events["item"] = X
    with pytest.raises(TypeError):
        batch.context["user"] = 1


# ── moves ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_move_takes_the_shared_offsets_once(monkeypatch):
    batch = make([[1, 2], [3]])
    moved = []
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *a, **k: moved.append(tensor) or move(tensor, *a, **k))
    there = batch.to("meta")
    assert sum(tensor is batch.offsets for tensor in moved) == 1
    assert there["item"].offsets is there["time"].offsets
    assert there["item"].longest == 2
    assert {part.device.type for part in pytree.tree_leaves(there)} == {"meta"}
    assert same_batch(batch.to("cpu"), batch)


def test_pinning_takes_the_shared_offsets_once(monkeypatch):
    batch = make([[1, 2], [3]])
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    assert same_batch(batch.pin_memory(), batch)
    assert len(pinned) == 1 + 2 + 1 + 2  # offsets, two fields, user, truth


@pytest.mark.gpu
def test_pinned_and_moved_to_a_gpu():
    batch = make([[1, 2], [3]])
    pinned = batch.pin_memory()
    assert all(part.is_pinned() for part in pytree.tree_leaves(pinned))
    there = pinned.to("cuda", non_blocking=True)
    assert there["item"].offsets is there["time"].offsets
    assert same_batch(there.to("cpu"), batch)


# ── through Python and torch ────────────────────────────────────────────────────────────────────────────────


def test_pickle_and_copies():
    batch = make([[1, 2], [], [3]])
    for made in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch), copy.copy(batch)):
        assert same_batch(made, batch)
        assert made["item"].offsets is made["time"].offsets
        assert made.longest == 2


def test_tree_map_moves_the_shared_offsets_once():
    batch = make([[1, 2], [3]])
    assert len(pytree.tree_leaves(batch)) == 1 + 2 + 1 + 2
    same = pytree.tree_map(torch.clone, batch)
    assert same_batch(same, batch)
    assert same["item"].offsets is same["time"].offsets


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        return make([[number] * number, [], [number]], offset=number)


def test_worker_processes_hand_batches_over_whole():
    loader = DataLoader(Batches(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    received = list(loader)
    assert [batch.context["user"][0].item() for batch in received] == list(range(6))
    for number, batch in enumerate(received):
        assert same_batch(batch, Batches()[number])
        assert batch["item"].offsets is batch["time"].offsets


def test_compiled_whole_and_once_for_all_lengths():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def double(batch):
        item = batch["item"].with_values(batch["item"].values * 2)
        return EventBatch({"item": item, "time": batch["time"]},
                          {"user": batch.context["user"] + 1, "truth": batch.context["truth"]})

    torch.compiler.reset()
    compiled = torch.compile(double, fullgraph=True, dynamic=True, backend=backend)
    for rows in ([[1, 2, 3, 4], [5]], [[1], [2, 3, 4, 5], [6, 7]], [[1, 2], [3, 4, 5, 6, 7], [8], [9, 9]]):
        assert same_batch(compiled(make(rows)), double(make(rows)))
    assert len(graphs) == 1


class Doubled(torch.nn.Module):
    def forward(self, batch):
        return EventBatch({"item": batch["item"].with_values(batch["item"].values * 2)}, batch.context)


def test_exported_with_any_number_of_rows_and_events():
    auto = {0: torch.export.Dim.AUTO}
    shapes = ([auto, {"item": auto, "time": auto}, {"user": auto, "truth": [auto, auto]}],)
    exported = torch.export.export(Doubled(), (make([[1, 2], [3]]),), dynamic_shapes=shapes, strict=False)
    out = exported.module()(make([[1], [2, 3, 4, 5], [6, 7]]))
    assert out["item"].tolist() == [[2], [4, 6, 8, 10], [12, 14]]
    assert out.context["user"].tolist() == [0, 1, 2]
