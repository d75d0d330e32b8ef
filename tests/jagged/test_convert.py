import warnings
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.jagged import (
    EventBatch,
    JaggedTensor,
    from_arrow,
    from_keyed,
    from_lists,
    from_masked,
    from_nested,
    from_numpy,
    from_padded,
    newest,
    offsets_from_lengths,
    to_arrow,
    to_keyed,
    to_lists,
    to_masked,
    to_nested,
    to_numpy,
    to_padded,
)
from serrate.testing import assert_moves_events, jagged_cases, jagged_tensors, same_rows

BY_CASE = pytest.mark.parametrize("case", jagged_cases(), ids=str)
BY_SIDE = pytest.mark.parametrize("side", ["left", "right"])
ROWS = [[1, 2, 3], [], [4]]


def unchanged(rows):
    return rows


# ── Python lists ────────────────────────────────────────────────────────────────────────────────────────────


@given(jagged_tensors(dtypes=(torch.float32, torch.int64)))
def test_lists_there_and_back(x):
    back = from_lists(to_lists(x), x.dtype)
    assert to_lists(back) == to_lists(x)
    assert back.offsets.tolist() == x.offsets.tolist()
    assert back.dtype == x.dtype


def test_lists_by_hand():
    x = from_lists(ROWS)
    assert (x.values.tolist(), x.offsets.tolist(), x.dtype) == ([1, 2, 3, 4], [0, 3, 3, 4], torch.int64)
    assert from_lists([[1.5], [2]]).dtype == torch.float32
    assert from_lists(ROWS, torch.int32).dtype == torch.int32
    assert from_lists([([1, 2], [3, 4]), ()]).values.tolist() == [[1, 2], [3, 4]]
    assert [len(from_lists(rows)) for rows in ([], [[]], [[], []])] == [0, 1, 2]
    assert from_lists([]).dtype == from_lists([[]]).dtype == torch.float32


@given(jagged_tensors())
def test_lists_of_tensors_keep_the_gradient(x):
    if len(x):
        assert_moves_events(JaggedTensor(x.values, x.offsets.long()), lambda x: from_lists(list(x)), unchanged)


def test_empty_tensors_do_not_decide_the_dtype():
    assert from_lists([torch.tensor([]), torch.tensor([7])]).dtype == torch.int64
    assert from_lists([torch.tensor([]), torch.tensor([[7, 8]])]).values.shape == (1, 2)
    assert from_lists([torch.zeros(0, 2), torch.zeros(0, 2)]).values.shape == (0, 2)


@pytest.mark.parametrize(("rows", "message"), [
    ([[1], 2], r"rows\[1\]: expected a list, got int"),
    ([[1], None], r"rows\[1\]: expected a list, got NoneType"),
    (["ab", "c"], r"rows\[0\]: expected a list, got str"),
    ([[1], ["a"]], r"rows: expected numbers of one shape, got"),
    ([[1], [None]], r"rows: expected numbers of one shape, got"),
    ([[[1, 2]], [[3]]], r"rows: expected numbers of one shape, got"),
    ([[2**70]], r"rows: expected numbers of one shape, got"),
    ([torch.tensor([1]), [2]], r"rows\[0\]: expected a list, got Tensor"),
    ([torch.tensor(1)], r"rows\[0\]: expected shape \(length, ...\), got \(\)"),
    ([torch.zeros(1, 2), torch.zeros(1, 3)], r"rows: expected events \(2,\) on cpu in every row, got \(3,\) on cpu"),
])
def test_malformed_lists(rows, message):
    with pytest.raises(InvalidArgument, match=message):
        from_lists(rows)


# ── padded ──────────────────────────────────────────────────────────────────────────────────────────────────


def pad(rows, length, side, fill, empty):
    """The oracle: nested lists padded to `length` with events that look like `empty`."""
    def filled(event):
        return [filled(part) for part in event] if isinstance(event, list) else fill
    pads = [[filled(empty)] * (length - len(row)) for row in rows]
    return [row + more if side == "right" else more + row for row, more in zip(rows, pads, strict=True)]


