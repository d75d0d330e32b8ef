"""The suite of mixture of logits: every implementation, on every named case, against the float64 oracle."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import implementations
from serrate.ops.mixture_of_logits import (
    Call,
    Filters,
    Gate,
    Problem,
    mixture_of_logits,
    mixture_of_logits_each,
    mixture_of_logits_top_k,
)
from serrate.ops.mixture_of_logits.cases import CASES, Case, packed_bits
from serrate.ops.mixture_of_logits.reference import permitted
from serrate.ops.select import choose
from serrate.testing import assert_within_budget

NAMED = {case.name: case for case in CASES}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("mixture_of_logits")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def usable(name: str, case: Case, dtype: torch.dtype, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the case."""
    call = Call(torch.device(device), dtype, case.query_components, case.item_components, case.width, case.hidden)
    reason = next(each for each in implementations("mixture_of_logits") if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def moved(problem: Problem, dtype: torch.dtype) -> Problem:
    return Problem(*(x.to(dtype) for x in problem[:4]), Gate(*(x.to(dtype) for x in problem.gate)), problem.temperature)


def score(problem: Problem, name: str | None) -> Tensor:
    return mixture_of_logits(*problem[:5], temperature=problem.temperature, implementation=name)


def score_each(problem: Problem, ids: Tensor | None, name: str | None) -> Tensor:
    return mixture_of_logits_each(*problem[:5], temperature=problem.temperature, ids=ids, implementation=name)


def top_k(problem: Problem, k: int, name: str | None, filters: Filters | None = None) -> tuple[Tensor, Tensor]:
    filters = filters or Filters(None, None)
    return mixture_of_logits_top_k(*problem[:5], k, temperature=problem.temperature, **filters._asdict(),
                                   implementation=name)


def plainly(problem: Problem) -> Tensor:
    """Return the scores by plain torch, one operation after the other, in the dtype of the items."""
    f, a, g, b, gate, temperature = problem
    logits = torch.einsum("rnd,vmd->rvnm", f, g).flatten(2) / temperature
    hidden = F.silu(F.linear(logits, gate.first_weight, gate.first_bias))
    z = a[:, None] * b + F.linear(hidden, gate.second_weight, gate.second_bias)
    return (F.silu(z).softmax(-1) * logits).sum(-1).float()


def sorted_best(scores: Tensor, k: int, filters: Filters) -> tuple[list[list[float]], list[list[int]]]:
    """Return scores and ids of the best items in Python: score descending, then id ascending."""
    allowed = None if filters.allowed is None else permitted(filters.allowed, scores.shape[1]).tolist()
    found: tuple[list, list] = [], []
    for row, values in enumerate(scores.tolist()):
        out: set[int] = set()
        if filters.exclude is not None:
            offsets, ids = (x.tolist() for x in filters.exclude)
            out = set(ids[offsets[row]:offsets[row + 1]])
        best = sorted((-value, at) for at, value in enumerate(values)
                      if at not in out and (allowed is None or allowed[at]))[:k]
        missing = k - len(best)
        found[0].append([-value for value, _ in best] + [-math.inf] * missing)
        found[1].append([at for _, at in best] + [-1] * missing)
    return found


# --- the oracle ---


def test_the_oracle_by_loops_over_single_numbers():
    case = Case("", 2, 3, 2, 3, 4, 5, temperature=0.5)
    problem = case.problem(torch.float64)
    f, a, g, b = (x.tolist() for x in problem[:4])
    w1, b1, w2, b2 = (x.tolist() for x in problem.gate)

    def silu(x: float) -> float:
        return x / (1 + math.exp(-x))

    expected = []
    for r in range(2):
        for v in range(3):
            logits = [sum(f[r][n][i] * g[v][m][i] for i in range(4)) / 0.5 for n in range(2) for m in range(3)]
            hidden = [silu(sum(w1[j][p] * logits[p] for p in range(6)) + b1[j]) for j in range(5)]
            z = [a[r][p] * b[v][p] + sum(w2[p][j] * hidden[j] for j in range(5)) + b2[p] for p in range(6)]
            weights = [math.exp(silu(x)) for x in z]
            expected.append(sum(w * x for w, x in zip(weights, logits, strict=True)) / sum(weights))
    torch.testing.assert_close(score(problem, "reference"), torch.tensor(expected).double().view(2, 3))


@every_implementation
def test_by_hand(name):
    """Components along axes, temperature 1/2: logits 2 or 0. A gate that lets two of four through: their mean."""
    usable(name, Case("", 1, 2), torch.float32, "cpu")
    f = torch.eye(2)[None]  # one query: the axes
    g = torch.stack([torch.eye(2), torch.eye(2)[[0, 0]]])  # the axes; the first one twice
    a, b = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[50.0, 50.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    gate = Gate(torch.zeros(1, 4), torch.zeros(1), torch.zeros(4, 1), torch.zeros(4))
    # logits of the first item (2, 0, 0, 2), its gate lets the first two through; of the second (2, 2, 0, 0), all alike
    problem = Problem(f, a, g, b, gate, 0.5)
    torch.testing.assert_close(score(problem, name), torch.tensor([[1.0, 1.0]]))
    gate = gate._replace(second_bias=torch.tensor([0.0, 0.0, 200.0, 0.0]))  # and now the third
    torch.testing.assert_close(score(problem._replace(gate=gate), name), torch.tensor([[0.0, 0.0]]))


def test_the_oracle_has_gradients():
    problem = Case("", 2, 3, 2, 2, 3, 4, temperature=0.5).problem(torch.float64)
    leaves = [x.requires_grad_() for x in (*problem[:4], *problem.gate)]
    assert torch.autograd.gradcheck(
        lambda *x: score(Problem(*x[:4], Gate(*x[4:]), 0.5), "reference"), leaves)


def test_bits_of_what_is_allowed():
    may = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1]).bool()
    assert packed_bits(may).tolist() == [1 + 128, 2]
    assert torch.equal(permitted(packed_bits(may), 10), may)
    assert permitted(may, 10) is may


