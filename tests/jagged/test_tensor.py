import copy
import io
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

from serrate.errors import InvalidArgument
from serrate.jagged import JaggedTensor, from_lists, offsets_from_lengths
from serrate.jagged.tensor import longest_row, readable
from serrate.testing import assert_moves_events, jagged_cases, jagged_tensors, same_rows

BY_CASE = pytest.mark.parametrize("case", jagged_cases(), ids=str)
X = from_lists([[1, 2, 3], [], [4]])


def offsets(*entries, dtype=torch.int64):
    return torch.tensor(entries, dtype=dtype)


# ── construction ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("parts", "message"), [
    (([1, 2], offsets(0, 2)), r"values: expected a tensor, got list"),
    ((torch.zeros(2), [0, 2]), r"offsets: expected a tensor, got list"),
    ((torch.tensor(1), offsets(0, 1)), r"values: expected shape \(T, ...\), got \(\)"),
    ((torch.zeros(2), torch.tensor(0)), r"offsets: expected shape \(B \+ 1,\), got \(\)"),
    ((torch.zeros(2), offsets()), r"offsets: expected shape \(B \+ 1,\), got \(0,\)"),
    ((torch.zeros(2), offsets(0, 2).view(1, 2)), r"offsets: expected shape \(B \+ 1,\), got \(1, 2\)"),
    ((torch.zeros(2), torch.tensor([0.0, 2.0])), r"offsets: expected dtype int32 or int64, got torch.float32"),
    ((torch.zeros(2), offsets(0, 2).to("meta")), r"offsets: expected a tensor on cpu, as values, got meta"),
    ((torch.zeros(2), offsets(1, 2)), r"offsets: expected a first entry of 0, got 1"),
    ((torch.zeros(2), offsets(0, 1)), r"offsets: expected a last entry of T = 2, got 1"),
    ((torch.zeros(2), offsets(0)), r"offsets: expected a last entry of T = 2, got 0"),
    ((torch.zeros(2), offsets(0, 1, 3, 2)), r"offsets: expected non-decreasing entries, got \[3, 2\]"),
    ((torch.zeros(2), offsets(0, 2), 1), r"longest: expected at least 2, the longest row, got 1"),
])
def test_malformed_parts(parts, message):
    with pytest.raises(InvalidArgument, match=message):
        JaggedTensor(*parts)


def test_offsets_whose_differences_overflow_are_found():
    third = 1_431_655_765  # three times this is -1 in int32, so that every difference looks like a length
    with pytest.raises(InvalidArgument, match=r"offsets: expected non-decreasing entries"):
        JaggedTensor(torch.zeros(0), offsets(0, third, 2 * third - 2**32, 0, dtype=torch.int32))


@pytest.mark.parametrize(("lengths", "message"), [
    ([1, 2], r"lengths: expected a tensor, got list"),
    (torch.tensor([[3]]), r"lengths: expected shape \(B,\), dtype int32 or int64, got \(1, 1\) torch.int64"),
    (torch.tensor([3.0]), r"lengths: expected shape \(B,\), dtype int32 or int64, got \(1,\) torch.float32"),
    (torch.tensor([4, -1]), r"lengths: expected entries of at least 0, got -1"),
    (torch.tensor([1, 1]), r"lengths: expected a sum of T = 3, got 2"),
    (torch.tensor([2**31 - 1, 2**31 - 1, 5], dtype=torch.int32), r"lengths: expected a sum of T = 3, got 4294967299"),
])
def test_malformed_lengths(lengths, message):
    with pytest.raises(InvalidArgument, match=message):
        JaggedTensor.from_lengths(torch.zeros(3), lengths)


def test_int32_lengths_of_more_events_than_int32_counts_give_int64_offsets():
    values = torch.zeros(1, dtype=torch.int8).expand(2**31 + 2)  # one byte of memory
    x = JaggedTensor.from_lengths(values, torch.tensor([2**31 - 1, 3], dtype=torch.int32))
    assert x.offsets.tolist() == [0, 2**31 - 1, 2**31 + 2]


