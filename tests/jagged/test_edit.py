import copy
import shutil
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.jagged import (
    EventBatch,
    JaggedTensor,
    concatenate_events,
    concatenate_rows,
    deinterleave_events,
    from_lists,
    from_masked,
    from_padded,
    gather_rows,
    interleave_events,
    newest,
    oldest,
    reverse,
    split_events,
    split_rows,
    to_masked,
    to_padded,
)
from serrate.testing import assert_moves_events, jagged_cases, jagged_tensors, same_rows
from serrate.testing.graphs import nothing_waits

BY_CASE = pytest.mark.parametrize("case", jagged_cases(), ids=str)


def batch_of(x):
    """An `EventBatch` over the rows of `x`: two fields and every kind of context."""
    return EventBatch({"item": x, "time": x.with_values(torch.arange(x.num_events))},
                      {"user": torch.arange(len(x)), "truth": from_lists([[i] * i for i in range(len(x))],
                                                                         torch.int64)})


# ── one test an edit, against lists, gradients included ─────────────────────────────────────────────────────


@given(jagged_tensors(), st.integers(0, 8))
def test_newest_and_oldest(x, n):
    assert_moves_events(x, lambda x: newest(x, n), lambda rows: [row[max(len(row) - n, 0):] for row in rows])
    assert_moves_events(x, lambda x: oldest(x, n), lambda rows: [row[:n] for row in rows])


@given(jagged_tensors())
def test_reverse(x):
    assert_moves_events(x, reverse, lambda rows: [row[::-1] for row in rows])
    assert same_rows(reverse(reverse(x)), x)


@given(jagged_tensors(min_rows=1), st.data())
def test_gather_rows(x, data):
    index = data.draw(st.lists(st.integers(-len(x), len(x) - 1), max_size=8))
    dtype = data.draw(st.sampled_from((torch.int32, torch.int64)))
    assert_moves_events(x, lambda x: gather_rows(x, torch.tensor(index, dtype=dtype)),
                        lambda rows: [rows[i] for i in index])


@given(jagged_tensors(), st.data())
def test_split_rows_and_concatenate_rows(x, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=3)))
    bounds = list(zip([0, *cuts], [*cuts, len(x)], strict=True))
    sizes = [end - begin for begin, end in bounds]
    parts = split_rows(x, sizes)
    assert len(parts) == len(sizes)
    for i, (begin, end) in enumerate(bounds):
        assert x.num_events == 0 or parts[i].values.untyped_storage().data_ptr() == storage(x)
        assert_moves_events(x, lambda x, i=i: split_rows(x, sizes)[i],
                            lambda rows, a=begin, b=end: rows[a:b])
    assert_moves_events(x, lambda x: concatenate_rows(split_rows(x, sizes)), lambda rows: rows)


@given(jagged_tensors(), st.data())
def test_split_events_and_concatenate_events(x, data):
    lengths = [data.draw(st.integers(0, length)) for length in x.lengths.tolist()]
    dtype = data.draw(st.sampled_from((torch.int32, torch.int64)))
    at = torch.tensor(lengths, dtype=dtype)
    assert_moves_events(x, lambda x: split_events(x, at)[0],
          lambda rows: [row[:n] for row, n in zip(rows, lengths, strict=True)])
    assert_moves_events(x, lambda x: split_events(x, at)[1],
          lambda rows: [row[n:] for row, n in zip(rows, lengths, strict=True)])
    assert_moves_events(x, lambda x: concatenate_events(split_events(x, at)), lambda rows: rows)


@given(jagged_tensors(inner=((2,),)), st.integers(1, 4))
def test_concatenate_of_repeated_parts(x, count):
    assert_moves_events(x, lambda x: concatenate_rows([x] * count), lambda rows: rows * count)
    assert_moves_events(x, lambda x: concatenate_events([x] * count), lambda rows: [row * count for row in rows])


@given(jagged_tensors(), st.integers(1, 4))
def test_interleave_events(x, count):
    assert_moves_events(x, lambda x: interleave_events([x] * count),
                        lambda rows: [[event for event in row for _ in range(count)] for row in rows])
    backwards = interleave_events([x, reverse(x)])
    for part, expected in zip(deinterleave_events(backwards, 2), (x, reverse(x)), strict=True):
        assert same_rows(part, expected)
        assert x.num_events == 0 or storage(part) == storage(backwards)


@given(jagged_tensors(), st.integers(1, 4), st.data())
def test_deinterleave_events(x, count, data):
    turn = data.draw(st.integers(0, count - 1))
    even = gather_rows(x, (x.lengths % count == 0).nonzero().flatten())
    assert_moves_events(even, lambda x: deinterleave_events(x, count)[turn],
                        lambda rows: [row[turn::count] for row in rows])


