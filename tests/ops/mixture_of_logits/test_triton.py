"""What the Triton implementation promises beyond the suite of `test_mixture_of_logits.py`; needs a CUDA device."""

from dataclasses import replace

import pytest
import torch

from serrate.ops.mixture_of_logits import (
    Gate,
    Problem,
    bench,
    mixture_of_logits,
    mixture_of_logits_each,
    mixture_of_logits_logsumexp,
    mixture_of_logits_top_k,
)
from serrate.ops.mixture_of_logits.cases import WORKLOADS, Case
from serrate.testing import assert_within_budget
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu

PUBLISHED = Case("", 9, 5000, 8, 4, 64, 128, k=100, excluded=50, allowed=0.7)


def search(case: Case, problem: Problem, name: str = "triton"):
    return mixture_of_logits_top_k(*problem[:5], case.k, temperature=problem.temperature, implementation=name,
                                   **case.filters("cuda")._asdict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("p_q", "p_x", "width", "hidden"), [
    (1, 1, 1, 1), (2, 2, 16, 16), (3, 5, 25, 50), (8, 4, 64, 128), (8, 4, 128, 128), (8, 8, 32, 128), (8, 8, 64, 100),
    (4, 4, 300, 200), (16, 8, 32, 64), (16, 16, 16, 128), (5, 3, 7, 400), (8, 2, 16, 40), (16, 4, 64, 200)])
def test_every_size(dtype, p_q, p_x, width, hidden):
    case = Case("", 5, 1000, p_q, p_x, width, hidden)
    problem = case.problem(dtype, "cuda")
    exact = Problem(*(x.double() for x in problem[:4]), Gate(*(x.double() for x in problem.gate)), problem.temperature)
    oracle = mixture_of_logits(*exact[:5], temperature=case.temperature, implementation="reference")
    found = mixture_of_logits(*problem[:5], temperature=case.temperature, implementation="triton")
    assert_within_budget(found, oracle, bench.eagerly(problem))
    ids = torch.randint(0, 1000, (5, 300), device="cuda")
    each = mixture_of_logits_each(*problem[:5], temperature=case.temperature, ids=ids, implementation="triton")
    assert_within_budget(each, oracle.gather(1, ids), bench.eagerly(problem).gather(1, ids))


@pytest.mark.parametrize(("p_q", "p_x", "width", "hidden"), [
    (1, 1, 1, 1), (3, 5, 25, 50), (8, 4, 64, 128), (7, 3, 50, 100), (8, 2, 16, 64), (8, 4, 128, 128), (8, 2, 256, 70),
    (32, 1, 32, 128), (8, 8, 32, 128), (8, 4, 64, 32)])
def test_gradients_of_every_size(p_q, p_x, width, hidden):
    problem = Case("", 9, 333, p_q, p_x, width, hidden).problem(torch.bfloat16, "cuda")
    labels = torch.arange(333, device="cuda") // 2, torch.arange(9, device="cuda")
    found = []
    for name, wanted in (("triton", torch.bfloat16), ("triton", torch.bfloat16), ("reference", torch.float64)):
        leaves = [x.to(wanted).requires_grad_() for x in (*problem[:4], *problem.gate)]
        out = mixture_of_logits_logsumexp(*leaves[:4], Gate(*leaves[4:]), temperature=0.05, excluded=labels,
                                          dropout=0.2, seed=3, implementation=name)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for one, again, exact in zip(*found, strict=True):
        assert torch.equal(one, again)
        assert (one - exact).norm() <= 0.02 * exact.norm().clamp(min=0.1)  # a gate of one component has no gradient


def test_captured_sums_and_gradients_follow_new_values_and_seeds():
    problem = PUBLISHED.problem(torch.bfloat16, "cuda")
    leaves = [x.requires_grad_() for x in (*problem[:4], *problem.gate)]
    seed = torch.tensor(1, device="cuda")

    def run():
        out = mixture_of_logits_logsumexp(*leaves[:4], Gate(*leaves[4:]), temperature=0.05, dropout=0.2, seed=seed)
        return out.detach(), *torch.autograd.grad(out.sum(), leaves)

    def changes():
        for _ in range(2):
            with torch.no_grad():
                leaves[1].normal_()
            seed.add_(1)
            yield

    assert_captured(run, changes())


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_found_right(name):
    inputs = bench.make(WORKLOADS[name])
    assert bench.wrong(inputs) < 1e-2
    assert bench.misplaced(inputs) is None