def padded_cases():
    return jagged_tensors(dtypes=(torch.float64,)), st.sampled_from(("left", "right")), st.integers(0, 2)


@given(*padded_cases())
def test_to_padded(x, side, more):
    longest = max(x.lengths.tolist(), default=0) + more
    length = longest if more else None
    values = x.values.detach().clone().requires_grad_()
    padded, lengths = to_padded(x.with_values(values), -3, side=side, length=length)
    empty = torch.zeros(x.values.shape[1:]).tolist()
    assert padded.shape == (len(x), longest, *x.values.shape[1:])
    assert padded.tolist() == pad(x.tolist(), longest, side, -3, empty)
    assert torch.equal(lengths, x.lengths)
    weights = torch.randn_like(padded)
    (padded * weights).sum().backward()
    assert torch.equal(values.grad, from_padded(weights, lengths, side=side).values)


@given(*padded_cases())
def test_padded_there_and_back(x, side, more):
    length = max(x.lengths.tolist(), default=0) + more

    def there_and_back(x):
        return from_padded(*to_padded(x, torch.nan, side=side, length=length), side=side)

    assert_moves_events(x, there_and_back, unchanged)


@given(*padded_cases())
def test_masked_there_and_back(x, side, more):
    length = max(x.lengths.tolist(), default=0) + more
    padded, mask = to_masked(x, torch.nan, side=side, length=length)
    assert mask.dtype == torch.bool
    assert mask.tolist() == pad([[True] * len(row) for row in x.tolist()], length, side, False, 0)
    assert torch.equal(padded.nan_to_num(), to_padded(x, 0, side=side, length=length)[0])
    long = JaggedTensor(x.values, x.offsets.long())  # a mask says nothing about the dtype of offsets
    assert_moves_events(long, lambda x: from_masked(*to_masked(x, side=side, length=length)), unchanged)


@given(st.integers(0, 4), st.integers(0, 5), st.data())
def test_mask_with_holes_keeps_the_marked_events_in_order(rows, length, data):
    cells = data.draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length))
    mask = torch.tensor(cells, dtype=torch.bool).view(rows, length)
    values = torch.arange(rows * length).view(rows, length)
    expected = [[v for v, m in zip(vs, ms, strict=True) if m]
                for vs, ms in zip(values.tolist(), mask.tolist(), strict=True)]
    for marked in (mask, mask.long(), mask.to(torch.uint8) * 7):
        assert from_masked(values, marked).tolist() == expected
        assert from_masked(values, marked, num_events=sum(cells)).tolist() == expected
    full = JaggedTensor.from_lengths(values.flatten().float(), torch.full((rows,), length))
    assert_moves_events(full, lambda x: from_masked(x.values.view(rows, length), mask), lambda all_rows: [
        [v for v, m in zip(vs, ms, strict=True) if m] for vs, ms in zip(all_rows, mask.tolist(), strict=True)])


def test_padded_by_hand():
    x = from_lists(ROWS)
    assert to_padded(x)[0].tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert to_padded(x, 9, side="left")[0].tolist() == [[1, 2, 3], [9, 9, 9], [9, 9, 4]]
    assert to_masked(x, side="left")[1].tolist() == [[True, True, True], [False] * 3, [False, False, True]]
    padded = torch.tensor([[0, 1, 2], [0, 0, 3]])
    assert from_padded(padded, torch.tensor([2, 1]), side="left").tolist() == [[1, 2], [3]]
    assert from_masked(padded, padded > 0).tolist() == [[1, 2], [3]]


def test_padded_without_padding_is_a_view():
    padded = torch.arange(12.0).view(2, 3, 2)
    for x in (from_padded(padded, torch.tensor([3, 3])), from_masked(padded, torch.ones(2, 3, dtype=torch.bool))):
        assert x.values.data_ptr() == padded.data_ptr()
        assert to_padded(x)[0].data_ptr() == padded.data_ptr()
        assert to_masked(x)[0].data_ptr() == padded.data_ptr()
        assert torch.equal(to_padded(x)[0], padded)