@BY_CASE
def test_odd_cases(case):
    x = case.make((3,))
    half = (x.lengths + 1) // 2
    middle = len(x) // 2
    assert_moves_events(x, reverse, lambda rows: [row[::-1] for row in rows])
    assert_moves_events(x, lambda x: newest(x, 2), lambda rows: [row[-2:] for row in rows])
    assert_moves_events(x, lambda x: oldest(x, 2), lambda rows: [row[:2] for row in rows])
    assert_moves_events(x, lambda x: gather_rows(x, torch.arange(len(x)).flip(0)), lambda rows: rows[::-1])
    assert_moves_events(x, lambda x: concatenate_events(split_events(x, half)[::-1]),
          lambda rows: [row[(len(row) + 1) // 2:] + row[:(len(row) + 1) // 2] for row in rows])
    assert_moves_events(x, lambda x: concatenate_rows(split_rows(x, [middle, len(x) - middle])[::-1]),
          lambda rows: rows[middle:] + rows[:middle])
    assert_moves_events(x, lambda x: deinterleave_events(interleave_events([x, reverse(x)]), 2)[1],
          lambda rows: [row[::-1] for row in rows])


# ── what is kept, shared or promised ────────────────────────────────────────────────────────────────────────


def storage(x):
    return x.values.untyped_storage().data_ptr()


def test_nothing_to_do_gives_the_same_object():
    x = from_lists([[1, 2], [3]])
    assert newest(x, 2) is oldest(x, 2) is concatenate_rows([x]) is concatenate_events([x]) is x


def test_a_cut_beyond_int32_is_no_cut():
    x = JaggedTensor.trusted(torch.arange(3), torch.tensor([0, 1, 3], dtype=torch.int32))  # longest is not known
    assert newest(x, 10**12).tolist() == oldest(x, 10**12).tolist() == [[0], [1, 2]]


def test_offsets_widen_when_one_part_has_int64_or_the_events_outgrow_int32():
    small = from_lists([[1], [2, 3]])
    narrow = JaggedTensor(small.values, small.offsets.int())
    assert concatenate_rows([narrow, narrow]).offsets.dtype == torch.int32
    assert concatenate_rows([narrow, small]).offsets.dtype == torch.int64
    huge = torch.zeros(1, device="meta").expand(2**31 - 1)  # a shape without memory
    parts = [JaggedTensor(huge, torch.zeros(5, dtype=torch.int32, device="meta"))] * 2
    assert concatenate_rows(parts).offsets.dtype == torch.int64
    assert interleave_events(parts).offsets.dtype == torch.int64
    assert interleave_events([narrow, narrow]).offsets.dtype == torch.int32


def test_values_of_any_dtype_move():
    for dtype in (torch.bool, torch.uint8, torch.bfloat16, torch.int64):
        x = jagged_cases()[4].make((), dtype)
        assert_moves_events(x, reverse, lambda rows: [row[::-1] for row in rows])


def test_known_num_events_is_taken_and_checked():
    x = from_lists([[1, 2, 3], [4]])
    assert newest(x, 2, num_events=3).tolist() == [[2, 3], [4]]
    assert gather_rows(x, torch.tensor([0]), num_events=3).tolist() == [[1, 2, 3]]
    with pytest.raises(InvalidArgument, match=r"num_events: expected 3, the events of the result, got 4"):
        newest(x, 2, num_events=4)


def test_on_an_accelerator_longest_stays_a_bound():
    x = JaggedTensor(torch.zeros(9, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta"), 5)
    assert newest(x, 3, num_events=7).longest == 3
    assert gather_rows(x, torch.zeros(2, dtype=torch.int64, device="meta"), num_events=7).longest == 5
    assert reverse(x).longest == 5
    assert concatenate_rows([x, x]).longest == 5
    assert concatenate_events([x, x]).longest == 10
    assert interleave_events([x, JaggedTensor(x.values, x.offsets)]).longest == 10
    assert deinterleave_events(x, 3)[0].longest == 1
    assert concatenate_events([x, JaggedTensor(x.values, x.offsets)]).longest is None


# ── event batches ───────────────────────────────────────────────────────────────────────────────────────────


@given(jagged_tensors(inner=((),)), st.integers(0, 4))
def test_event_batch_is_edited_field_by_field(x, n):
    batch = batch_of(x)
    lengths = batch.lengths.clamp(max=n)
    edited = [newest(batch, n), oldest(batch, n), reverse(batch), *split_events(batch, lengths)]
    for one, edit in zip(edited, [
        lambda x: newest(x, n), lambda x: oldest(x, n), reverse,
        lambda x: split_events(x, lengths)[0], lambda x: split_events(x, lengths)[1],
    ], strict=True):
        assert all(same_rows(one[name], edit(batch[name])) for name in batch)
        assert all(one[name].offsets is one.offsets for name in batch)
        assert dict(one.context) == dict(batch.context)
        assert one.longest == max(one.lengths.tolist(), default=0)


@given(jagged_tensors(inner=((),), min_rows=1), st.data())
def test_gather_rows_of_an_event_batch_takes_the_context_along(x, data):
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(x) - 1), max_size=6)), dtype=torch.int64)
    batch = batch_of(x)
    taken = gather_rows(batch, index)
    assert all(same_rows(taken[name], gather_rows(batch[name], index)) for name in batch)
    assert taken.context["user"].tolist() == index.tolist()
    assert taken.context["truth"].tolist() == [[i] * i for i in index.tolist()]
    assert copy.copy(taken).context["user"].tolist() == index.tolist()


def test_gradients_go_through_event_batches():
    values = torch.zeros(4, requires_grad=True)
    x = from_lists([[1, 2, 3], [4]]).with_values(values)
    newest(EventBatch({"weight": x}), 2)["weight"].values.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1]


