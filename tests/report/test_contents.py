import json
from collections.abc import Callable
from pathlib import Path

import pytest

from serrate.errors import InvalidRun
from serrate.report.contents import Curve, number, read_contents


def steps(*pairs: tuple[int, float | None]) -> list[dict]:
    return [{"event": "step", "step": step, "loss": loss} for step, loss in pairs]


def test_the_sample_is_read_whole(make_run: Callable[..., Path], sample):
    contents = read_contents(make_run())
    assert contents.model == "transformer"
    assert contents.data == "ml-1m"
    assert len(contents.metrics.rows) == 8
    assert contents.metrics.lengths.histogram[4].low == 16
    assert list(contents.log.loss.y) == [each["loss"] for each in sample.log if each["event"] == "step"]
    assert list(contents.log.validation["mrr"].x) == list(range(1, 25))
    best = [each for each in sample.log if each.get("best")][-1]
    assert (contents.log.chosen_epoch, contents.log.chosen_step) == (best["epoch"], best["step"])


def test_metrics_and_log_may_be_missing(make_run: Callable[..., Path]):
    contents = read_contents(make_run(config={}, metrics=..., log=...))
    assert contents.metrics.rows == []
    assert len(contents.log.loss.x) == 0
    assert contents.model == "model"
    assert contents.data is None


def test_steps_that_a_resumed_run_measures_again_replace_the_first():
    curve = Curve()
    for x, y in [(1, 9), (2, 8), (3, 7), (4, 6), (3, 7.5), (4, 6.5), (5, 5)]:
        curve.add(x, y)
    assert list(curve.x) == [1, 2, 3, 4, 5]
    assert list(curve.y) == [9, 8, 7.5, 6.5, 5]


def test_a_loss_that_is_no_number_is_counted(make_run: Callable[..., Path]):
    log = read_contents(make_run(log=steps((1, 2.0), (2, None), (3, 1e301), (4, 1.0)))).log
    assert list(log.loss.x) == [1, 4]
    assert log.not_finite == 2


def test_records_the_report_does_not_know_are_passed_over(make_run: Callable[..., Path]):
    log = [{"event": "note"}, {}, {"event": "step"}, {"event": "validation"}, {"event": "validation", "epoch": 1}]
    read = read_contents(make_run(log=log)).log
    assert len(read.loss.x) == 0
    assert read.validation == {}


def test_a_validation_metric_may_be_an_estimate(make_run: Callable[..., Path]):
    record = {"event": "validation", "epoch": 1, "metrics": {"mrr": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    assert list(read_contents(make_run(log=[record])).log.validation["mrr"].y) == [0.5]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"rows": 5}, "rows"),
        ({"rows": [{"metrics": {}}]}, "rows.0.model"),
        ({"lengths": {"histogram": [{"from": 1, "users": 2}]}}, "lengths.histogram.0.to"),
        ({"samples": [{"history": [{"title": "x"}]}]}, "samples.0.history.0.id"),
        ({"warnings": "leak"}, "warnings"),
    ],
)
def test_metrics_of_another_shape_are_one_line(make_run: Callable[..., Path], change: dict, where: str):
    run = make_run(metrics=change)
    with pytest.raises(InvalidRun) as caught:
        read_contents(run)
    assert f"metrics.json: {where}: " in str(caught.value)


def test_nan_in_metrics_is_refused(make_run: Callable[..., Path]):
    run = make_run()
    (run / "metrics.json").write_text(json.dumps({"lengths": {"mean": float("nan")}}))
    with pytest.raises(InvalidRun, match=r"lengths\.mean"):
        read_contents(run)


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_number(value):
    assert number(value) is None


def test_what_is_a_number():
    assert number(3) == 3.0
    assert number(-0.5) == -0.5
