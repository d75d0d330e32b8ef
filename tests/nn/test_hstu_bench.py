"""The benchmark of HSTU: what it compares computes the same, a wrong answer is found, rows and tables are right."""

import importlib
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from serrate.ops import figures

MODULES = ("hstu", "hstu_models", "tables", "curves")


@pytest.fixture
def programs(monkeypatch):
    """The modules of the benchmark, by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # there may be no compiler here
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def hstu(programs):
    return programs["hstu"]


@pytest.fixture
def models(programs):
    return programs["hstu_models"]


def layer_and_batch(models, biased=True, lengths=(7, 0, 20, 1)):
    torch.manual_seed(0)
    layer = models.HSTULayer(16, 2, models.options(20, biased))
    return layer, models.make(torch.tensor(lengths), 16, "cpu")


# --- batches ---


def test_histories_are_as_full_as_it_says(models):
    means = {longest: float(models.histories(200_000, longest).double().mean()) for longest in (1024, 2048, 4096, 8192)}
    assert [mean / longest for longest, mean in means.items()] == pytest.approx([0.996, 0.936, 0.691, 0.384], abs=0.003)


def test_thinned_histories_cost_what_is_expected(models):
    lengths = models.histories(128, 4096)
    short = models.thinned(lengths, 4096, 1.6)
    assert bool(((short == lengths) | (short == 776)).all())
    assert bool((short < lengths).any())
    n = lengths.double().numpy()
    whole = np.where(n > 776, np.minimum(4096**1.6 / n**2, 1), 1)
    expected = (whole * n**2 + (1 - whole) * 776**2).sum()
    assert float((short.double() ** 2).sum()) == pytest.approx(expected, rel=0.05)
    assert torch.equal(short, models.thinned(lengths, 4096, 1.6))


def test_first_rows_and_cells_are_the_same_events(models):
    _, batch = layer_and_batch(models)
    few = batch.first(3)
    assert few.x.num_events == 27
    assert torch.equal(few.x.values, batch.x.values[:27])
    x, asked, happened, real = batch.padded()
    assert real.sum(1).tolist() == [7, 0, 20, 1]
    for cells, events in ((x, batch.x.values), (asked, batch.asked), (happened, batch.happened)):
        assert torch.equal(cells[real], events)


# --- the checks ---


@pytest.mark.parametrize("biased", [False, True])
def test_the_layer_written_out_is_the_layer(hstu, models, biased):
    layer, batch = layer_and_batch(models, biased)
    assert hstu.wrong_layer(layer, batch) < 1e-5


def test_a_wrong_layer_is_found(hstu, models, monkeypatch):
    layer, batch = layer_and_batch(models)
    right = models.HSTULayer.bias

    def of_events(self, query_times, key_times):
        return right(self, key_times, key_times)  # of what it happened, not of what is asked

    monkeypatch.setattr(models.HSTULayer, "bias", of_events)
    assert hstu.wrong_layer(layer, batch) > hstu.TOLERANCE["cuda"]


@pytest.mark.parametrize("name", ["position_bias", "time_bias", "project_in.weight", "project_out.weight"])
def test_a_wrong_gradient_of_the_layer_is_found(hstu, models, name, monkeypatch):
    layer, batch = layer_and_batch(models)
    right = models.HSTULayer.forward

    def spoiled(self, x, **options):
        out, parameter = right(self, x, **options), self.get_parameter(name)
        return out.with_values(out.values + 0.5 * (parameter - parameter.detach()).sum())

    monkeypatch.setattr(models.HSTULayer, "forward", spoiled)
    assert hstu.wrong_layer(layer, batch) > hstu.TOLERANCE["cuda"]


def test_a_plain_bucket_is_the_contract_s_but_next_to_a_border(hstu, models):
    difference = torch.randint(-(2**29), 2**29, (100_000,), generator=torch.Generator().manual_seed(0))
    near = torch.arange(-4095, 4096)
    assert torch.equal(models.plain_bucket(near), hstu.bucket(near))
    other = models.plain_bucket(difference) != hstu.bucket(difference)
    assert 0 < float(other.double().mean()) < 2e-3


def test_both_transformers_compute_the_same_and_another_is_found(hstu, models, monkeypatch):
    torch.manual_seed(0)
    stack = models.transformer(2, 16, 2, "cpu")
    _, batch = layer_and_batch(models)
    assert hstu.wrong_transformers(stack, batch) < 1e-5
    monkeypatch.setattr(models.FlashAttention, "attend", lambda self, x, mask=None: x.values[:, :16])
    assert hstu.wrong_transformers(stack, batch) > 0.1


def test_an_error_of_nan_stops(hstu):
    assert math.isnan(hstu.relative_error([torch.full((2,), math.nan)], [torch.ones(2)]))
    with pytest.raises(AssertionError, match="layer: relative error nan, more than 1e-04: no speed is told"):
        hstu.require("layer", math.nan, "cpu")


# --- what is measured ---


def implementations(rows):
    return [row["implementation"] for row in rows if row["metric"] != "forward_ms"]


def test_a_layer_is_measured_beside_plain_pytorch(hstu):
    workload = replace(hstu.LAYERS[0], rows=3, longest=12, heads=2, width=8)
    rows = hstu.measure_layer(workload, "cpu")
    assert implementations(rows) == ["batch", "serrate", "serrate, recompute", "eager", "compiled"]
    assert all(row["value"] > 0 and row["subject"] == "hstu layer" for row in rows)


def test_a_layer_that_is_wrong_is_not_measured(hstu, monkeypatch):
    monkeypatch.setattr(hstu, "wrong_layer", lambda *_: 1.0)
    monkeypatch.setattr(hstu, "everything", lambda *_: pytest.fail("was measured"))
    with pytest.raises(AssertionError, match="no speed is told"):
        hstu.measure_layer(replace(hstu.LAYERS[0], rows=3, longest=12, heads=2, width=8), "cpu")


def test_steps_are_measured_on_whole_and_on_thinned_histories(hstu):
    rows = hstu.measure_training(64, "cpu", cells=512, width=64)
    assert implementations(rows) == ["batch", "batch, alpha 1.6", "hstu", "hstu, alpha 1.6", "hstu biased",
                                     "hstu biased, alpha 1.6", "transformer varlen", "transformer padded"]
    assert {row["workload"] for row in rows} == {"longest 64, 8 rows"}
    assert rows[0]["value"] == 512 > rows[1]["value"] >= 8 * 27  # 64^0.8 = 27


def test_a_step_changes_the_parameters_and_keeps_no_gradient_of_the_events(models):
    layer, batch = layer_and_batch(models)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    step = models.training_step(layer, batch.x.values, lambda: models.through_hstu([layer], batch))
    step()
    first = batch.x.values.grad
    step()
    assert all(not torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))
    assert first is not None
    assert batch.x.values.grad.norm() < 1.5 * first.norm()  # not the sum of the two


def test_candidates_are_measured_in_each_way_and_a_wrong_one_is_found(hstu, models, monkeypatch):
    rows = hstu.measure_candidates(9, "cpu", history=30, width=64)
    assert [(row["implementation"], row["unit"]) for row in rows] == [
        (f"hstu {way}", "candidates/s") for way in ("one by one", "together", "microbatches", "cached")]
    assert {row["workload"] for row in rows} == {"history 30, 9 candidates"}
    monkeypatch.setattr(hstu, "Mask", lambda **_: models.Mask(causal=True))  # candidates that see one another
    with pytest.raises(AssertionError, match="together, history 30"):
        hstu.measure_candidates(9, "cpu", history=30, width=64)


def test_candidates_behind_wrong_keys_are_found(hstu, monkeypatch):
    asked_late = hstu.encode_candidates
    monkeypatch.setattr(hstu, "encode_candidates",
                        lambda stack, cache, x, asked: asked_late(stack, cache, x, asked=10**6 + 1000 * asked))
    with pytest.raises(AssertionError, match="microbatches, history 30"):
        hstu.measure_candidates(9, "cpu", history=30, width=64)


def test_growth_is_measured_behind_cached_keys_and_anew_and_a_wrong_one_is_found(hstu, monkeypatch):
    rows = hstu.measure_growth(3, "cpu", history=30, width=64)
    assert [(row["workload"], row["implementation"], row["metric"], row["unit"]) for row in rows] == [
        ("history 30, the newest 3", f"hstu {way}", "growth_ms", "ms") for way in ("anew", "extended")]
    right = hstu.encode_events
    monkeypatch.setattr(hstu, "encode_events", lambda stack, x, past, **times: right(stack, x, **times))  # no past
    with pytest.raises(AssertionError, match="extended, history 30"):
        hstu.measure_growth(3, "cpu", history=30, width=64)


def test_a_peer_that_fails_is_told_and_ours_is_not_passed_over(hstu, capsys):
    def fail():
        raise ValueError("cannot\nat all")

    assert hstu.taken("hstu layer", "w", "eager", fail) == []
    assert "eager                    failed: cannot\n" in capsys.readouterr().err
    for name in ("serrate", "hstu biased"):
        with pytest.raises(ValueError, match="cannot"):
            hstu.taken("hstu layer", "w", name, fail)


# --- from the command line ---


def test_a_part_that_is_not_there_and_a_machine_without_a_gpu_are_refused(hstu, monkeypatch):
    with pytest.raises(SystemExit, match="no part sort; there are layer, training, candidates, growth"):
        hstu.main(["sort"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        hstu.main([])


def test_a_part_that_fails_leaves_the_others(hstu, tmp_path, monkeypatch, capsys):
    def fail():
        raise ValueError("cannot")

    def measure():
        return [row_of("layer", "200", "serrate", "forward_ms", 1.0)]

    monkeypatch.setattr(hstu, "PARTS", {"layer": [fail, measure], "training": [measure]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X1")
    monkeypatch.setenv("OUT", str(tmp_path))
    with pytest.raises(SystemExit, match=r"these parts failed: layer$"):
        hstu.main([])
    assert [row["workload"] for row in figures.read(tmp_path / "hstu-x1.json")] == ["200"]
    assert "layer: FAILED: ValueError: cannot" in capsys.readouterr().err


# --- tables ---


def row_of(subject, workload, implementation, metric, value):
    return figures.row(f"hstu {subject}", workload, implementation, metric, value, "ms") | {"device": "NVIDIA X1"}


def test_tables_tell_how_many_times_as_long_a_transformer_takes(programs, monkeypatch):
    tables = programs["tables"]
    found = [row_of("training", "longest 8192, 64 rows", name, metric, value) for name, metric, value in [
        ("batch", "events", 200000), ("batch, alpha 1.6", "events", 100000), ("hstu", "step_ms", 10.0),
        ("hstu, alpha 1.6", "step_ms", 4.0), ("hstu biased", "step_ms", 16.0), ("transformer varlen", "step_ms", 24.0),
        ("transformer padded", "step_ms", 80.0)]]
    found += [row_of("layer", "200", "serrate", metric, value) for metric, value in (
        ("forward_ms", 1.5), ("forward_backward_ms", 5.0), ("peak_mib", 300.0))]
    found += [row_of("candidates", "history 9, 4 candidates", name, "candidates_per_second", value)
              for name, value in (("hstu one by one", 500.0), ("hstu together", 1234.5))]
    found += [row_of("growth", "history 9, the newest 2", name, "growth_ms", value)
              for name, value in (("hstu anew", 5.0), ("hstu extended", 0.5))]
    monkeypatch.setattr(tables, "rows", lambda pattern: found)
    lines = {line.split(" | ")[0].strip("| "): line for line in tables.hstu().splitlines() if line.startswith("| ")}
    cells = [cell.strip() for cell in lines["longest 8192, 64 rows"].split("|")[1:-1]]
    assert cells == ["longest 8192, 64 rows", "200,000", "100,000", "10", "16", "4", "–", "24", "80",
                     "2.4×", "1.5×", "6.0×", "–", "8.0×", "5.0×", "20.0×", "–"]
    assert lines["200"] == "| 200 | – | 1.5 / 5 | – | – | – | 300 | – | – | – |"
    assert lines["history 9, 4 candidates"] == "| history 9, 4 candidates | hstu together | 1,234 | 2.5× |"
    assert lines["history 9, the newest 2"] == "| history 9, the newest 2 | 5 | 0.5 |"
    monkeypatch.setattr(tables, "rows", lambda pattern: [])
    assert tables.hstu() == "Not measured yet."


# --- on a GPU ---


@pytest.mark.gpu
def test_everything_is_measured_on_a_gpu(hstu):
    rows = hstu.measure_layer(replace(hstu.LAYERS[0], rows=8, longest=64))
    rows += hstu.measure_training(128, cells=2048) + hstu.measure_candidates(16, history=200)
    rows += hstu.measure_growth(3, history=200)
    measured = {row["implementation"] for row in rows}
    assert measured >= {"serrate", "eager", "compiled", "hstu biased, alpha 1.6", "transformer varlen",
                        "transformer padded", "hstu together", "hstu cached", "hstu extended"}
    assert all(row["value"] >= 0 for row in rows)
