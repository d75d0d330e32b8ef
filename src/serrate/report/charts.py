"""The charts of the report: inline SVG, coloured by the page's style sheet, described for screen readers.

A chart is drawn in a box of 460 × 250 units and scales with its column.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .contents import Bin, CalibrationBin, Comparison, Curve, IndexFigures
from .markup import Html, count, decimal, percent, tag

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 446, 22, 206  # the plot inside the box; the rest is for labels
_GAPS = 5  # between the lines of a grid, about
POINTS = 300  # more are not to be told apart in this width


@dataclass(frozen=True)
class Points:
    """A curve thin enough to draw: the mean, least and greatest `y` around each `x`."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def thin(curve: Curve, *, limit: int = POINTS) -> Points:
    """Return at most `limit` points, each of as many neighbours as the others (to one)."""
    total = len(curve.x)
    groups = min(total, limit)
    edges = [group * total // groups for group in range(groups + 1)] if groups else []
    x, mean, low, high = [], [], [], []
    for start, end in pairwise(edges):
        values = curve.y[start:end]
        x.append(math.fsum(curve.x[start:end]) / (end - start))
        # Rounding may carry the mean of equal values past them.
        mean.append(min(max(math.fsum(value / (end - start) for value in values), min(values)), max(values)))
        low.append(min(values))
        high.append(max(values))
    return Points(x, mean, low, high)


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`."""
    span = (high - low) or 0.1 * abs(high) or 1.0
    raw = max(span, 1e-6 * abs(high), 1e-12) / _GAPS
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def line_chart(
    name: str,
    curve: Curve,
    *,
    x_label: str,
    y_label: str,
    mark: float | None = None,
    mark_label: str = "",
) -> Html:
    """Return the chart of a curve over whole numbers (steps, epochs) that has at least one point.

    `mark` is the x of the chosen point.
    """
    points = thin(curve)
    y_ticks = ticks(min(points.low), max(points.high))
    x_low, x_high = points.x[0], max(points.x[-1], points.x[0] + 1)
    x_ticks = [tick for tick in ticks(x_low, x_high) if x_low <= tick <= x_high and tick == round(tick)]
    across = _scale(x_low, x_high, LEFT, RIGHT)
    up = _scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    line = [(across(x), up(y)) for x, y in zip(points.x, points.mean, strict=True)]
    drawn: list[object] = [
        _grid(y_ticks, up),
        _x_axis([(across(tick), _short(tick)) for tick in x_ticks], x_label),
    ]
    if len(curve.x) > len(points.x):
        edge = [(across(x), up(y)) for x, y in zip(points.x, points.high, strict=True)]
        back = [(across(x), up(y)) for x, y in zip(points.x, points.low, strict=True)]
        drawn.append(tag("polygon", class_="range", points=_path(edge + back[::-1])))
    if len(line) == 1:
        drawn.append(tag("circle", class_="dot", cx=line[0][0], cy=line[0][1], r=4))
    else:
        drawn.append(tag("path", class_="line", d="M" + _path(line)))
    if mark is not None and x_low <= mark <= x_high:
        drawn.append(_mark(across(mark), up(_at(points, mark)), mark_label))
    summary = (
        f"{count(len(curve.x))} values from {curve.y[0]:.4g} to {curve.y[-1]:.4g}, "
        f"least {min(points.low):.4g}, greatest {max(points.high):.4g}"
    )
    if mark is not None:
        summary += f"; {mark_label} at {x_label} {_short(mark)}"
    return _chart(name, y_label, summary + ".", drawn)


def histogram(name: str, bins: Sequence[Bin], mean: float | None, *, title: str) -> Html:
    """Return the histogram of the lengths: a bar for each bin, its least length written at its left."""
    total = sum(each.users for each in bins)
    y_ticks = ticks(0, max(each.users for each in bins))
    up = _scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    across = _scale(0, len(bins), LEFT, RIGHT)
    bars = [
        tag(
            "rect",
            tag("title", f"{_bounds(bins, at)} events: {count(each.users)} users"),
            class_="bar",
            x=across(at) + 1,
            y=up(each.users),
            width=across(1) - across(0) - 2,
            height=BOTTOM - up(each.users),
        )
        for at, each in enumerate(bins)
    ]
    every = math.ceil(len(bins) / 10)  # room for about ten labels
    labels = [(across(at), _short(bins[at].low)) for at in range(0, len(bins), every)]
    drawn: list[object] = [
        _grid(y_ticks, up),
        bars,
        _x_axis(labels, "events in a history"),
    ]
    place = None if mean is None else _on_bins(bins, mean)
    if mean is not None and place is not None:
        at, left = across(place), place > 0.7 * len(bins)
        drawn.append(tag("line", class_="guide", x1=at, x2=at, y1=TOP - 8, y2=BOTTOM))
        drawn.append(
            tag(
                "text",
                f"mean {decimal(mean, digits=1)}",
                class_="note",
                x=at - 5.0 if left else at + 5.0,
                y=TOP - 8,
                text_anchor="end" if left else "start",
            )
        )
    tallest = max(range(len(bins)), key=lambda at: bins[at].users)
    summary = f"{count(total)} users; most have {_bounds(bins, tallest)} events."
    return _chart(name, title, summary, drawn)


def calibration_chart(name: str, bins: Sequence[CalibrationBin], *, title: str) -> Html:
    """Return how often yes came true of samples over what was predicted of them, with a line where the two agree.

    `bins` are in ascending order of what was predicted, at least one; the size of a dot says nothing.
    """
    top = max(ticks(0, max(max(each.predicted, each.observed) for each in bins)))
    values = ticks(0, top)
    across, up = _scale(0, top, LEFT, RIGHT), _scale(0, top, BOTTOM, TOP)
    places = [(across(each.predicted), up(each.observed)) for each in bins]
    dots = [
        tag(
            "circle",
            tag("title", f"{count(each.count)} samples: {percent(each.predicted)} predicted, "
                         f"{percent(each.observed)} came true"),
            class_="dot",
            cx=x,
            cy=y,
            r=4,
        )
        for each, (x, y) in zip(bins, places, strict=True)
    ]
    written = _digits(values)
    drawn: list[object] = [
        _grid(values, up),
        _x_axis([(across(value), written(value)) for value in values], "predicted probability"),
        tag("line", class_="guide", x1=across(0), x2=across(top), y1=up(0), y2=up(top)),
        tag("path", class_="line", d="M" + _path(places)) if len(places) > 1 else None,
        dots,
    ]
    farthest = max(bins, key=lambda each: abs(each.predicted - each.observed))
    summary = (
        f"{count(len(bins))} bins of equal mass; the farthest from the dashed line predicts "
        f"{percent(farthest.predicted)} and {percent(farthest.observed)} came true."
    )
    return _chart(name, title, summary, drawn)


def frontier_chart(name: str, indexes: Mapping[str, Sequence[IndexFigures]], *, title: str) -> Html:
    """Return the recall of indexes over the time of a search, in powers of ten; a line joins the batches of an index.

    At least one index, each of at least one batch size. Its name stands at its slowest batch.
    """
    every = [row for rows in indexes.values() for row in rows]
    low, high = (math.log10(pick(row.milliseconds for row in every)) for pick in (min, max))
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    values = ticks(min(row.recall for row in every), 1)
    across, up = _scale(first, last, LEFT, RIGHT), _scale(values[0], values[-1], BOTTOM, TOP)
    written = [(across(power), _short(10.0**power)) for power in range(first, last + 1)]
    drawn: list[object] = [_grid(values, up), _x_axis(written, "milliseconds of a search")]
    for called, rows in indexes.items():
        places = [(across(math.log10(row.milliseconds)), up(row.recall)) for row in rows]
        said = [tag("title", f"{called}: {count(row.batch)} queries in {row.milliseconds:.3g} ms, "
                             f"recall {percent(row.recall)}") for row in rows]
        end_x, end_y = max(places)
        left = end_x > (LEFT + RIGHT) / 2
        drawn += [
            tag("path", class_="line", d="M" + _path(places)) if len(places) > 1 else None,
            [tag("circle", what, class_="dot", cx=x, cy=y, r=4) for what, (x, y) in zip(said, places, strict=True)],
            tag("text", called, class_="note", x=end_x - 7 if left else end_x + 7, y=end_y - 7,
                text_anchor="end" if left else "start"),
        ]
    best = max(every, key=lambda row: (row.recall, -row.milliseconds))
    summary = (f"{count(len(indexes))} indexes; the best recall is {percent(best.recall)}, of {best.index}, whose "
               f"fastest search takes {min(row.milliseconds for row in indexes[best.index]):.3g} ms.")
    return _chart(name, title, summary, drawn)


def share_bar(name: str, share: float, *, title: str) -> Html:
    """Return a bar of two parts: the events that exist, and the padding (`share` of the whole) avoided."""
    at = WIDTH * (1 - min(max(share, 0.0), 1.0))
    return tag(
        "svg",
        _described(name, title, f"{percent(1 - share)} events, {percent(share)} padding."),
        tag("rect", class_="bar", x=0, y=0, width=at, height=18),
        tag("rect", class_="empty", x=at + 1, y=1, width=max(WIDTH - at - 2, 0.0), height=16),
        viewBox=f"0 0 {WIDTH} 18",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="share",
        preserveAspectRatio="none",
    )


def interval(comparison: Comparison, low: float, high: float) -> Html:
    """Return an estimate as a dot on its interval, between `low` and `high`, with a line at zero.

    Its numbers stand beside it in the table, so it is hidden from screen readers.
    """
    across = _scale(min(low, 0.0), max(high, 0.0) if max(high, 0.0) > min(low, 0.0) else 1.0, 6, 154)
    parts: list[object] = [tag("line", class_="zero", x1=across(0), x2=across(0), y1=0, y2=22)]
    if comparison.low is not None and comparison.high is not None:
        parts.append(tag("line", class_="span", x1=across(comparison.low), x2=across(comparison.high), y1=11, y2=11))
    if comparison.value is not None:
        parts.append(tag("circle", class_="dot", cx=across(comparison.value), cy=11, r=4))
    return tag("svg", parts, viewBox="0 0 160 22", class_="interval", aria_hidden="true")


def _chart(name: str, title: str, summary: str, drawn: list[object]) -> Html:
    return tag(
        "svg",
        _described(name, title, summary),
        drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="chart",
    )


def _described(name: str, title: str, summary: str) -> list[Html]:
    return [tag("title", title, id=f"{name}-title"), tag("desc", summary, id=f"{name}-desc")]


def _grid(values: list[float], up: Callable[[float], float]) -> list[Html]:
    written = _digits(values)
    lines = []
    for value in values:
        y = up(value)
        lines.append(tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=y, y2=y))
        lines.append(tag("text", written(value), x=LEFT - 8, y=y + 4, text_anchor="end"))
    return lines


def _x_axis(labels: list[tuple[float, str]], label: str) -> list[Html]:
    middle = (LEFT + RIGHT) / 2
    marks = [tag("text", text, x=x, y=BOTTOM + 18, text_anchor="middle") for x, text in labels]
    return [*marks, tag("text", label, class_="axis", x=middle, y=BOTTOM + 39, text_anchor="middle")]


def _mark(x: float, y: float, label: str) -> list[Html]:
    left = x > (LEFT + RIGHT) / 2
    return [
        tag("line", class_="guide", x1=x, x2=x, y1=TOP - 8, y2=BOTTOM),
        tag("circle", class_="chosen", cx=x, cy=y, r=5),
        tag(
            "text",
            label,
            class_="note",
            x=x - 6 if left else x + 6,
            y=TOP - 8,
            text_anchor="end" if left else "start",
        ),
    ]


def _at(points: Points, x: float) -> float:
    """Return the drawn line's height at `x`, which lies within it."""
    for left, right in pairwise(range(len(points.x))):
        if x <= points.x[right]:
            part = (x - points.x[left]) / (points.x[right] - points.x[left])
            return points.mean[left] + max(part, 0.0) * (points.mean[right] - points.mean[left])
    return points.mean[-1]


def _on_bins(bins: Sequence[Bin], value: float) -> float | None:
    """Return where a length stands on the axis of the bins (logarithmic inside a bin), None when outside."""
    for at, each in enumerate(bins):
        end = bins[at + 1].low if at + 1 < len(bins) else max(each.high, each.low + 1)
        if each.low <= value <= end:
            return at + (math.log(value / each.low) / math.log(end / each.low) if each.low > 0 else value / end)
    return None


def _bounds(bins: Sequence[Bin], at: int) -> str:
    """Return the lengths of a bin in words, whether the file counts its upper bound in or not."""
    low, high = bins[at].low, bins[at].high
    if any(left.high == right.low for left, right in pairwise(bins)):
        high -= 1
    return count(low) if high <= low else f"{count(low)} to {count(high)}"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _digits(values: list[float]) -> Callable[[float], str]:
    """Return a writer of numbers as exact as these values are apart."""
    step = values[1] - values[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return _short if digits == 0 or digits > 5 else lambda value: decimal(value, digits=digits)


def _short(value: float) -> str:
    """Return a number in about five characters: `1,500`, `20k`, `1.5M`, `2e+12`."""
    size = abs(value)
    if 1e4 <= size < 1e9:
        return f"{value / 1e6:.3g}M" if size >= 1e6 else f"{value / 1e3:.3g}k"
    return count(value) if value == round(value) and size < 1e4 else f"{value:.3g}"


def _path(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
