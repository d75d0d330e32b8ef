import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serrate.report.charts import (
    calibration_chart,
    frontier_chart,
    histogram,
    interval,
    line_chart,
    share_bar,
    thin,
    ticks,
)
from serrate.report.contents import Bin, CalibrationBin, Comparison, Curve, IndexFigures
from serrate.report.markup import percent

numbers = st.floats(-1e300, 1e300).map(lambda value: value / 1.000001)


def curve(*pairs: tuple[float, float]) -> Curve:
    made = Curve()
    for x, y in pairs:
        made.add(x, y)
    return made


def bins(*parts: tuple[int, int, int]) -> list[Bin]:
    return [Bin.model_validate({"from": low, "to": high, "users": users}) for low, high, users in parts]


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_thinning_keeps_mean_least_and_greatest_of_equal_groups():
    points = thin(curve((1, 4), (2, 2), (3, 9), (4, 5), (5, 1)), limit=2)
    assert points.x == [1.5, 4.0]
    assert points.mean == [3.0, 5.0]
    assert points.low == [2.0, 1.0]
    assert points.high == [4.0, 9.0]


def test_a_short_curve_is_kept_as_it_is():
    points = thin(curve((1, 4), (2, 2)))
    assert (points.x, points.mean) == ([1, 2], [4, 2])
    assert thin(Curve()).x == []


@given(st.lists(numbers, min_size=1, max_size=40), st.integers(1, 10))
def test_thinning_stays_within_what_was_measured(values: list[float], limit: int):
    points = thin(curve(*enumerate(values)), limit=limit)
    assert len(points.x) == min(limit, len(values))
    assert min(points.low) == min(values)
    assert max(points.high) == max(values)
    assert all(low <= mean <= high for low, mean, high in zip(points.low, points.mean, points.high, strict=True))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (5.3, 8.1, [5, 6, 7, 8, 9]),
        (0, 1494, [0, 500, 1000, 1500]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0][:2]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)


@given(numbers, numbers)
def test_ticks_enclose_any_range_and_are_few(a: float, b: float):
    low, high = min(a, b), max(a, b)
    values = ticks(low, high)
    slack = 1e-6 * (values[1] - values[0])
    assert values[0] <= low + slack
    assert values[-1] >= high - slack
    assert 2 <= len(values) <= 8
    assert values == sorted(set(values))


def test_a_line_chart_says_what_it_shows():
    svg = line_chart("loss", curve((1, 4.0), (2, 2.0), (3, 3.0)), x_label="step", y_label="Training loss",
                     mark=2, mark_label="chosen")  # fmt: skip
    assert 'role="img" aria-labelledby="loss-title loss-desc"' in svg
    assert '<title id="loss-title">Training loss</title>' in svg
    assert "3 values from 4 to 3, least 2, greatest 4; chosen at step 2." in svg
    assert texts(svg) == ["2.0", "2.5", "3.0", "3.5", "4.0", "1", "2", "3", "step", "chosen"]
    # x: 56 … 446, y: 206 … 22; the mark is on the line.
    assert 'd="M56.0,22.0 251.0,206.0 446.0,114.0"' in svg
    assert '<circle class="chosen" cx="251" cy="206" r="5"/>' in svg


def test_one_point_is_a_dot():
    svg = line_chart("loss", curve((7, 0.0)), x_label="step", y_label="Training loss", mark=7, mark_label="chosen")
    assert "<path" not in svg
    assert '<circle class="dot"' in svg


def test_a_mark_outside_of_the_curve_is_left_out():
    svg = line_chart("loss", curve((1, 1), (2, 2)), x_label="step", y_label="Loss", mark=9, mark_label="chosen")
    assert 'class="chosen"' not in svg


def test_a_long_curve_has_a_range_and_stays_small():
    svg = line_chart("loss", curve(*((x, x % 7) for x in range(100_000))), x_label="step", y_label="Loss")
    assert 'class="range"' in svg
    assert len(svg) < 20_000


@given(st.lists(numbers, min_size=1, max_size=5))
def test_any_finite_curve_can_be_drawn(values: list[float]):
    svg = line_chart("c", curve(*enumerate(values)), x_label="x", y_label="y", mark=0.0, mark_label="m")
    assert "nan" not in svg
    assert "inf" not in svg
    assert all(len(text) <= 12 for text in texts(svg))


@pytest.mark.parametrize("last", [1, 3])  # the upper bound counted in, or not
def test_a_histogram_has_a_bar_for_each_bin(last: int):
    parts = bins((1, 2, 10), (2, 4, 30)) if last == 3 else bins((1, 1, 10), (2, 3, 30))
    svg = histogram("lengths", parts, 2.0, title="Users by length")
    assert svg.count('class="bar"') == 2
    assert "<title>1 events: 10 users</title>" in svg
    assert "<title>2 to 3 events: 30 users</title>" in svg
    assert "40 users; most have 2 to 3 events." in svg
    assert "mean 2.0" in svg
    # 195 units a bin; the mean stands where the second begins, the second bar is three times the first.
    assert '<line class="guide" x1="251" x2="251"' in svg
    assert [float(height) for height in re.findall(r'class="bar"[^>]*height="([^"]*)"', svg)] == pytest.approx(
        [184 / 3, 184], abs=0.1
    )