@pytest.mark.parametrize("chunk", [8, 1000, 4096])
@pytest.mark.parametrize("k", [1, 100, 3000, 6000])
def test_chunks_change_nothing(chunk, k, monkeypatch):
    case = replace(PUBLISHED, k=k, copies=3, bits=True, items=2000 if chunk == 8 else 5000)
    problem = case.problem(torch.bfloat16, "cuda")
    whole = search(case, problem)
    monkeypatch.setattr("serrate.ops.mixture_of_logits.triton._SCORES", chunk * case.queries)
    for one, other in zip(search(case, problem), whole, strict=True):
        assert torch.equal(one, other)


def test_equal_items_tie_wherever_they_stand():
    case = replace(PUBLISHED, copies=1700, k=1650, excluded=0, allowed=None)
    _, ids = search(case, case.problem(torch.bfloat16, "cuda"))
    assert (ids.diff(dim=1) > 0).all()  # copies of the best of three items, in their order


def test_a_captured_graph_follows_new_values_and_nothing_waits():
    problem = PUBLISHED.problem(torch.bfloat16, "cuda")
    filters = PUBLISHED.filters("cuda")

    def run():
        return mixture_of_logits_top_k(*problem[:5], PUBLISHED.k, temperature=problem.temperature,
                                       implementation="triton", **filters._asdict())

    def changes():
        for _ in range(2):
            components = torch.randn_like(problem.item_components)
            problem.item_components.copy_(torch.nn.functional.normalize(components, dim=-1))
            problem.query_gate.normal_()
            filters.allowed.logical_not_()
            yield

    assert_captured(run, changes())


def test_inductor_compiles_it_whole():
    def run(problem):
        scores, ids = mixture_of_logits_top_k(*problem[:5], 7, temperature=0.05, implementation="triton")
        return scores * 2, ids

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    for items in (50, 130, 700):
        problem = Case("", 3, items, 2, 2, 16, 16).problem(torch.bfloat16, "cuda")
        for one, other in zip(compiled(problem), run(problem), strict=True):
            torch.testing.assert_close(one, other)


def test_a_query_that_is_no_number_finds_nothing():
    problem = Case("", 3, 500).problem(torch.bfloat16, "cuda")
    problem.query_components[1] = torch.nan
    scores, ids = mixture_of_logits_top_k(*problem[:5], 7, temperature=0.05, implementation="triton")
    assert ids[1].tolist() == [-1] * 7
    assert scores[1].tolist() == [-torch.inf] * 7
    assert (ids[[0, 2]] >= 0).all()


def test_elements_past_the_range_of_int32():
    items = 2**23 + 300
    generator = torch.Generator("cuda").manual_seed(0)
    components = torch.randn(items, 4, 64, generator=generator, device="cuda", dtype=torch.bfloat16)
    assert components.numel() > 2**31
    problem = Case("", 2, 1, 8, 4, 64, 128).problem(torch.bfloat16, "cuda")
    problem = problem._replace(item_components=components, item_gate=components[:, 0, :32].contiguous())
    found = mixture_of_logits(*problem[:5], temperature=1.0, implementation="triton")
    last = problem._replace(item_components=components[-99:], item_gate=problem.item_gate[-99:])
    assert torch.equal(found[:, -99:], mixture_of_logits(*last[:5], temperature=1.0, implementation="triton"))
    ids = torch.full((2, 1), items - 1, device="cuda")
    each = mixture_of_logits_each(*problem[:5], temperature=1.0, ids=ids, implementation="triton")
    torch.testing.assert_close(each, found[:, -1:])


def test_the_benchmark_checks_and_measures():
    rows = bench.compare(Case("small", 3, 5000, 8, 4, 64, 128, k=10))
    assert {row["implementation"] for row in rows} == {"batch", "limit", "triton", "eager", "compiled"}
    assert all(row["value"] > 0 for row in rows)
