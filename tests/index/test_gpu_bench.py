"""The benchmark of indexes on a GPU: on a CPU, small, it finds what there is and tells what it measured."""

import importlib
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    """The program, whose mixture learns a little."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("planted"), "_STEPS", 20)
    made = importlib.import_module("index_gpu")
    monkeypatch.setattr(made, "milliseconds", lambda run, device: (run(), 2.0)[1])
    yield made
    for name in ("index_gpu", "planted", "ledger"):
        sys.modules.pop(name, None)


def told(path: Path) -> dict[tuple[str, str], float]:
    return {(row["implementation"], row["metric"]): row["value"] for row in json.loads(path.read_text())}


def test_more_candidates_find_more_until_they_find_all(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "COMBINED", [(1, 100), (10, 1_000)])
    bench.candidates(tmp_path / "index.json", 3_000, "cpu")
    found = told(tmp_path / "index.json")
    assert found["serrate exact", "recall"] == 1
    few, many = (found[f"serrate component each={each} mean={mean}", "recall"] for each, mean in bench.COMBINED)
    assert 0.3 < few <= many
    assert many > 0.95  # a cluster has a thousand items
    assert found["brute force, torch", "recall"] > 0.8  # scores of bfloat16 all the way
    assert found["serrate exact", "batch_32_ms"] == 2.0


def test_two_stages_keep_what_they_are_told_to(bench, tmp_path):
    bench.corpus(tmp_path / "index.json", 5_000, [150, 2_000], "cpu")
    found = told(tmp_path / "index.json")
    small, large = "serrate h-indexer keep=150", "serrate h-indexer keep=2000"
    assert found[large, "recall"] > 0.6 > 0.3 > found[small, "recall"]  # of 5 clusters, after so little learning
    assert found[large, "scored"] == pytest.approx(2_000 * 1.15 / 5_000, rel=0.15)  # three deviations more
    # 4 x 64 components, 32 numbers of the gate and 64 of stage one in bfloat16; INT8 and its scale; the id
    assert found[large, "index_gib"] == pytest.approx(5_000 * (2 * (256 + 32 + 64) + 64 + 4 + 8) / 2**30, abs=1e-5)