def test_lengths_give_the_dtype_of_offsets():
    padded = torch.zeros(2, 3)
    for dtype in (torch.int32, torch.int64):
        assert from_padded(padded, torch.tensor([1, 3], dtype=dtype)).offsets.dtype == dtype


@BY_CASE
@BY_SIDE
def test_padded_odd_cases(case, side):
    x = case.make((2,))
    assert same_rows(from_padded(*to_padded(x, side=side), side=side), x)
    masked = from_masked(*to_masked(x, side=side))
    assert same_rows(masked, JaggedTensor(x.values, x.offsets.long()))


@BY_SIDE
def test_padded_compiled(side):
    def there_and_back(x):
        padded, lengths = to_padded(x, side=side)
        return from_padded(padded + 1, lengths, side=side, num_events=x.num_events)

    torch.compiler.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=True, backend="eager")
    for lengths in ([3, 2], [4, 1, 2], [8, 2]):
        x = JaggedTensor.from_lengths(torch.randn(sum(lengths)), torch.tensor(lengths))
        assert same_rows(compiled(x), x.with_values(x.values + 1))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: from_padded(torch.zeros(2), torch.tensor([1, 1])),
     r"values: expected a tensor \(B, N, ...\), got \(2,\)"),
    (lambda: from_padded([[1]], torch.tensor([1])), r"values: expected a tensor \(B, N, ...\), got list"),
    (lambda: from_padded(torch.zeros(2, 3), torch.tensor([1])),
     r"lengths: expected shape \(2,\) on cpu, got \(1,\) on"),
    (lambda: from_padded(torch.zeros(2, 3), [1, 2]), r"lengths: expected an int32 or int64 tensor, got list"),
    (lambda: from_padded(torch.zeros(2, 3), torch.ones(2)),
     r"lengths: expected an int32 or int64 .*, got torch.float32"),
    (lambda: from_padded(torch.zeros(2, 3), torch.tensor([1, 4])), r"lengths: expected 0 … N = 3, got 4"),
    (lambda: from_padded(torch.zeros(2, 3), torch.tensor([-1, 3])), r"lengths: expected 0 … N = 3, got -1"),
    (lambda: from_padded(torch.zeros(2, 3), torch.tensor([1, 3]), side="top"),
     r"side: expected 'left' or 'right', got 'top'"),
    (lambda: from_padded(torch.zeros(2, 3), torch.tensor([1, 3]), num_events=5),
     r"num_events: expected 4, .*, got 5"),
    (lambda: to_padded(from_lists(ROWS), length=2), r"length: expected at least 3, the longest row .*, got 2"),
    (lambda: to_padded(from_lists(ROWS), side=1), r"side: expected 'left' or 'right', got 1"),
    (lambda: from_masked(torch.zeros(2, 3), torch.ones(2, 3)),
     r"mask: expected a boolean or integer tensor, got torch.float32"),
    (lambda: from_masked(torch.zeros(2, 3), torch.ones(3, 2).bool()),
     r"mask: expected shape \(2, 3\) on cpu, got \(3, 2\) on cpu"),
    (lambda: from_masked(torch.zeros(2, 3), None), r"mask: expected a boolean or integer tensor, got NoneType"),
])
def test_malformed_padded(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


# ── Arrow ───────────────────────────────────────────────────────────────────────────────────────────────────


LISTS = (pa.list_, pa.large_list)
OFFSETS = {pa.list_: torch.int32, pa.large_list: torch.int64}
NULLABLE = st.lists(st.none() | st.lists(st.integers(-9, 9), max_size=4), max_size=8)


def address(array):
    """Where the first value of an Arrow array lies."""
    buffer, width = array.buffers()[1], array.type.bit_width // 8
    return buffer.address + array.offset * width


@given(NULLABLE, st.sampled_from(LISTS), st.data())
def test_from_arrow_rows_slices_chunks_and_nulls(rows, kind, data):
    array = pa.array(rows, kind(pa.int32()))
    expected = [row or [] for row in rows]
    begin = data.draw(st.integers(0, len(rows)))
    end = data.draw(st.integers(begin, len(rows)))
    for got, want in ((array, expected), (array[begin:end], expected[begin:end]),
                      (array[begin:][: end - begin], expected[begin:end]),
                      (pa.chunked_array([array[:begin], array[begin:]]), expected),
                      (pa.chunked_array([], array.type), [])):
        x = from_arrow(got)
        assert x.tolist() == want
        assert x.dtype == torch.int32
        assert x.offsets.dtype == OFFSETS[kind]


@given(jagged_tensors(dtypes=(torch.float32, torch.int64, torch.bool, torch.float16, torch.uint8)))
def test_arrow_there_and_back(x):
    array = to_arrow(x)
    array.validate(full=True)
    assert array.to_pylist() == x.tolist()
    assert same_rows(from_arrow(array), x)


@pytest.mark.parametrize("kind", LISTS)
def test_arrow_shares_memory_both_ways(kind):
    array = pa.array([[1, 2], [], [3, 4, 5], [6]], kind(pa.int64()))
    x = from_arrow(array)
    assert x.values.data_ptr() == address(array.values)
    assert x.offsets.data_ptr() == address(array.offsets)
    part = from_arrow(array[2:])
    assert part.tolist() == [[3, 4, 5], [6]]
    assert part.values.data_ptr() == address(array.values) + 2 * 8
    back = to_arrow(x)
    assert address(back.values) == x.values.data_ptr()
    assert address(back.offsets) == x.offsets.data_ptr()
    assert from_arrow(pa.chunked_array([array])).values.data_ptr() == address(array.values)
    assert from_arrow(pa.array([[1], None, [2]], kind(pa.int64()))).tolist() == [[1], [], [2]]


def test_null_rows_share_memory_unless_they_hide_events():
    values, offsets = pa.array([1, 2, 3, 4, 5]), pa.array([0, 2, 4, 5], pa.int32())
    hiding = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True, False]))
    assert from_arrow(hiding).tolist() == [[1, 2], [], [5]]
    plain = pa.array([[1, 2], None, [5]])
    assert from_arrow(plain).values.data_ptr() == address(plain.values)


