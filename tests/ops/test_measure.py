"""What all benchmarks share: a check that can fail, peers that may fail, rows, parts from the command line."""

import json
import math
from functools import partial

import pytest
import torch

from serrate.ops import figures, measure
from serrate.ops.measure import Peer, asking


def test_errors_are_relative_and_small_tensors_count_beside_the_largest():
    large, small = torch.tensor([3.0, 4.0]), torch.tensor([0.0])  # norms 5 and 0: the latter counts as 5 % of 5
    assert measure.relative_error([large, small], [large, small]) == 0
    assert measure.relative_error([large * 1.25, small], [large, small]) == pytest.approx(0.25)
    assert measure.relative_error([large, small + 0.05], [large, small]) == pytest.approx(0.2)
    assert math.isnan(measure.relative_error([large, small * math.nan], [large, small]))


def test_equal_infinities_differ_by_nothing_and_others_are_errors():
    expected = torch.tensor([3.0, 4.0, -math.inf])  # norm 5, of what is finite
    assert measure.relative_error([expected], [expected]) == 0
    assert measure.relative_error([torch.tensor([3.0, 5.0, -math.inf])], [expected]) == pytest.approx(0.2)
    for wrong in (math.inf, 0.0):
        assert measure.relative_error([torch.tensor([3.0, 4.0, wrong])], [expected]) == math.inf
    assert measure.relative_error([expected], [torch.tensor([3.0, 4.0, 0.0])]) == math.inf
    assert math.isnan(measure.relative_error([torch.tensor([3.0, 4.0, math.nan])], [expected]))


@pytest.mark.parametrize("error", [1e-4, math.nan, math.inf])
def test_a_wrong_answer_tells_no_speed(error):
    measure.require("small", 0.9e-4, 1e-4)
    with pytest.raises(AssertionError, match=r"small: relative error .*, more than 1e-04: no speed is told"):
        measure.require("small", error, 1e-4)


def test_times_of_both_passes_are_taken_and_gradients_do_not_add_up():
    leaf = asking(torch.ones(3))
    found = measure.everything(Peer(lambda: leaf * 2, [leaf]), True, 0.01)
    assert set(found) == {"forward_ms", "forward_backward_ms"}
    assert min(found.values()) > 0
    assert leaf.grad is not None
    measure.everything(Peer(lambda: leaf * 0, [leaf]), True, 0.01)
    assert torch.equal(leaf.grad, torch.zeros(3))


def test_a_peer_that_fails_is_told_and_ours_is_not_passed_over():
    told = []

    def fail():
        raise RuntimeError("cannot\nat all")

    assert measure.taken("eager", fail, False, told.append) == {}
    assert measure.taken("ours", lambda: {"forward_ms": 1.5}, True, told.append) == {"forward_ms": 1.5}
    assert [line.split() for line in told] == [["eager", "failed:", "cannot"], ["ours", "forward_ms", "1.5"]]
    with pytest.raises(RuntimeError, match="cannot"):
        measure.taken("ours", fail, True, told.append)


def test_ours_is_measured_beside_its_peers_or_alone(monkeypatch):
    monkeypatch.setattr(measure, "everything", lambda peer, is_ours, seconds: {f"{peer}_ms": float(is_ours)})
    monkeypatch.setattr(measure, "replays", lambda peer, together: {f"graph_{peer}_ms": 2.0})
    ways = {"ours": lambda: "own", "eager": lambda: "other", "broken": lambda: {}["nothing"]}
    assert measure.beside(ways, "ours") == {"ours": {"own_ms": 1.0}, "eager": {"other_ms": 0.0}, "broken": {}}
    assert measure.beside(ways, "ours", alone=True) == {"ours": {"graph_own_ms": 2.0}}


