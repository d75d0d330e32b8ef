"""What the Triton implementation promises beyond the suite of `test_threshold.py`; needs a CUDA device."""

import pytest
import torch

from serrate.ops.threshold import bench, select_above
from serrate.ops.threshold.cases import Case
from serrate.testing.graphs import assert_captured

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("queries", [1, 16, 17, 33, 64, 65, 128, 129, 300])
@pytest.mark.parametrize("width", [3, 64, 100, 256, 1024])
def test_every_tile_of_queries_and_width(queries, width):
    case = Case("", 20_003, queries, width, keep=50, capacity=60, allowed=0.9)
    problem = case.problem("cuda")
    for found, expected in zip(*(bench.selected(problem, 60, name) for name in ("triton", "reference")), strict=True):
        assert torch.equal(found, expected)


def test_elements_past_the_range_of_int32():
    case = Case("", 2**25 + 77, 3, 128, keep=5000, capacity=6000)
    problem = case.problem("cuda")
    assert problem.items.numel() > 2**31
    assert bench.agree(bench.selected(problem, 6000), *bench.plainly(problem))


def test_a_captured_graph_follows_new_thresholds_and_nothing_waits():
    *problem, threshold, _ = Case("", 70_000, 5, keep=100).problem("cuda")

    def run():
        return select_above(*problem, threshold, capacity=300, implementation="triton")

    def changes():
        for factor in (0.9, 1.2):
            threshold.mul_(factor)
            yield

    assert_captured(run, changes())


def test_inductor_compiles_it_whole():
    def found(*problem):
        return select_above(*problem, capacity=9, implementation="triton")[0] + 1

    torch.compiler.reset()
    compiled = torch.compile(found, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for items in (50, 120, 700):
            problem = Case("", items, 3).problem("cuda")[:5]
            assert torch.equal(compiled(*problem), found(*problem))


def test_the_benchmark_checks_and_measures():
    rows = bench.compare(Case("small", 50_000, 3, keep=100, capacity=200, sample=10_000), 1e9)
    assert {row["implementation"] for row in rows} == {"batch", "limit", "triton", "eager", "compiled"}
    assert all(row["value"] > 0 for row in rows)