def test_a_null_event_under_a_null_row_is_not_seen():
    values = pa.array([1, None, 3])
    array = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), values, mask=pa.array([False, True, False]))
    assert from_arrow(array).tolist() == [[1], [], [3]]
    assert from_arrow(pa.array([[None], [1]])[1:]).tolist() == [[1]]


def test_fixed_size_lists():
    array = pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int64(), 2))
    assert from_arrow(array).tolist() == [[1, 2], [], [3, 4], [5, 6]]
    assert from_arrow(array[1:3]).tolist() == [[], [3, 4]]
    assert from_arrow(array[2:]).values.data_ptr() == address(array.values) + 4 * 8
    assert from_arrow(array[:0]).tolist() == []


@given(jagged_tensors(inner=((2,), (2, 3))))
def test_inner_axes_are_fixed_size_lists(x):
    array = to_arrow(x)
    assert pa.types.is_fixed_size_list(array.type.value_type)
    assert same_rows(from_arrow(array), x)
    assert from_arrow(array[1:]).tolist() == x.tolist()[1:]


def test_times_are_their_integers():
    stamps = pa.array([[1, 2], [3]], pa.list_(pa.timestamp("us")))
    assert from_arrow(stamps).tolist() == [[1, 2], [3]]
    assert from_arrow(stamps).values.data_ptr() == address(stamps.values)
    assert from_arrow(pa.array([[7]], pa.list_(pa.date32()))).dtype == torch.int32