def test_figures_become_rows_with_the_unit_of_their_metric():
    rows = measure.rows_of("s", "w", {"batch": {"events": 3}, "ours": {"forward_ms": 1 / 3, "peak_mib": 2}}, "cpu")
    assert [(row["implementation"], row["metric"], row["value"], row["unit"]) for row in rows] == [
        ("batch", "events", 3, "events"), ("ours", "forward_ms", 0.33333, "ms"), ("ours", "peak_mib", 2, "MiB")]
    assert all(row["device"].startswith("CPU") and row["subject"] == "s" and row["workload"] == "w" for row in rows)


# --- from the command line ---


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """Parts of which the second fails in its first workload, on a stand-in for a GPU."""
    def row(workload):
        return [figures.row("s", workload, "ours", "forward_ms", 1.0, "ms")]

    def fail():
        raise RuntimeError("out of luck")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X1")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return {"short": [lambda: row("short")], "long": [fail, lambda: row("long")], "rare": [lambda: row("rare")]}


@pytest.mark.parametrize(("names", "usual", "measured"), [
    ((), (), ["short", "long", "rare"]), ((), ("rare",), ["rare"]), (("short",), ("rare",), ["short"]),
    (("--all",), ("rare",), ["short", "long", "rare"]), (("rare", "short"), (), ["rare", "short"])])
def test_parts_are_chosen_by_name(parts, names, usual, measured, tmp_path):
    if "long" in measured:
        with pytest.raises(SystemExit, match=r"these parts failed: long$"):
            measure.main("s", parts, names, usual)
    else:
        measure.main("s", parts, names, usual)
    assert [row["workload"] for row in json.loads((tmp_path / "s-x1.json").read_text())] == measured


@pytest.mark.parametrize(("names", "measured"), [(("--alone",), ["rare", "short"]), (("short", "--alone"), ["short"])])
def test_the_grid_is_measured_alone_beside_the_limit(parts, names, measured, tmp_path, capsys):
    def measure_of(name, alone=False):
        return [figures.row("s", name, each, metric, 1.0 + alone * ms, "ms") for ms, (each, metric) in enumerate((
            ("limit", "limit_ms"), (figures.OURS, "graph_forward_ms")))]

    measure.main("s", {name: [partial(measure_of, name)] for name in parts}, names, ["long"], grid=["rare", "short"])
    assert not (tmp_path / "s-x1.json").exists()
    rows = json.loads((tmp_path / "s-alone-x1.json").read_text())
    assert list(dict.fromkeys(row["workload"] for row in rows)) == measured
    assert capsys.readouterr().err.count("of the limit 2.00 / –") == len(measured)


def test_a_failing_workload_is_told(parts, capsys):
    with pytest.raises(SystemExit):
        measure.main("s", parts, ["long"])
    assert "long: FAILED: RuntimeError: out of luck\n" in capsys.readouterr().err


def test_what_cannot_be_measured_is_refused(parts, monkeypatch):
    with pytest.raises(SystemExit, match="no part other; there are short, long, rare"):
        measure.main("s", parts, ["other"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device, go home"):
        measure.main("s", parts, [], without_gpu=", go home")


def test_limits_are_the_larger_of_bytes_and_products(monkeypatch):
    monkeypatch.setattr(measure, "copy_milliseconds", lambda nbytes: nbytes / 100)
    monkeypatch.setattr(measure, "product_rate", lambda dtype: 10.0 if dtype == torch.bfloat16 else 1.0)
    assert measure.limits(300, 100) == {"limit_ms": 4.0, "limit_forward_backward_ms": 11.0}
    assert measure.limits(300, 100, 5.0) == {"limit_ms": 4.0, "limit_forward_backward_ms": 11.0}
    assert measure.limits(300, 100, 5.0, torch.float32) == {"limit_ms": 5.0, "limit_forward_backward_ms": 15.0}


@pytest.mark.gpu
def test_the_ceilings_of_a_device():
    copied, product = measure.ceilings()
    assert 1e8 < copied < 1e11  # 0.1 to 100 TB/s
    assert 1 < product < 1e5
    assert measure.copy_milliseconds(2**30) == pytest.approx(2**30 / copied, rel=0.5)
    assert measure.product_rate(torch.float32) < product
