"""Fused tables against one `nn.Embedding` each, ids without a row, and row-wise Adagrad by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.jagged import JaggedTensor, from_lists
from serrate.nn.tables import Column, EmbeddingTables, RowwiseAdagrad, TableReader

SHAPES = {"items": (5, 3), "places": (4, 2), "genres": (3, 3)}
SPARSE = pytest.mark.parametrize("sparse", [False, True])


def made(sparse: bool = False) -> EmbeddingTables:
    torch.manual_seed(0)
    return EmbeddingTables(SHAPES, sparse=sparse).double()


def reader(tables: EmbeddingTables, *columns: tuple) -> TableReader:
    return TableReader(tables, [Column(*column) for column in columns])


BOTH = (("item", "items"), ("genre", "genres"))
IDS = [torch.tensor([4, 0, 1, 4]), torch.tensor([2, 2, 0, 1], dtype=torch.int32)]


def test_tables_of_one_width_are_one_weight():
    tables = made()
    assert {width: tuple(weight.shape) for width, weight in tables.weights.items()} == {"3": (8, 3), "2": (4, 2)}
    assert torch.equal(torch.cat([tables.table("items"), tables.table("genres")]), tables.weights["3"])
    assert set(tables.state_dict()) == {"weights.2", "weights.3"}
    assert repr(tables).startswith("EmbeddingTables(\n  items (5, 3), places (4, 2), genres (3, 3)")
    assert not reader(tables, *BOTH).state_dict()


@SPARSE
def test_columns_side_by_side_are_embeddings_each_of_its_own(sparse):
    tables = made(sparse)
    read = reader(tables, *BOTH)
    expected = torch.stack([F.embedding(IDS[0], tables.table("items")), F.embedding(IDS[1], tables.table("genres"))], 1)
    assert torch.equal(read(tables, IDS), expected)
    torch.testing.assert_close(read.summed(tables, IDS), expected.sum(1))
    weight, factor = tables.weights["3"], torch.arange(12.0, dtype=torch.float64).view(4, 3)
    want, = torch.autograd.grad((expected.sum(1) * factor).sum(), weight)
    for result in (read(tables, IDS).sum(1), read.summed(tables, IDS)):
        got, = torch.autograd.grad((result * factor).sum(), weight)
        assert got.is_sparse is sparse
        torch.testing.assert_close(got.to_dense() if sparse else got, want)


@SPARSE
@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("rows", [[[1, 2, 2], [], [0]], [[], []], []])
def test_bags_are_pooled_row_by_row(rows, how, sparse):
    tables, ids = made(sparse), from_lists(rows, torch.int64)
    got = reader(tables, ("genre", "genres")).pooled(tables, ids, how)
    table = tables.table("genres")
    expected = [getattr(table[row], how)(0) if len(row) else torch.zeros(3, dtype=torch.float64) for row in ids]
    assert torch.equal(got, torch.stack(expected) if expected else got.new_zeros(0, 3))
    got.square().sum().backward()
    assert tables.weights["3"].grad.is_sparse is sparse


def test_no_rows_of_ids():
    tables = made()
    read = reader(tables, *BOTH)
    nothing = [torch.empty(0, dtype=torch.int64)] * 2
    assert read(tables, nothing).shape == (0, 2, 3)
    assert read.summed(tables, nothing).shape == (0, 3)


# --- ids without a row ---


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_an_id_without_a_row_is_refused_or_unknown_as_the_column_says(bad):
    tables, ids = made(), torch.tensor([1, bad])
    with pytest.raises(InvalidArgument) as caught:
        reader(tables, ("seen", "items"))(tables, [ids])
    assert str(caught.value) == f"feature 'seen': expected ids from 0 to below 5, the rows of table 'items', got {bad}"
    got = reader(tables, ("seen", "items", "fallback"))(tables, [ids])
    assert torch.equal(got[:, 0], tables.table("items")[[1, 0]])


def test_only_the_column_that_refuses_is_told():
    tables = made()
    read = reader(tables, ("lenient", "items", "fallback"), ("strict", "genres"))
    with pytest.raises(InvalidArgument, match=r"feature 'strict': .* table 'genres', got 3"):
        read(tables, [torch.tensor([77, 1]), torch.tensor([1, 3])])
    assert read.rows([torch.tensor([77, 1]), torch.tensor([1, 2])]).tolist() == [[0, 6], [1, 7]]


def test_where_ids_cannot_be_read_they_stay_within_their_table():
    tables = made()
    read = reader(tables, *BOTH)
    compiled = torch.compile(read.rows, fullgraph=True, dynamic=True, backend="eager")
    assert compiled([torch.tensor([5, -7]), torch.tensor([3, 9])]).tolist() == [[0, 5], [0, 5]]


@pytest.mark.gpu
def test_on_a_gpu_ids_without_a_row_are_unknown():
    tables = made().cuda()
    read = reader(tables, *BOTH).cuda()
    assert read.rows([torch.tensor([5, 4]).cuda(), torch.tensor([3, -1]).cuda()]).tolist() == [[0, 5], [4, 5]]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: EmbeddingTables({}), "shapes: expected at least one table, got none"),
    (lambda: EmbeddingTables({"a": (0, 3)}), r"shapes\['a'\]: expected rows and width of 1 or more, got \[?\(0, 3\)"),
    (lambda: reader(made()), "columns: expected at least one, all of tables of one width"),
    (lambda: reader(made(), ("a", "items"), ("b", "places")), r"columns: .* got widths \[2, 3\]"),
    (lambda: reader(made(), ("a", "item")), r"table: expected one of items, .* \(did you mean 'items'\?\), got 'item'"),
    (lambda: reader(made(), *BOTH).rows(IDS[:1]), "ids: expected those of 2 columns, got 1"),
    (lambda: reader(made(), ("a", "items")).rows([torch.zeros(2)]), r"feature 'a': expected ids \(R,\), int32 or"),
    (lambda: reader(made(), ("a", "items")).rows([IDS[0][None]]), r"feature 'a': .* got \(1, 4\) torch.int64"),
    (lambda: reader(made(), *BOTH).pooled(made(), JaggedTensor(IDS[0], torch.tensor([0, 4]))),
     "columns: expected one column to pool, got 2"),
])
def test_a_wrong_call_is_one_line(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


# --- row-wise Adagrad ---


def test_the_update_by_hand():
    table = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    optimizer = RowwiseAdagrad([table], lr=0.5, eps=1e-12, initial=1.0)
    table.grad = torch.sparse_coo_tensor([[2, 0, 2]], [[1.0, 2.0], [0.0, 4.0], [2.0, -2.0]], (3, 2),
                                         check_invariants=True)  # row 2 twice
    optimizer.step()
    # row 0: sum 1 + (0 + 16) / 2 = 9, step .5 · (0, 4) / 3; row 2: (3, 0), sum 1 + 9 / 2
    expected = torch.tensor([[1.0, 2 - 2 / 3], [3.0, 4.0], [5 - 1.5 / 5.5**0.5, 6.0]])
    torch.testing.assert_close(table.detach(), expected)
    assert optimizer.state[table]["sum"].tolist() == [9.0, 1.0, 5.5]


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=4))
def test_sparse_and_dense_gradients_give_the_same(batches):
    tables = [torch.nn.Parameter(torch.linspace(-1, 1, 15).view(5, 3)) for _ in range(2)]
    optimizers = [RowwiseAdagrad([table], lr=0.1) for table in tables]
    for ids in batches:
        for table, optimizer, sparse in zip(tables, optimizers, (False, True), strict=True):
            optimizer.zero_grad()
            F.embedding(torch.tensor(ids), table, sparse=sparse).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(tables[0], tables[1])


def test_rows_without_gradient_stay_and_states_are_kept(tmp_path):
    table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = RowwiseAdagrad([table], lr=1.0)
    table.grad = torch.zeros(4, 2)
    optimizer.step()
    assert torch.equal(table.detach(), torch.ones(4, 2))
    table.grad = torch.ones(4, 2)
    assert float(optimizer.step(lambda: torch.tensor(7.0))) == 7
    again = RowwiseAdagrad([table], lr=1.0)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[table]["sum"], torch.ones(4))


def test_low_precision_accumulates_in_float32():
    table = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = RowwiseAdagrad([table])
    for _ in range(300):
        table.grad = torch.full((2, 2), 1.0, dtype=torch.bfloat16)
        optimizer.step()
    assert optimizer.state[table]["sum"].tolist() == [300.0, 300.0]  # bfloat16 would stop at 256


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"eps": 0.0}, {"eps": float("nan")}, {"initial": float("inf")}])
def test_options_out_of_range(options):
    with pytest.raises(InvalidArgument, match=r"expected a number (of 0 or more|above 0)"):
        RowwiseAdagrad([torch.nn.Parameter(torch.ones(1, 1))], **options)


def test_a_gradient_sparse_in_numbers_is_refused():
    table = torch.nn.Parameter(torch.ones(2, 2))
    table.grad = torch.eye(2).to_sparse()
    with pytest.raises(InvalidArgument, match="sparse in rows alone, got 2"):
        RowwiseAdagrad([table]).step()