def test_other_libraries_through_the_arrow_interface():
    series = pytest.importorskip("polars").Series([[1, 2], [], [3]])
    assert from_arrow(series).tolist() == [[1, 2], [], [3]]

    class Exports:
        def __arrow_c_array__(self, requested_schema=None):
            return pa.array([[1], [2]]).__arrow_c_array__(requested_schema)

    assert from_arrow(Exports()).tolist() == [[1], [2]]


def test_arrow_values_are_detached_and_made_contiguous():
    x = from_lists([[1.0, 2.0], [3.0]])
    x = x.with_values(torch.stack([x.values, x.values], 1)[:, 0].requires_grad_())
    assert to_arrow(x).to_pylist() == [[1.0, 2.0], [3.0]]
    assert to_arrow(from_lists([[float("nan")]])).values.null_count == 0


@pytest.mark.parametrize(("array", "message"), [
    (pa.array([1, 2]), r"array: expected an Arrow list array, got int64"),
    ([[1]], r"array: expected an Arrow list array, got list"),
    (pa.table({"a": [[1]]}), r"array: expected an Arrow list array, got struct"),
    (pa.array([[1, None]]), r"array: expected no null among the events \(a null row is an empty row\), got 1"),
    (pa.array([[[1, 2], None]], pa.list_(pa.list_(pa.int64(), 2))), r"array: expected no null among the events"),
    (pa.array([["a"]]), r"array: expected events that are booleans, numbers or times, got string"),
    (pa.array([[[1]]]), r"array: expected events that are booleans, numbers or times, got list<"),
    (pa.array([[1]], pa.list_view(pa.int64())), r"array: expected an Arrow list array, got list_view<"),
])
def test_malformed_arrow(array, message):
    with pytest.raises(InvalidArgument, match=message):
        from_arrow(array)


def test_what_arrow_lacks():
    x = from_lists([[1.0]])
    with pytest.raises(InvalidArgument, match=r"values: expected a dtype that NumPy has, got torch.bfloat16"):
        to_arrow(x.to(dtype=torch.bfloat16))
    with pytest.raises(InvalidArgument, match=r"values: expected a dtype that Arrow has, got torch.complex64"):
        to_arrow(x.to(dtype=torch.complex64))
    with pytest.raises(InvalidArgument, match=r"values: expected inner axes of at least 1, got \(1, 0\)"):
        to_arrow(x.with_values(torch.zeros(1, 0)))


# ── NumPy ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(jagged_tensors(dtypes=(torch.float32, torch.int64, torch.bool, torch.float16)))
def test_numpy_there_and_back_shares_memory(x):
    values, offsets = to_numpy(x)
    assert [values[a:b].tolist() for a, b in pairwise(offsets)] == x.tolist()
    back = from_numpy(values, offsets)
    assert same_rows(back, x)
    assert back.values.data_ptr() == x.values.data_ptr()
    assert back.offsets.data_ptr() == x.offsets.data_ptr()


@given(st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=6))
def test_numpy_rows_in_a_list_or_an_object_array(rows):
    arrays = [np.array(row, dtype=np.int16) for row in rows]
    held = np.empty(len(rows), dtype=object)
    held[:] = arrays
    for given_rows in (arrays, held):
        assert from_numpy(given_rows).tolist() == rows


def test_read_only_and_odd_numpy_arrays(tmp_path):
    np.save(tmp_path / "values.npy", np.arange(4))
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = from_numpy(mapped, np.array([0, 3, 4]))
    assert x.tolist() == [[0, 1, 2], [3]]
    assert x.values.data_ptr() == mapped.ctypes.data
    assert from_numpy(np.arange(4)[::-1], np.array([0, 3, 4])).tolist() == [[3, 2, 1], [0]]
    assert from_numpy(np.arange(8)[::2], np.array([0, 3, 4])).tolist() == [[0, 2, 4], [6]]
    assert from_numpy([np.array([]), np.array([7])]).dtype == torch.int64  # an empty row decides no dtype …
    assert from_numpy([np.zeros((0, 2), np.int16)]).values.shape == (0, 2)  # … unless there is no other
    assert from_numpy([]).tolist() == []