@BY_CASE
def test_odd_cases(case):
    x = case.make((2,))
    same = JaggedTensor.from_lengths(x.values, x.lengths)
    assert same_rows(same, x)
    assert same.longest == x.longest == max(case.lengths, default=0)
    assert len(x) == len(case.lengths)
    assert x.num_events == sum(case.lengths)
    assert x.lengths.tolist() == list(case.lengths)
    assert x.row_index().tolist() == [row for row, length in enumerate(case.lengths) for _ in range(length)]
    assert [row.tolist() for row in x] == x.tolist() == [x[i].tolist() for i in range(len(x))]
    assert "rows" in repr(x)
    assert "rows" in repr(case.make())


def test_longest_is_a_bound_when_the_caller_says_so():
    assert JaggedTensor(X.values, X.offsets, 10).longest == 10
    unknown = JaggedTensor.trusted(X.values, X.offsets)
    assert unknown.longest is None
    unknown.check()
    assert unknown.longest == 3


def test_contents_are_not_read_on_an_accelerator_nor_of_fake_tensors():
    wrong = JaggedTensor(torch.zeros(3, device="meta"), torch.zeros(9, dtype=torch.int64, device="meta"))
    assert wrong.longest is None
    assert repr(wrong) == "JaggedTensor(8 rows, 3 events, longest ?; values (T) float32 on meta)"
    with FakeTensorMode():
        fake = JaggedTensor(torch.zeros(3), torch.zeros(9, dtype=torch.int64))
        assert fake.lengths.shape == (8,)
        assert longest_row(fake.offsets, 4) == 4
        assert not readable(fake.offsets)


def test_immutable():
    for name in ("values", "offsets", "longest", "other"):
        with pytest.raises((FrozenInstanceError, TypeError)):
            setattr(X, name, None)
    with pytest.raises(FrozenInstanceError):
        del X.values


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────


@given(jagged_tensors(), st.integers(-8, 8) | st.none(), st.integers(-8, 8) | st.none())
def test_slices(x, begin, end):
    assert_moves_events(x, lambda x: x[begin:end], lambda rows: rows[begin:end])
    assert x.num_events == 0 or x[begin:end].values.untyped_storage()._cdata == x.values.untyped_storage()._cdata


@given(jagged_tensors(min_rows=1), st.data())
def test_one_row(x, data):
    row = data.draw(st.integers(-len(x), len(x) - 1))
    assert x[row].tolist() == x.tolist()[row]


def test_wrong_rows():
    for row in (3, -4):
        with pytest.raises(IndexError, match=f"row {row} of a JaggedTensor of 3 rows"):
            X[row]
    with pytest.raises(InvalidArgument, match=r"rows: expected step 1 \(gather_rows takes any order\), got step 2"):
        X[::2]


def test_with_values_shares_offsets():
    y = X.with_values(torch.zeros(4, 2))
    assert y.offsets is X.offsets
    assert y.longest == 3
    with pytest.raises(InvalidArgument, match=r"values: expected shape \(4, ...\), got \(3,\)"):
        X.with_values(torch.zeros(3))
    with pytest.raises(InvalidArgument, match=r"values: expected shape \(4, ...\), got \(\)"):
        X.with_values(torch.tensor(4))
    with pytest.raises(InvalidArgument, match=r"values: expected a tensor on cpu, got meta"):
        X.with_values(torch.zeros(4, device="meta"))


def test_moves_and_casts_share_what_stays():
    half = X.to(dtype=torch.float16)
    assert (half.dtype, half.offsets is X.offsets, half.longest) == (torch.float16, True, 3)
    assert X.to("cpu").values is X.values
    assert X.to("meta").device.type == "meta"
    values = torch.zeros(4, requires_grad=True)
    assert not X.with_values(values).detach().values.requires_grad