# --- every implementation ---


@every_device
@every_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_scores_keep_the_numerics_promise(name, case, dtype, device):
    usable(name, case, dtype, device)
    problem = case.problem(dtype, device)
    exact, found = score(moved(problem, torch.float64), "reference"), score(problem, name)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    if dtype == torch.float64:
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    else:
        assert_within_budget(found, exact, plainly(problem))


@every_device
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_the_best_are_those_of_the_scores_in_order(name, case, device):
    usable(name, case, torch.float32, device)
    problem, filters = case.problem(torch.float32, device), case.filters(device)
    scores, ids = top_k(problem, case.k, name, filters)
    assert scores.dtype == torch.float32
    assert ids.dtype == torch.int64
    expected = sorted_best(score(problem, name), case.k, filters)
    assert (scores.tolist(), ids.tolist()) == expected


@every_device
@every_implementation
def test_chunks_of_items_change_no_more_than_rounding(name, device, monkeypatch):
    case = replace(NAMED["both filters, ties"], items=100, copies=1)
    usable(name, case, torch.float32, device)
    problem, filters = case.problem(torch.float32, device), case.filters(device)
    bits = filters._replace(allowed=packed_bits(filters.allowed.cpu()).to(device))
    if name != "reference":
        monkeypatch.setattr(f"serrate.ops.mixture_of_logits.{name}._SCORES", 40 * case.queries)
    for k in (1, 30, 120):
        expected = top_k(problem, k, "reference", filters)
        for chosen in (filters, bits):
            scores, ids = top_k(problem, k, name, chosen)
            assert torch.equal(ids, expected[1])
            torch.testing.assert_close(scores, expected[0], rtol=1e-5, atol=1e-4)


@every_device
@every_dtype
@pytest.mark.parametrize("case", ["published", "odd sizes", "wide components", "parts of larger tensors"])
@every_implementation
def test_candidates_of_each_query_score_as_among_all(name, case, dtype, device):
    case = NAMED[case]
    usable(name, case, dtype, device)
    problem = case.problem(dtype, device)
    ids = torch.randint(-1, case.items, (case.queries, 37), generator=torch.Generator().manual_seed(2)).to(device)
    expected = score(problem, name).gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -math.inf)
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * 20}
    torch.testing.assert_close(score_each(problem, ids, name), expected, **tolerance)
    torch.testing.assert_close(score_each(problem, ids.int(), name), expected, **tolerance)
    own = problem._replace(item_components=problem.item_components[ids.clamp(min=0)],
                           item_gate=problem.item_gate[ids.clamp(min=0)])
    torch.testing.assert_close(score_each(own, None, name).masked_fill(ids < 0, -math.inf), expected, **tolerance)


@every_device
@every_implementation
def test_candidates_there_are_none_of(name, device):
    usable(name, Case("", 3, 4), torch.float32, device)
    problem = Case("", 3, 4).problem(device=device)
    assert score_each(problem, torch.zeros(3, 0, dtype=torch.int64, device=device), name).shape == (3, 0)
    none = problem._replace(item_components=problem.item_components[:0], item_gate=problem.item_gate[:0])
    nobody = torch.full((3, 2), -1, device=device)
    assert score_each(none, nobody, name).tolist() == [[-math.inf] * 2] * 3


