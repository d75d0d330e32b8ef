"""The suite of selection by a threshold: every implementation, on every named case, equals the oracle to the bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument, NotUsable
from serrate.ops import implementations
from serrate.ops.select import choose
from serrate.ops.threshold import Call, Problem, quantise, select_above
from serrate.ops.threshold.cases import CASES, Case

NAMED = {case.name: case for case in CASES}

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("threshold")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def usable(name: str, case: Case, device: str) -> None:
    """Skip the test, with the reason, where the implementation cannot serve the case."""
    call = Call(torch.device(device), case.width)
    reason = next(each for each in implementations("threshold") if each.name == name).unusable(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def run(name: str, problem: Problem, capacity: int) -> tuple[list, list]:
    """Return ids and counts by an implementation, as lists."""
    ids, counts = select_above(*problem[:5], allowed=problem.allowed, capacity=capacity, implementation=name)
    assert ids.dtype == counts.dtype == torch.int64
    assert ids.shape == (len(counts), capacity)
    return ids.tolist(), counts.tolist()


# --- the oracle ---

QUERIES = torch.tensor([[1, 2], [-3, 0]], dtype=torch.int8)
ITEMS = torch.tensor([[10, 0], [0, 10], [-10, 10], [4, 3]], dtype=torch.int8)
SCALES = torch.tensor([0.5, 1.0, 2.0, 0.0])
# products: 10, 20, 10, 10 and -30, 0, 30, -12; scores, with query scales 2 and 1: 10, 40, 40, 0 and -15, 0, 60, 0


@every_implementation
@pytest.mark.parametrize(("thresholds", "capacity", "ids", "counts"), [
    ((40.0, 0.0), 3, [[1, 2, -1], [1, 2, 3]], [2, 3]),
    ((40.0, 0.0), 2, [[1, 2], [1, 2]], [2, 3]),
    ((9.9, 60.1), 4, [[0, 1, 2, -1], [-1] * 4], [3, 0]),
    ((-math.inf, math.inf), 4, [[0, 1, 2, 3], [-1] * 4], [4, 0]),
    ((math.nan, -15.0), 1, [[-1], [0]], [0, 4]),
    ((10.0, -14.9), 0, [[], []], [3, 3]),
])  # fmt: skip
def test_by_hand(name, thresholds, capacity, ids, counts):
    usable(name, Case("", 4, 2, 2), "cpu")
    problem = Problem(QUERIES, torch.tensor([2.0, 1.0]), ITEMS, SCALES, torch.tensor(thresholds), None)
    assert run(name, problem, capacity) == (ids, counts)
    allowed = torch.tensor([False, True, True, True])
    kept = [[i for i in row if i > 0] for row in ids]
    if capacity == 4:
        fewer = [len(row) for row in kept]
        assert run(name, problem._replace(allowed=allowed), 4) == ([row + [-1] * (4 - len(row)) for row in kept], fewer)


@every_implementation
def test_a_score_of_nan_is_selected_by_nothing(name):
    usable(name, Case("", 4, 2, 2), "cpu")
    scales = torch.tensor([math.nan, 1.0, 2.0, 0.0])
    problem = Problem(QUERIES, torch.ones(2), ITEMS, scales, torch.full((2,), -math.inf), None)
    assert run(name, problem, 4) == ([[1, 2, 3, -1]] * 2, [3, 3])
    nothing = problem._replace(query_scales=torch.tensor([math.nan, 1.0]))
    assert run(name, nothing, 4) == ([[-1] * 4, [1, 2, 3, -1]], [0, 3])


# --- every implementation ---


@every_device
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@every_implementation
def test_named_cases_equal_the_oracle(name, case, device):
    usable(name, case, device)
    problem = case.problem(device)
    found = run(name, problem, case.capacity)
    assert found == run("reference", problem, case.capacity)
    if case.allowed is None:  # the threshold is the score of the last that should pass
        assert all(count >= min(case.keep, case.items) for count in found[1])


@every_device
@every_implementation
@pytest.mark.parametrize("scale", [1.0, 3e-7, 1e-30, 1e12], ids=str)
def test_a_threshold_that_is_a_score_selects_that_item_and_the_next_float_does_not(name, device, scale):
    """The comparison is that of the rounded score, in whatever order an implementation rearranges it."""
    case = Case("", 100, 4, 24)
    usable(name, case, device)
    queries, query_scales, items, item_scales, _, _ = case.problem(device)
    query_scales = query_scales * scale
    item = torch.arange(4, device=device) * 25 + 7
    products = (queries.double() * items[item].double()).sum(1).float()
    scores = products * item_scales[item] * query_scales
    for threshold, reached in ((scores, True), (torch.nextafter(scores, scores.new_tensor(math.inf)), False)):
        ids, _ = select_above(queries, query_scales, items, item_scales, threshold, capacity=100, implementation=name)
        assert (ids == item[:, None]).any(1).tolist() == [reached] * 4


@every_device
@every_implementation
def test_an_answer_does_not_depend_on_other_queries(name, device):
    case = NAMED["17 queries"]
    usable(name, case, device)
    problem = case.problem(device)
    ids, counts = run(name, problem, case.capacity)
    for query in (0, 16):
        alone = Problem(*(x[query:query + 1] for x in problem[:2]), *problem[2:4], problem.threshold[query:query + 1],
                        None)
        assert run(name, alone, case.capacity) == ([ids[query]], [counts[query]])


@every_device
@every_implementation
def test_less_place_gives_the_first_of_the_same(name, device):
    case = NAMED["more than there is place for"]
    usable(name, case, device)
    problem = case.problem(device)
    ids, counts = run(name, problem, 2000)
    assert counts == [200, 200]
    for capacity in (1, 31, 200, 201):
        assert run(name, problem, capacity) == ([row[:capacity] for row in ids], counts)


@given(st.integers(0, 300), st.integers(0, 9), st.integers(1, 40), st.integers(0, 30), st.integers(0, 50),
       st.sampled_from((None, 0.5)), st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_any_call_on_the_cpu(items, queries, width, keep, capacity, allowed, packed, coarse, seed):
    case = Case("", items, queries, width, keep, capacity, allowed, packed, coarse)
    problem = case.problem(seed=seed)
    assert run("cpu", problem, capacity) == run("reference", problem, capacity)


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("width", [1, 2, 3, 64, 1024, 2100])
def test_both_products_on_the_cpu_are_exact(integers, width, monkeypatch):
    """At the largest numbers there are, where float32 of all of them at once would be off."""
    from serrate.ops.threshold import cpu

    monkeypatch.setattr(cpu, "_HAS_INTEGERS", integers)
    generator = torch.Generator().manual_seed(1)
    queries, items = (torch.randint(120, 128, (count, width), dtype=torch.int8, generator=generator)
                      for count in (3, 50))
    expected = (queries.long()[:, None] * items.long()).sum(-1)
    assert torch.equal(cpu._products(queries, items), expected.float())


# --- operators ---


def compiled_implementations() -> list:
    return [pytest.param("cpu", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
@pytest.mark.parametrize("case", [NAMED[name] for name in (
    "no items", "no queries", "some of each", "some allowed")], ids=lambda case: case.name)
def test_custom_operators_are_well_behaved(case, name, device):
    operator = getattr(torch.ops.serrate, f"threshold_{name}").default
    torch.library.opcheck(operator, (*case.problem(device), case.capacity), test_utils=(
        "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"))


@pytest.mark.parametrize(("name", "device"), compiled_implementations())
def test_compiles_whole_and_once_for_all_numbers_of_items(name, device):
    def found(*problem):
        return select_above(*problem, capacity=9, implementation=name)[0] + 1

    torch.compiler.reset()
    compiled = torch.compile(found, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for items in (50, 120, 700):
            problem = Case("", items, 3).problem(device)[:5]
            assert torch.equal(compiled(*problem), found(*problem))


# --- the choice and errors ---


def test_the_automatic_choice():
    call = Call(torch.device("cpu"), 64)
    assert choose("threshold", call).implementation.name in ("cpu", "triton")  # the latter under its interpreter
    on_gpu = choose("threshold", Call(torch.device("cuda"), 1025))
    assert on_gpu.implementation.name == "reference"
    assert on_gpu.passed_over[0] == ("triton", "needs a width of at most 1024, got 1025")


def test_an_implementation_that_cannot_serve_is_refused():
    problem = Case("", 3, 2, 1025).problem()
    with pytest.raises(NotUsable, match="'triton' of threshold cannot serve this call: needs a width"):
        select_above(*problem[:5], capacity=1, implementation="triton")


ROWS, ONES = torch.ones(3, 6, dtype=torch.int8), torch.ones(3)


@pytest.mark.parametrize(("changed", "options", "message"), [
    ({"queries": ROWS[0]}, {}, "queries: expected shape (N, d) with d >= 1, int8, got (6,) torch.int8"),
    ({"items": ROWS.float()}, {}, "items: expected shape (N, d) with d >= 1, int8, got (3, 6) torch.float32"),
    ({"items": ROWS[:, :0]}, {}, "items: expected shape (N, d) with d >= 1, int8, got (3, 0) torch.int8"),
    ({"items": ROWS[:, :4]}, {}, "items: expected width 6, as queries, got 4"),
    ({"items": ROWS.to("meta"), "item_scales": ONES.to("meta")}, {},
     "items: expected a tensor on cpu, as queries, got meta"),
    ({"query_scales": ONES[:2]}, {},
     "query_scales: expected (N,) = (3,) torch.float32 on cpu, got (2,) torch.float32 on cpu"),
    ({"item_scales": ONES.double()}, {},
     "item_scales: expected (N,) = (3,) torch.float32 on cpu, got (3,) torch.float64 on cpu"),
    ({"threshold": ONES[:1]}, {},
     "threshold: expected (R,) = (3,) torch.float32 on cpu, got (1,) torch.float32 on cpu"),
    ({}, {"allowed": ONES}, "allowed: expected (V,) = (3,) torch.bool on cpu, got (3,) torch.float32 on cpu"),
    ({}, {"capacity": -1}, "capacity: expected 0 or more, got -1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changed, options, message):
    arguments = {"queries": ROWS, "query_scales": ONES, "items": ROWS, "item_scales": ONES, "threshold": ONES}
    with pytest.raises(InvalidArgument) as caught:
        select_above(**(arguments | changed), **({"capacity": 2} | options))
    assert str(caught.value) == message


def test_integers_keep_the_best():
    """What INT8 loses: nothing of the best 100 of a million within its own best 1,000."""
    generator = torch.Generator().manual_seed(3)
    items, queries = (torch.randn(count, 64, generator=generator) for count in (1_000_000, 4))
    best = (queries @ items.T).topk(100).indices
    problem = (*quantise(queries), *quantise(items))
    products = problem[0].float() @ problem[2].float().T * problem[3]
    threshold = products.topk(1000).values[:, -1] * problem[1]
    ids, counts = select_above(*problem, threshold, capacity=1000)
    assert counts.tolist() == [1000] * 4
    for found, expected in zip(ids, best, strict=True):
        assert torch.isin(expected, found).all()