def test_offsets_from_lengths():
    for dtype in (torch.int32, torch.int64):
        made = offsets_from_lengths(torch.tensor([2, 0, 3], dtype=dtype))
        assert (made.tolist(), made.dtype) == ([0, 2, 2, 5], dtype)
        assert offsets_from_lengths(torch.tensor([], dtype=dtype)).tolist() == [0]


def test_repr_reads_as_rows():
    assert repr(from_lists([[0.5, 2.0], [], list(range(10))])).splitlines() == [
        "JaggedTensor(3 rows, 12 events, longest 10; values (T) float32 on cpu)",
        "  [0.5, 2]", "  []", "  [0, 1, 2, 3, 4, 5, 6, 7, …]  (10)"]
    assert repr(from_lists([[1]] * 7)).endswith("…")
    assert repr(X.with_values(torch.zeros(4, 2))) == \
        "JaggedTensor(3 rows, 4 events, longest 3; values (T, 2) float32 on cpu)"


# ── through Python and torch ────────────────────────────────────────────────────────────────────────────────


@given(jagged_tensors(dtypes=(torch.float32, torch.int64, torch.bool)))
def test_pickle_and_copies(x):
    for made in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), copy.copy(x)):
        assert same_rows(made, x)
        assert made.longest == x.longest


def test_torch_save_reads_back():
    held = io.BytesIO()
    torch.save({"x": X.values, "offsets": X.offsets}, held)
    held.seek(0)
    parts = torch.load(held, weights_only=True)
    assert same_rows(JaggedTensor(parts["x"], parts["offsets"]), X)


def test_tree_map_takes_the_parts_whatever_it_makes_of_them():
    shapes = pytree.tree_map(lambda part: tuple(part.shape), X)
    assert (shapes.values, shapes.offsets) == ((4,), (4,))
    doubled = pytree.tree_map_only(torch.Tensor, lambda part: part * 2, X)
    assert doubled.values.tolist() == [2, 4, 6, 8]
    assert [str(path) for path, _ in pytree.tree_flatten_with_path(X)[0]] == [
        "(GetAttrKey(name='values'),)", "(GetAttrKey(name='offsets'),)"]


def test_compiled_whole_and_once_for_all_lengths():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def layer(x):
        mean = torch.zeros(x.lengths.shape[0]).index_add(0, x.row_index(), x.values) / x.lengths.clamp(min=1)
        y = x.with_values(x.values - mean[x.row_index()])
        return JaggedTensor(y.values * 2, y.offsets, y.longest)

    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for lengths in ([3, 2], [4, 0, 5], [1, 7, 8, 2], [5, 5]):
        x = JaggedTensor.from_lengths(torch.randn(sum(lengths)), torch.tensor(lengths))
        out = compiled(x)
        assert same_rows(out, layer(x))
        assert out.longest == max(lengths)
    assert len(graphs) == 1


class Doubled(torch.nn.Module):
    def forward(self, x):
        return JaggedTensor(x.values * 2 + x.row_index(), x.offsets, x.longest)


def test_exported_with_any_number_of_rows_and_events():
    auto = torch.export.Dim.AUTO
    example = from_lists([[1.0, 2.0], [3.0]])
    exported = torch.export.export(Doubled(), (example,), dynamic_shapes=([{0: auto}, {0: auto}],), strict=False)
    x = from_lists([[1.0], [], [2.0, 3.0, 4.0]])
    assert exported.module()(x).tolist() == Doubled()(x).tolist() == [[2.0], [], [6.0, 8.0, 10.0]]


def test_import_loads_torch_alone():
    code = ("import sys, serrate.jagged\n"
            "print([name for name in ('pyarrow', 'duckdb', 'pydantic', 'triton', 'pandas') if name in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.gpu
def test_on_a_gpu():
    x = X.to("cuda")
    assert x.longest == 3
    assert x[1:].tolist() == [[], [4]]
    wrong = JaggedTensor(x.values, x.offsets.flip(0))
    with pytest.raises(InvalidArgument, match="offsets: expected a first entry of 0"):
        wrong.check()
