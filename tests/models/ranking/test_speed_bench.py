"""The benchmark of the production model: on a CPU, small, it checks, measures, and tells what it measured."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch


@pytest.fixture
def bench(monkeypatch):
    """The program."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # there may be no compiler here
    made = importlib.import_module("ranking_speed")
    monkeypatch.setattr(made, "milliseconds", lambda run, device: (run(), 2.0)[1])
    yield made
    torch.compiler.reset()
    for name in ("ranking_speed", "ranking_models", "hstu_models"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("fill", [0.1, 0.5, 1.0])
def test_histories_fill_what_is_asked_for(bench, fill):
    batch = bench.make(bench.config_of(100), 400, 1, fill, "cpu")
    for history in batch.histories.values():
        assert history.num_events / (400 * 100) == pytest.approx(fill, abs=0.03)
        assert 90 < int(history.lengths.max()) <= 100
        assert int(history.lengths.min()) >= 1


def test_ours_is_compared_with_its_peers_and_measured_beside_them(bench):
    only = "serrate", "padded, fused attention"
    rows = bench.compare("tiny", 0.5, 24, only=only, device="cpu", requests=4, shown=3)
    told = {(row["implementation"], row["metric"]): row["value"] for row in rows}
    assert told["serrate", "training_ms"] == told["padded, fused attention", "inference_ms"] == 2.0
    assert told["serrate", "inference_qps"] == 4 * 1000 / 2.0  # requests of a batch in 2 ms
    assert {row["unit"] for row in rows if row["metric"].endswith("qps")} == {"requests/s"}


def test_a_wrong_answer_is_told_and_not_timed(bench, monkeypatch):
    monkeypatch.setattr(bench, "fused", lambda q, k, v, attn_mask: torch.zeros_like(q))
    with pytest.raises(AssertionError, match="padded, fused attention: relative error"):
        bench.compare("tiny", 0.5, 24, only=("padded, fused attention",), device="cpu", requests=4, shown=3)


def test_candidates_share_a_history_or_copy_it(bench):
    rows = bench.compare_candidates("cpu", 5)
    assert {row["implementation"] for row in rows} == {"batch", "history shared", "history copied"}
    assert {row["value"] for row in rows if row["metric"] == "candidates_per_second"} == {1000 * 5 / 2.0}
