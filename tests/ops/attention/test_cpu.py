"""What is particular to the CPU: weights that are written out in tiles, and the operators that compute them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from serrate.ops.attention import Bias, Mask, Settings, Weights, attention
from serrate.ops.attention.bias import BUCKET, FARTHEST, bucket
from serrate.ops.attention.cases import CASES, CAUSAL, Case
from serrate.ops.attention.cpu import tile
from serrate.ops.attention.cpu.groups import tabulated
from serrate.ops.attention.cpu.problem import arguments_of, from_arguments
from serrate.testing.attention import check, run

NAMED = {case.name: case for case in CASES}
WRITTEN = [case for case in CASES if case.activation != "softmax" or case.dropout or case.reach + case.buckets]
LENGTHS, OTHER, LONG = (3, 6, 1, 2, 0, 1), (2, 0, 9, 4), (1, 1, 64)


def operands_of(case: Case) -> tuple:
    """What the operator takes for a case: `q`, `k`, `v`, tables, index, numbers and factors."""
    q, k, v, offsets = case.tensors()
    given = case.arguments(tables=tuple(torch.atleast_2d(table) for table in case.tables()))
    mask, bias, weights = case.mask, given.get("bias"), given.get("weights", Weights())
    if bias is not None and bias.query_times is None:
        bias = replace(bias, query_times=bias.key_times)
    weights = replace(weights, seed=torch.tensor(weights.seed))
    table = tabulated(offsets, given.get("kv_offsets", offsets), mask)
    return q, k, v, *arguments_of(table, Settings(mask, 0.3, weights, bias))


# --- tiles ---


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_any_tiles_keep_the_numerics_promise(case, monkeypatch):
    """Of five queries at most, of one row each where rows are long: the named cases fit in one tile else."""
    monkeypatch.setattr(tile, "SCORES", 60)
    monkeypatch.setattr(tile, "FEWEST", 5)
    for dtype in (torch.float64, torch.float32):
        check("cpu", case, case.tensors(dtype)[:3])


@pytest.fixture
def scores(monkeypatch):
    """How many scores each tile that was computed has."""
    sizes: list[int] = []

    class Counted(tile.Tile):
        def __init__(self, *given):
            super().__init__(*given)
            sizes.append(self.scores.numel())

    monkeypatch.setattr(tile, "Tile", Counted)
    return sizes


def test_scores_that_exist_at_once_are_bounded(scores):
    """However long or many rows are: 64 queries a tile of a row of 3,072 keys, and 40 rows a tile of 40."""
    case = Case("", (3072, *([40] * 200)), heads=2, width=2, mask=Mask(), activation="silu", reach=3)
    run("cpu", case, case.tensors()[:3])
    assert tile.SCORES // (2 * 40 * 40) == 40
    assert scores == ([40 * 2 * 40 * 40] * 5 + [2 * 64 * 3072] * 48) * 2  # forward and backward


@pytest.mark.parametrize(("mask", "most"), [
    (Mask(), 2048), (CAUSAL, 1024 + 32), (Mask(window=(50, 0)), 64 + 50), (Mask(block=64), 64)],
    ids=["full", "causal", "window", "block"])
def test_work_follows_what_a_long_row_sees(scores, mask, most):
    """Keys of a query on average, in tiles of 64 queries."""
    case = Case("", (2048,), heads=1, width=2, mask=mask, activation="silu")
    attention(*case.tensors(), mask=mask, weights=Weights("silu"), implementation="cpu")
    assert 0.98 * most < sum(scores) / 2048 <= most


def test_rows_of_one_shape_share_tiles(scores):
    case = Case("", (7, 3, 7, 3, 7, 0, 3), heads=1, width=2, activation="silu")
    attention(*case.tensors(), mask=CAUSAL, weights=Weights("silu"), implementation="cpu")
    assert scores == [3 * 3 * 3, 3 * 7 * 7]


# --- buckets of times, looked up ---


def test_buckets_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    borders = torch.exp(torch.arange(72, dtype=torch.float64) * BUCKET).round().long()
    drawn = (torch.rand(100_000, generator=generator, dtype=torch.float64) * 31 * 0.6931).exp().long()
    times = torch.cat([torch.arange(5000), drawn, *(borders + step for step in range(-70, 71))])
    times = torch.cat([times, -times]).clamp(-FARTHEST, FARTHEST)
    for origin in (0, -FARTHEST, FARTHEST, 12_345):
        expected = bucket(times - origin)
        found = tile._buckets(times.double()[None], torch.tensor([[float(origin)]]), 1000)
        assert torch.equal(found, expected)
    assert expected.max() > 60
    few = tile._buckets(times.double()[None], torch.tensor([[0.0]]), 5)
    assert torch.equal(few, bucket(times).clamp(max=4))


def test_the_largest_difference_has_a_bucket():
    edge = torch.tensor([[float(FARTHEST)]], dtype=torch.float64)
    expected = bucket(torch.tensor(2 * FARTHEST))
    assert expected == 71  # 31 · ln 2 / .301 = 71.4
    for entries in (72, 71, 1):
        assert tile._buckets(edge, -edge, entries).tolist() == [min(71, entries - 1)]


# --- under torch's machinery ---


def test_a_problem_survives_its_arguments():
    for case in WRITTEN:
        *_, tables, index, numbers, factors = operands_of(case)
        problem = from_arguments(tables, index, numbers, factors)
        assert (problem.weights.activation, problem.weights.normaliser or 1, problem.weights.dropout) == (
            case.activation, case.normaliser or 1, case.dropout)
        assert (problem.mask.reach, problem.mask.block, problem.scale) == (case.mask.reach, case.mask.block, 0.3)
        assert [x is not None for x in (problem.position, problem.time, problem.key_times, problem.seed)] == [
            case.reach > 0, case.buckets > 0, case.buckets > 0, case.dropout > 0]


@pytest.mark.parametrize("name", ["silu", "both_softmax", "both_dropout", "cross_both", "no_rows_both",
                                  "all_empty_silu", "everything_both", "few_times_silu"])
def test_the_operator_is_well_behaved(name):
    q, k, v, tables, index, numbers, factors = operands_of(NAMED[name])
    rest = (tables, index, numbers, factors)
    leaves, leaf_tables = ([x.clone().requires_grad_() for x in each] for each in ((q, k, v), tables))
    torch.library.opcheck(torch.ops.serrate.written_attention_cpu.default, (*leaves, leaf_tables, *rest[1:]))
    out, lse = torch.ops.serrate.written_attention_cpu(q, k, v, *rest)
    for grads in ([torch.ones_like(out), None], [torch.ones_like(out), torch.ones_like(lse)]):
        backward = (grads, [q, k, v], *rest)
        torch.library.opcheck(torch.ops.serrate.written_attention_cpu_backward.default, backward)


def loss_of(case: Case):
    """A loss with everything that a case asks for; seeds are tensors, as a graph has them."""
    def loss(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, times: Tensor, seed: Tensor, *tables: Tensor):
        bias = Bias(tables[0], tables[1], times, times) if tables else None
        weights = Weights(case.activation, case.normaliser, case.dropout, seed)
        return (attention(q * 2, k, v, offsets, mask=case.mask, weights=weights, bias=bias) ** 2).sum()
    return loss


def inputs_of(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """What such a loss is differentiated by, and the rest: `(q, k, v, *tables)` and `(offsets, times, seed)`."""
    *leaves, offsets = case.tensors()
    leaves = [x.requires_grad_() for x in (*leaves, *case.tables())]
    return leaves, [offsets, torch.arange(len(leaves[0])) * 1000, torch.tensor(3)]


ASKED = [Case("silu", LENGTHS, activation="silu", normaliser="length", reach=5, buckets=30),
         Case("softmax", LENGTHS, reach=5, buckets=30, apart=True, dropout=0.3),
         Case("gelu_of_a_window", LENGTHS, activation="gelu", mask=Mask(window=(2, 1), targets=1)),
         Case("dropout", LENGTHS, dropout=0.3)]


@pytest.mark.parametrize(("case", "backend"), [(ASKED[0], "inductor"), *((case, "aot_eager") for case in ASKED)],
                         ids=lambda asked: asked.name if isinstance(asked, Case) else asked)
def test_compiles_whole_and_once_for_all_lengths(case, backend):
    torch.compiler.reset()
    loss = loss_of(case)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    fresh = torch.compiler.config.patch(force_disable_caches=True)  # it knows operators by name alone
    with fresh, torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in (LENGTHS, OTHER, LONG):
            leaves, rest = inputs_of(replace(case, lengths=lengths))
            given = (*leaves[:3], *rest, *leaves[3:])
            eager = torch.autograd.grad(loss(*given), leaves)
            torch.testing.assert_close(torch.autograd.grad(compiled(*given), leaves), eager)


def test_exports_with_free_lengths():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, offsets, times, position, time):
            return attention(q, k, v, offsets, mask=CAUSAL, weights=Weights("silu", 20.0),
                             bias=Bias(position, time, None, times))

    def inputs(lengths):
        leaves, (offsets, times, _) = inputs_of(replace(ASKED[0], lengths=lengths))
        q, k, v, *tables = (x.detach() for x in leaves)
        return q, k, v, offsets, times, *tables

    events, rows = (torch.export.Dim(name, min=1, max=2**20) for name in ("events", "rows"))
    free = ({0: events}, {0: events}, {0: events}, {0: rows + 1}, {0: events}, None, None)
    exported = torch.export.export(Attention(), inputs((3, 6)), dynamic_shapes=free).module()
    for lengths in (OTHER, (7,), (64, 1, 1)):
        assert torch.equal(exported(*inputs(lengths)), Attention()(*inputs(lengths)))


@pytest.mark.parametrize("loss", [Tensor.sum, lambda out: out.square().sum()], ids=["sum", "squares"])
def test_a_second_derivative_is_refused_and_never_wrong(loss):
    *tensors, offsets = NAMED["both_silu"].tensors()
    table = NAMED["position_silu"].tables()[0].requires_grad_()
    q, k, v = (x.requires_grad_() for x in tensors)
    out = attention(q, k, v, offsets, weights=Weights("silu"), bias=Bias(table), implementation="cpu")
    (grad,) = torch.autograd.grad(loss(out), table, create_graph=True)
    with pytest.raises(RuntimeError, match="written_attention_cpu_backward"):
        (out.mean() + grad.square().sum()).backward()


def test_the_backward_pass_saves_inputs_only():
    case = NAMED["both_silu"]
    *tensors, offsets = case.tensors()
    leaves = [x.requires_grad_() for x in tensors]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        attention(*leaves, offsets, **case.arguments())
    known = {x.data_ptr() for x in (*leaves, offsets)}
    events = [x for x in saved if x.dim() > 1 and x.shape[0] == len(leaves[0])]
    assert {x.data_ptr() for x in events} <= known
    assert len(events) == 3