@pytest.mark.gpu
def test_what_need_not_wait_for_a_gpu_does_not():
    x = from_lists([[1.0, 2.0, 3.0], [4.0, 5.0]]).to("cuda")
    index, ones = torch.tensor([1, 0, 1], device="cuda"), torch.ones(2, dtype=torch.int64, device="cuda")
    edits = {
        "newest": lambda: newest(x, 2, num_events=4),
        "oldest": lambda: oldest(x, 2, num_events=4),
        "reverse": lambda: reverse(x),
        "gather_rows": lambda: gather_rows(x, index, num_events=7),
        "split_events": lambda: split_events(x, ones, num_events=2)[1],
        "concatenate_rows": lambda: concatenate_rows([x, x]),
        "concatenate_events": lambda: concatenate_events([x, x]),
        "interleave_events": lambda: interleave_events([x, x]),
        "deinterleave_events": lambda: deinterleave_events(interleave_events([x, x, x]), 3)[1],
        "to_padded": lambda: from_padded(*to_padded(x), num_events=5),
        "to_masked": lambda: from_masked(*to_masked(x, side="left"), num_events=5),
    }
    made = {}
    with nothing_waits():
        for name, edit in edits.items():
            made[name] = edit()
    x, index, ones = x.to("cpu"), index.cpu(), ones.cpu()
    for name, edit in edits.items():
        assert same_rows(made[name].to("cpu"), edit()), name


# ── torch.compile ───────────────────────────────────────────────────────────────────────────────────────────


EDITS = {  # each with its number of events known, where the contents of offsets decide it
    "newest": lambda x: newest(x, 2, num_events=4),
    "oldest": lambda x: oldest(x, 2, num_events=4),
    "reverse": reverse,
    "gather_rows": lambda x: gather_rows(x, torch.tensor([1, 0, 1]), num_events=2 + x.num_events),
    "split_events": lambda x: split_events(x, torch.ones_like(x.lengths), num_events=x.lengths.shape[0])[1],
    "concatenate_rows": lambda x: concatenate_rows([x, x, x]),
    "concatenate_events": lambda x: concatenate_events([x, x]),
    "interleave_events": lambda x: interleave_events([x, x]),
    "deinterleave_events": lambda x: deinterleave_events(interleave_events([x, x, x]), 3)[1],
}


@pytest.mark.parametrize("name", EDITS)
def test_compiled_whole_and_once_for_all_lengths(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(EDITS[name], fullgraph=True, dynamic=True, backend=backend)
    for lengths in ([3, 2], [4, 2], [8, 2], [9, 2]):  # the second row is of 2, so that `num_events` above holds
        x = JaggedTensor.from_lengths(torch.randn(sum(lengths), 3), torch.tensor(lengths))
        assert same_rows(compiled(x), EDITS[name](x))
    assert len(graphs) == 1


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["newest", "concatenate_events"])
def test_compiled_by_inductor_with_gradients(name):
    torch.compiler.reset()
    compiled = torch.compile(EDITS[name], fullgraph=True, dynamic=True)
    for lengths in ([3, 2], [7, 2]):
        values = torch.randn(sum(lengths), 3)
        gradients = []
        for edit in (compiled, EDITS[name]):
            x = JaggedTensor.from_lengths(values.clone().requires_grad_(), torch.tensor(lengths))
            out = edit(x)
            (out.values * torch.arange(out.num_events).unsqueeze(1)).sum().backward()
            gradients.append(x.values.grad)
        assert torch.equal(*gradients)