@pytest.mark.parametrize(("arguments", "message"), [
    ((np.arange(3), np.array([0, 2])), r"offsets: expected a last entry of T = 3, got 2"),
    ((np.arange(3), np.array([0.0, 3.0])), r"offsets: expected dtype int32 or int64, got torch.float64"),
    ((np.array(["a"]), np.array([0, 1])), r"values: expected a dtype that torch has, got <U1"),
    ((np.arange(3).astype(">i8"), np.array([0, 3])), r"values: expected a dtype that torch has, got >i8"),
    (([1, 2], np.array([0, 2])), r"values: expected a NumPy array, got list"),
    ((np.arange(3),), r"values: expected an object array of rows where there are no offsets, got int64"),
    (([np.array(1)],), r"values\[0\]: expected an array \(length, ...\), got a scalar"),
    (([np.zeros((1, 2)), np.zeros((1, 3))],), r"values: expected arrays of one inner shape, got"),
    (([np.array(["a"])],), r"values: expected a dtype that torch has, got <U1"),
])
def test_malformed_numpy(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        from_numpy(*arguments)


def test_what_numpy_lacks():
    with pytest.raises(InvalidArgument, match=r"values: expected a dtype that NumPy has, got torch.bfloat16"):
        to_numpy(from_lists([[1.0]], torch.bfloat16))


# ── torch.nested ────────────────────────────────────────────────────────────────────────────────────────────


@given(jagged_tensors(inner=((3,), (2, 3))))
def test_nested_there_and_back(x):
    nested = to_nested(x)
    assert [row.tolist() for row in nested.unbind()] == x.tolist()
    assert nested.values().data_ptr() == x.values.data_ptr()
    assert_moves_events(x, lambda x: from_nested(to_nested(x)), unchanged)
    assert same_rows(from_nested(nested), x)


def test_nested_of_torch():
    rows = [torch.arange(3.0), torch.arange(1.0)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    assert from_nested(nested).tolist() == [[0, 1, 2], [0]]
    assert from_nested(nested).values.data_ptr() == nested.values().data_ptr()


def test_nested_with_holes():
    padded = torch.arange(12.0).view(3, 4).requires_grad_()
    nested = torch.nested.narrow(padded, 1, torch.tensor([0, 1, 2]), torch.tensor([2, 0, 2]), layout=torch.jagged)
    x = from_nested(nested)
    assert x.tolist() == [[0, 1], [], [10, 11]]
    assert x.values.is_contiguous()
    x.values.sum().backward()
    assert padded.grad.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]


def test_nested_is_read_where_torch_compiles():
    def doubled(values, offsets):
        return from_nested(torch.nested.nested_tensor_from_jagged(values, offsets)).values * 2

    compiled = torch.compile(doubled, fullgraph=True, dynamic=True, backend="eager")
    values = torch.arange(10.0).view(5, 2)
    assert torch.equal(compiled(values, torch.tensor([0, 2, 5])), values * 2)


@pytest.mark.parametrize(("nested", "message"), [
    (torch.zeros(2, 3), r"nested: expected a nested tensor of layout torch.jagged, got layout torch.strided"),
    ([[1]], r"nested: expected a nested tensor of layout torch.jagged, got list"),
    (lambda: torch.nested.nested_tensor([torch.zeros(2)]), r"nested: expected .*, got layout torch.strided"),
    (lambda: to_nested(from_lists([[[1.0, 2.0]], []])).transpose(1, 2),
     r"nested: expected shape \(B, ragged, ...\), got \(2, 2, j"),
])
def test_malformed_nested(nested, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its strided layout is a prototype
        nested = nested() if callable(nested) else nested
    with pytest.raises(InvalidArgument, match=message):
        from_nested(nested)


# ── TorchRec, by duck typing ────────────────────────────────────────────────────────────────────────────────


class Keyed:
    """What `KeyedJaggedTensor` offers; `strides` only where features have different numbers of rows."""

    def __init__(self, keys, values, lengths, weights=None, strides=None):
        self._keys, self._values, self._lengths, self._weights = keys, values, lengths, weights
        if strides is not None:
            self.stride_per_key = lambda: strides

    def keys(self):
        return self._keys

    def values(self):
        return self._values

    def weights(self):
        return self._weights

    def lengths(self):
        return self._lengths

    def offsets(self):
        return offsets_from_lengths(self._lengths)

    def stride(self):
        return len(self._lengths) // len(self._keys)


class OnlyLengths:
    """The least that is asked for."""

    def __init__(self, keyed):
        self.keys, self.values, self.lengths, self.stride = keyed.keys, keyed.values, keyed.lengths, keyed.stride


@given(jagged_tensors(inner=((), (2,))), st.integers(1, 3))
def test_keyed_there_and_back(x, count):
    fields = {f"f{i}": newest(x, i) for i in range(count)}
    keyed = Keyed(**to_keyed(fields))
    for foreign in (keyed, OnlyLengths(keyed)):
        back = from_keyed(foreign)
        assert list(back) == list(fields)
        assert all(same_rows(back[name], fields[name]) for name in fields)
    assert all(part.values.untyped_storage().data_ptr() == keyed.values().untyped_storage().data_ptr()
               for part in from_keyed(keyed).values() if part.num_events)
    assert_moves_events(x, lambda x: from_keyed(Keyed(**to_keyed({"a": x, "b": x})))["b"], unchanged)


def test_keyed_by_hand():
    # the example of TorchRec's documentation: two features of three rows
    keyed = Keyed(["f1", "f2"], torch.arange(8), torch.tensor([2, 0, 1, 1, 1, 3]), weights=torch.arange(8) / 10)
    assert {name: x.tolist() for name, x in from_keyed(keyed).items()} == {
        "f1": [[0, 1], [], [2]], "f2": [[3], [4], [5, 6, 7]]}
    assert from_keyed(keyed, weights=True)["f1"].tolist() == [[0.0, pytest.approx(0.1)], [], [pytest.approx(0.2)]]
    various = Keyed(["f1", "f2"], torch.arange(8), torch.tensor([2, 0, 1, 5]), strides=[3, 1])
    assert from_keyed(various)["f2"].tolist() == [[3, 4, 5, 6, 7]]
    assert from_keyed(Keyed([], torch.arange(0), torch.arange(0), strides=[])) == {}


def test_keyed_and_event_batch():
    batch = EventBatch({"item": from_lists(ROWS), "time": from_lists([[5, 6, 7], [], [8]])})
    parts = to_keyed(batch)
    assert parts["keys"] == ["item", "time"]
    assert parts["values"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert parts["lengths"].tolist() == [3, 0, 1, 3, 0, 1]
    assert EventBatch(from_keyed(Keyed(**parts)))["time"].tolist() == batch["time"].tolist()


def test_real_keyed_jagged_tensor():
    torchrec = pytest.importorskip("torchrec", reason="torchrec is not installed")
    keyed = torchrec.KeyedJaggedTensor(**to_keyed({"a": from_lists(ROWS), "b": from_lists(ROWS)}))
    assert from_keyed(keyed)["b"].tolist() == ROWS


@pytest.mark.parametrize(("call", "message"), [
    (lambda: from_keyed(Keyed(["a"], torch.arange(3), torch.tensor([1, 2]), strides=[3])),
     r"keyed: expected 3 rows for 1 keys, got 2"),
    (lambda: from_keyed(Keyed(["a"], torch.arange(3), torch.tensor([1, 1]))),
     r"offsets: expected a last entry of T = 3"),
    (lambda: to_keyed({}), r"parts: expected at least one JaggedTensor, got none"),
    (lambda: to_keyed({"a": from_lists(ROWS), "b": from_lists([[1]])}),
     r"fields: expected the same number of rows in each, got \{'a': 3, 'b': 1\}"),
])
def test_malformed_keyed(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()