@every_device
@every_implementation
def test_a_score_depends_on_its_query_and_item_alone_and_has_the_same_bits(name, device):
    case = NAMED["odd sizes"]
    usable(name, case, torch.float32, device)
    problem = case.problem(device=device)
    whole = score(problem, name)
    assert torch.equal(score(problem, name), whole)
    part = problem._replace(query_components=problem.query_components[2:3], query_gate=problem.query_gate[2:3])
    torch.testing.assert_close(score(part, name)[0], whole[2], rtol=1e-5, atol=1e-5 * 20)
    other = problem.item_components.clone()
    other[60:] = math.nan
    spoiled = score(problem._replace(item_components=other), name)
    assert torch.equal(spoiled[:, :60], whole[:, :60])
    assert spoiled[:, 60:].isnan().all()


@every_device
@every_implementation
def test_an_item_with_a_score_that_is_no_number_is_no_candidate(name, device):
    usable(name, Case("", 2, 9), torch.float32, device)
    problem = Case("", 2, 9).problem(device=device)
    problem.item_components[4] = math.nan
    scores, ids = top_k(problem, 9, name)
    assert sorted(ids[0].tolist()) == [-1, 0, 1, 2, 3, 5, 6, 7, 8]
    assert scores[0, -1] == -math.inf


@every_device
@every_implementation
def test_filters_may_have_any_strides(name, device):
    case = NAMED["both filters, ties"]
    usable(name, case, torch.float32, device)
    problem, filters = case.problem(device=device), case.filters(device)
    (offsets, ids), allowed = filters
    apart = Filters((torch.stack([offsets] * 2, 1)[:, 0], torch.stack([ids] * 2, 1)[:, 0]),
                    torch.stack([allowed, ~allowed], 1)[:, 0])
    for one, other in zip(top_k(problem, 30, name, apart), top_k(problem, 30, name, filters), strict=True):
        assert torch.equal(one, other)


@every_implementation
def test_queries_and_gate_may_be_of_another_dtype(name):
    usable(name, Case("", 2, 9), torch.float16, "cpu")
    problem = Case("", 3, 20).problem(torch.float16)
    wide = moved(problem, torch.float32)._replace(item_components=problem.item_components, item_gate=problem.item_gate)
    torch.testing.assert_close(score(wide, name), score(problem, name))


@given(st.integers(1, 6), st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9),
       st.floats(0.02, 2.0), st.sampled_from(["cpu", "reference"]))
def test_a_mixture_is_never_above_its_largest_logit(queries, items, p_q, p_x, width, temperature, name):
    problem = Case("", queries, items, p_q, p_x, width, temperature=temperature).problem(torch.float64)
    logits = torch.einsum("rnd,vmd->rvnm", problem.query_components, problem.item_components).flatten(2) / temperature
    found = score(problem, name)
    assert (found <= logits.amax(-1) + 1e-9).all()
    assert (found >= logits.amin(-1) - 1e-9).all()


# --- tracers ---


@every_device
@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_operators_pass_torchs_checks(name, device):
    usable(name, Case("", 2, 9), torch.float32, device)
    problem = Case("", 2, 9).problem(device=device)
    tensors = [*problem[:4], *problem.gate]
    exclude = [torch.tensor([0, 1, 1], device=device), torch.tensor([3], device=device)]
    ids = torch.zeros(2, 4, dtype=torch.int64, device=device)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    operators = torch.ops.serrate
    for operator, arguments in ((getattr(operators, f"mixture_of_logits_{name}"), (tensors, 0.5)),
                                (getattr(operators, f"mixture_of_logits_each_{name}"), (tensors, 0.5, ids)),
                                (getattr(operators, f"mixture_of_logits_top_k_{name}"),
                                 (tensors, 0.5, 3, exclude, torch.ones(9, dtype=torch.bool, device=device)))):
        torch.library.opcheck(operator.default, arguments, test_utils=tests)


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_gradient_is_refused(name):
    usable(name, Case("", 2, 9), torch.float32, "cpu")
    problem = Case("", 2, 9).problem()
    out = score(problem._replace(query_gate=problem.query_gate.requires_grad_()), name)
    with pytest.raises(RuntimeError):
        out.sum().backward()


# --- the choice and errors ---


def test_the_automatic_choice():
    for operation in ("mixture_of_logits", "mixture_of_logits_each", "mixture_of_logits_top_k"):
        call = Call(torch.device("cpu"), torch.float32, 8, 4, 64, 128)
        assert choose(operation, call).implementation.name in ("cpu", "triton")  # the latter under its interpreter
        on_gpu = call._replace(device=torch.device("cuda"))
        assert choose(operation, on_gpu._replace(dtype=torch.float64)).implementation.name == "reference"
        assert choose(operation, on_gpu._replace(query_components=65)).implementation.name == "reference"


def test_an_implementation_that_cannot_serve_is_refused():
    with pytest.raises(NotUsable, match="needs at most 256 pairs of components, got 260"):
        score(Case("", 2, 3, 26, 10).problem(), "triton")