def test_compiled_event_batch():
    torch.compiler.reset()
    compiled = torch.compile(lambda batch: newest(batch, 2, num_events=4), fullgraph=True, dynamic=True,
                             backend="eager")
    for lengths in ([3, 2], [5, 4]):
        batch = EventBatch({"item": JaggedTensor.from_lengths(torch.arange(sum(lengths)), torch.tensor(lengths))},
                           {"user": torch.arange(2)})
        out = compiled(batch)
        assert out["item"].tolist() == newest(batch, 2)["item"].tolist()
        assert out.context["user"].tolist() == [0, 1]


# ── malformed input ─────────────────────────────────────────────────────────────────────────────────────────


X = from_lists([[1, 2], [3]])
OTHER = from_lists([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: newest(X, -1), r"n: expected at least 0, got -1"),
    (lambda: oldest(X, -3), r"n: expected at least 0, got -3"),
    (lambda: concatenate_rows([]), r"parts: expected at least one JaggedTensor, got none"),
    (lambda: concatenate_events([]), r"parts: expected at least one JaggedTensor, got none"),
    (lambda: concatenate_rows([X, [1]]), r"parts\[1\]: expected a JaggedTensor, got list"),
    (lambda: concatenate_rows([X, OTHER]), r"parts\[1\]: expected events \(\) torch.int64 on cpu, as parts\[0\], "
                                           r"got events \(\) torch.float32 on cpu"),
    (lambda: concatenate_events([X, gather_rows(X, torch.tensor([0]))]),
     r"parts\[1\]: expected 2 rows, as parts\[0\], got 1"),
    (lambda: interleave_events([]), r"parts: expected at least one JaggedTensor, got none"),
    (lambda: interleave_events([X, OTHER]), r"parts\[1\]: expected events \(\) torch.int64 on cpu, as parts\[0\], "
                                            r"got events \(\) torch.float32 on cpu"),
    (lambda: interleave_events([X, X, reverse(gather_rows(X, torch.tensor([1, 0])))]),
     r"parts\[2\]: expected the rows of parts\[0\], got other rows"),
    (lambda: deinterleave_events(X, 2), r"x: expected rows of a multiple of 2 events, got \[2, 1\]"),
    (lambda: deinterleave_events(X, 3), r"x: expected rows of a multiple of 3 events, got \[2, 1\]"),
    (lambda: deinterleave_events(X, 0), r"count: expected at least 1, got 0"),
    (lambda: split_rows(X, [1]), r"sizes: expected sizes of at least 0 that sum to B = 2, got \[1\]"),
    (lambda: split_rows(X, [3, -1]), r"sizes: expected sizes of at least 0 that sum to B = 2, got \[3, -1\]"),
    (lambda: split_events(X, torch.tensor([1])), r"lengths: expected shape \(2,\), got \(1,\)"),
    (lambda: split_events(X, torch.tensor([1, 2])), r"lengths: expected 0 … 1 for row 1, got 2"),
    (lambda: split_events(X, torch.tensor([-1, 0])), r"lengths: expected 0 … 2 for row 0, got -1"),
    (lambda: split_events(X, [1, 1]), r"lengths: expected a tensor, got list"),
    (lambda: gather_rows(X, [0]), r"index: expected a tensor, got list"),
    (lambda: gather_rows(X, torch.tensor([2])), r"index: expected rows of x, which has 2, got 2"),
    (lambda: gather_rows(X, torch.tensor([0, -3])), r"index: expected rows of x, which has 2, got -3"),
    (lambda: gather_rows(X[:0], torch.tensor([0])), r"index: expected rows of x, which has 0, got 0"),
    (lambda: gather_rows(X, torch.tensor([True, False])),
     r"index: expected one axis, dtype int32 or int64, got \(2,\) torch.bool"),
    (lambda: gather_rows(X, torch.zeros(1, dtype=torch.int64, device="meta")),
     r"index: expected a tensor on cpu, got meta"),
])
def test_malformed(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_sizes_add_up_by_hand():  # the example of the docstrings, to be redone by hand
    a, b = from_lists([[1, 2], []]), from_lists([[3], [4, 5]])
    assert concatenate_rows([a, b]).tolist() == [[1, 2], [], [3], [4, 5]]
    assert concatenate_events([a, b]).tolist() == [[1, 2, 3], [4, 5]]
    assert interleave_events([a, from_lists([[8, 9], []])]).tolist() == [[1, 8, 2, 9], []]
    assert [part.tolist() for part in deinterleave_events(from_lists([[1, 8, 2, 9], []]), 2)] == [
        [[1, 2], []], [[8, 9], []]]
    assert concatenate_rows([a, b]).offsets.tolist() == list(accumulate([0, 2, 0, 1, 2]))