def test_many_bins_have_few_labels():
    svg = histogram("lengths", bins(*((2**at, 2 ** (at + 1) - 1, 1) for at in range(30))), None, title="t")
    assert svg.count('class="bar"') == 30
    assert len(texts(svg)) <= 17
    assert max(map(len, texts(svg))) <= len("events in a history")


def test_a_histogram_of_nobody_is_flat():
    svg = histogram("lengths", bins((0, 0, 0)), 0.0, title="t")
    assert re.search(r'class="bar"[^>]*height="0"', svg)
    assert "nan" not in svg


@pytest.mark.parametrize(("share", "width"), [(0.0, "460"), (0.25, "345"), (1.0, "0"), (1.2, "0"), (-1.0, "460")])
def test_the_bar_of_padding_is_as_wide_as_its_share(share: float, width: str):
    assert f'class="bar" x="0" y="0" width="{width}"' in share_bar("padding", share, title="t")


def test_an_interval_stands_on_one_axis_with_zero():
    comparison = Comparison(model="m", baseline="b", metric="mrr", value=0.5, low=0.25, high=1.0)
    svg = interval(comparison, 0.25, 1.0)
    # 6 … 154 is 0 … 1.
    assert '<line class="zero" x1="6" x2="6"' in svg
    assert '<line class="span" x1="43" x2="154"' in svg
    assert '<circle class="dot" cx="80"' in svg
    assert 'aria-hidden="true"' in svg


def test_an_interval_without_bounds_is_its_zero():
    comparison = Comparison(model="m", baseline="b", metric="mrr")
    assert interval(comparison, 0.0, 0.0).count("<line") == 1


def test_a_calibration_chart_has_a_dot_for_each_bin_and_names_the_farthest():
    held = [CalibrationBin(count=10, predicted=p, observed=o) for p, o in ((0.05, 0.04), (0.2, 0.3), (0.5, 0.48))]
    svg = calibration_chart("calibration-0", held, title="Calibration of click")
    assert svg.count('class="dot"') == 3
    assert f"predicts {percent(0.2)} and {percent(0.3)} came true" in svg
    right = calibration_chart("one", [CalibrationBin(count=5, predicted=0.25, observed=0.25)], title="One")
    # what is right lies on the line where the two agree
    (x1, x2), (y1, y2) = (re.findall(rf'<line class="guide"[^>]*? {a}1="([^"]+)"[^>]*? {a}2="([^"]+)"', right)[0]
                          for a in "xy")
    [(x, y)] = re.findall(r'<circle class="dot" cx="([^"]+)" cy="([^"]+)"', right)
    along = (float(x) - float(x1)) / (float(x2) - float(x1))
    assert float(y) == pytest.approx(float(y1) + along * (float(y2) - float(y1)), abs=0.2)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-9])
def test_any_probability_can_be_drawn(value: float):
    assert "nan" not in calibration_chart("one", [CalibrationBin(count=1, predicted=value, observed=value)], title="a")


def figures(index: str, *rows: tuple[int, float, float]) -> list[IndexFigures]:
    return [IndexFigures(index=index, kind="exact", k=10, batch=batch, milliseconds=milliseconds, recall=recall,
                         share=1, certified=1) for batch, milliseconds, recall in rows]


def test_a_frontier_has_a_line_for_each_index_on_powers_of_ten():
    svg = frontier_chart("f", {"fast": figures("fast", (1, 1.0, 0.5), (8, 10.0, 0.5)),
                               "exact": figures("exact", (1, 100.0, 1.0))}, title="Recall")  # fmt: skip
    # x: 56 … 446 over 1 … 100 ms; y: 206 … 22 over .5 … 1
    assert 'd="M56.0,206.0 251.0,206.0"' in svg
    assert re.findall(r'class="dot" cx="([^"]*)" cy="([^"]*)"', svg) == [("56", "206"), ("251", "206"), ("446", "22")]
    assert texts(svg) == [*("0.5", "0.6", "0.7", "0.8", "0.9", "1.0", "1", "10", "100"), "milliseconds of a search",
                          "fast", "exact"]  # fmt: skip
    assert "<title>fast: 8 queries in 10 ms, recall 50 %</title>" in svg
    assert "2 indexes; the best recall is 100" in svg
    assert "of exact, whose fastest search takes 100 ms." in svg


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 1e9), st.floats(0, 1)), min_size=1, max_size=5))
def test_any_figures_of_an_index_can_be_drawn(rows: list[tuple[int, float, float]]):
    svg = frontier_chart("f", {"<&>": figures("<&>", *rows)}, title="Recall")
    assert "nan" not in svg
    assert "<&>" not in svg