P = Case("", 2, 3, 2, 2, 4, 5).problem()  # 2 queries, 3 items


@pytest.mark.parametrize(("changed", "message"), [
    ({"query_components": torch.ones(2, 4)},
     "query_components: expected three axes, the last two not empty, got (2, 4)"),
    ({"item_components": torch.ones(3, 2, 0)},
     "item_components: expected three axes, the last two not empty, got (3, 2, 0)"),
    ({"item_components": torch.ones(3, 2, 5)}, "item_components: expected width 4, as query_components, got 5"),
    ({"query_gate": torch.ones(2, 3)}, "query_gate: expected shape (2, 4), got (2, 3)"),
    ({"item_gate": torch.ones(2, 4)}, "item_gate: expected shape (3, 4), got (2, 4)"),
    ({"item_gate": torch.ones(3, 4).double()},
     "item_gate: expected torch.float32, as item_components, got torch.float64"),
    ({"query_gate": torch.ones(2, 4).int()}, "query_gate: expected a floating-point dtype, got torch.int32"),
    ({"query_gate": torch.ones(2, 4).to("meta")}, "query_gate: expected a tensor on cpu, as item_components, got meta"),
    ({"gate": P.gate._replace(first_weight=torch.ones(5, 3))}, "first_weight: expected shape (5, 4), got (5, 3)"),
    ({"gate": P.gate._replace(second_bias=torch.ones(5))}, "second_bias: expected shape (4,), got (5,)"),
    ({"temperature": 0.0}, "temperature: expected a finite number above 0, got 0.0"),
    ({"temperature": math.nan}, "temperature: expected a finite number above 0, got nan"),
])  # fmt: skip
def test_a_problem_that_does_not_fit_is_refused(changed, message):
    with pytest.raises(InvalidArgument) as caught:
        score(P._replace(**changed), None)
    assert str(caught.value) == message


@pytest.mark.parametrize(("ids", "changed", "message"), [
    (torch.ones(2, 3), {}, "ids: expected int32 or int64, got torch.float32"),
    (torch.ones(3, 2).long(), {}, "ids: expected shape (2, K), got (3, 2)"),
    (torch.tensor([[0], [3]]), {}, "ids: expected item ids up to 2, got 3"),
    (None, {}, "item_components: expected shape (2, K, P_X, d) where there are no ids, got (3, 2, 4)"),
    (None, {"item_components": torch.ones(2, 6, 2, 4)},
     "item_gate: expected shape (2, 6, P), as item_components, got (3, 4)"),
])  # fmt: skip
def test_candidates_that_do_not_fit_are_refused(ids, changed, message):
    with pytest.raises(InvalidArgument) as caught:
        score_each(P._replace(**changed), ids, None)
    assert str(caught.value) == message


@pytest.mark.parametrize(("k", "changed", "filters", "message"), [
    (-1, {}, {}, "k: expected 0 or more, got -1"),
    (2, {"query_gate": torch.tensor([[0.0] * 4, [math.nan] * 4])}, {}, "query_gate: expected no NaN, got NaN in row 1"),
    (2, {"query_components": torch.full((2, 2, 4), math.nan)}, {},
     "query_components: expected no NaN, got NaN in row 0"),
    (2, {}, {"exclude": (torch.tensor([0, 1, 1]), torch.tensor([3]))}, "exclude: expected item ids up to 2, got 3"),
    (2, {}, {"exclude": (torch.tensor([0, 1, 1]), torch.tensor([-1]))}, "exclude: expected item ids up to 2, got -1"),
    (2, {}, {"exclude": (torch.tensor([0, 1, 1]), torch.ones(1))},
     "exclude: expected int32 or int64, got torch.float32"),
    (2, {}, {"exclude": (torch.tensor([0, 1]), torch.tensor([1]))},
     "exclude: expected integer offsets (3,) and ids of one axis, got (2,) torch.int64, (1,)"),
    (2, {}, {"exclude": (torch.tensor([0, 2, 1]), torch.tensor([1]))},
     "exclude: expected offsets that rise from 0 to 1, got [0, 2, 1]"),
    (2, {}, {"allowed": torch.ones(2).bool()}, "allowed: expected (3,) bool or (1,) uint8, got (2,) torch.bool"),
    (2, {}, {"allowed": torch.ones(3)}, "allowed: expected (3,) bool or (1,) uint8, got (3,) torch.float32"),
])  # fmt: skip
def test_a_search_that_does_not_fit_is_refused(k, changed, filters, message):
    with pytest.raises(InvalidArgument) as caught:
        top_k(P._replace(**changed), k, None, Filters(filters.get("exclude"), filters.get("allowed")))
    assert str(caught.value) == message
