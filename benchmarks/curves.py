"""Speed and memory of attention over fill rates: a table and a chart a maximum length, from the rows of figures."""

import math
from collections.abc import Callable

from serrate.ops.attention.workloads import CURVES, FILLS, on_curve
from serrate.ops.figures import TIMES, Found, Row, origin, table, written
from serrate.report.markup import Html, tag

LINES = {"triton": ("ours", "#0b6e4f"), "padded flash": ("dense flash", "#c77700"), "dense": ("dense eager", "#8a2be2")}
BOTH, MEMORY = TIMES[1], "peak_mib"
# what the paper says of its kernel: against which peer, of which figure, how many times at most, in its words
CLAIMS = [("dense", BOTH, 9.0, "9×"), ("dense", MEMORY, 22.0, "22×"),
          ("padded flash", BOTH, 3.0, "3×"), ("padded flash", MEMORY, 1 / (1 - 0.53), "53 %")]
PANELS = {BOTH: "forward and backward, ms", MEMORY: "extra memory at its peak, MiB"}

WIDTH, HEIGHT, PANEL = 920, 320, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 425, 84, 270
STYLE = """
svg { font: 12px system-ui, sans-serif; fill: #333 }
.grid { stroke: #ddd } .line { fill: none; stroke-width: 2 } .passed { fill: #fff; stroke-width: 2 }
.title { font-weight: 600 } .mark { stroke: #0b6e4f; stroke-dasharray: 3 3 }
"""


def passes(found: Found, longest: int, claim: tuple[str, str, float, str]) -> list[int]:
    """Return the fill rates, in per cent, at which ours is as many times ahead as the paper says."""
    peer, metric, factor, _ = claim
    return [fill for fill in FILLS if (ahead(found, longest, fill, peer, metric) or 0.0) >= factor]


def ahead(found: Found, longest: int, fill: int, peer: str, metric: str) -> float | None:
    """Return how many times what ours takes a peer takes."""
    name = on_curve(longest, fill).name
    theirs, own = found.value(name, peer, metric), found.value(name, "triton", metric)
    return None if theirs is None or own is None else theirs / own


def section(rows: list[Row]) -> str:
    """Return the tables of all maximum lengths, each beside its chart, and where the figures come from."""
    wanted = {on_curve(longest, fill).name for longest in CURVES for fill in FILLS}
    rows = [row for row in rows if row["workload"] in wanted]
    if not rows:
        return "Not measured yet."
    found = Found(rows)
    parts = [f"### Longest {longest}\n\n![Time and memory over fill rates]({chart_name(longest)})\n\n"
             + _table(found, longest) for longest in CURVES if _measured(found, longest)]
    return "\n\n".join([*parts, origin(rows)])


def charts(rows: list[Row]) -> dict[str, str]:
    """Return the charts by file name, none for what is not measured."""
    found = Found(rows)
    return {chart_name(longest): _chart(found, longest) for longest in CURVES if _measured(found, longest)}


def chart_name(longest: int) -> str:
    """Return the file of a chart, beside the page."""
    return f"attention-{longest}.svg"


def _measured(found: Found, longest: int) -> list[int]:
    return [fill for fill in FILLS if found.value(on_curve(longest, fill).name, "triton", BOTH) is not None]


def _table(found: Found, longest: int) -> str:
    """A line a fill rate; ratios in bold where they reach the paper's."""
    def ratio(fill: int, claim: tuple[str, str, float, str]) -> str:
        value = ahead(found, longest, fill, claim[0], claim[1])
        if value is None:
            return "–"
        return f"**{value:.1f}×**" if fill in passes(found, longest, claim) else f"{value:.1f}×"

    head = ["fill", *(f"{label}: ms, MiB" for label, _ in LINES.values()),
            *(f"{'time' if metric == BOTH else 'memory'} of {LINES[peer][0]} / ours (paper {words})"
              for peer, metric, _, words in CLAIMS)]
    body = []
    for fill in _measured(found, longest):
        name = on_curve(longest, fill).name
        pairs = [(found.value(name, each, BOTH), found.value(name, each, MEMORY)) for each in LINES]
        cells = ["–" if time is None or mib is None else f"{written(time)}, {written(mib)}" for time, mib in pairs]
        body.append([f"{fill} %", *cells, *(ratio(fill, claim) for claim in CLAIMS)])
    return table(head, body)


def _chart(found: Found, longest: int) -> str:
    """Two panels over fill rates, both with a logarithmic axis: time and memory."""
    panels = [tag("g", _panel(found, longest, metric), transform=f"translate({at * PANEL + 10 * at} 0)")
              for at, metric in enumerate(PANELS)]
    told = "; ".join(f"{words} of {LINES[claim[0]][0]} at {_percents(passes(found, longest, claim))}"
                     for claim in CLAIMS for words in [claim[3]])
    return str(tag(
        "svg", tag("title", f"Attention over fill rates, rows up to {longest} events"),
        tag("desc", f"Ours beside dense attention over padding. The paper's ratios are reached: {told}."),
        tag("style", Html(STYLE)), tag("rect", width=WIDTH, height=HEIGHT, style="fill: #fff"), panels,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")) + "\n"


def _percents(fills: list[int]) -> str:
    return ", ".join(f"{fill} %" for fill in fills) or "no fill rate"


def _panel(found: Found, longest: int, metric: str) -> list[Html]:
    fills = _measured(found, longest)
    names = {fill: on_curve(longest, fill).name for fill in fills}
    lines = {each: [(fill, value) for fill, name in names.items()
                    if (value := found.value(name, each, metric)) is not None] for each in LINES}
    values = [value for line in lines.values() for _, value in line]
    low, high = (edge(math.log10(of(values))) for edge, of in ((math.floor, min), (math.ceil, max)))
    high = max(high, low + 1)

    def up(value: float) -> float:
        return BOTTOM - (math.log10(value) - low) / (high - low) * (BOTTOM - TOP)

    drawn = [tag("text", PANELS[metric], class_="title", x=LEFT, y=18)]
    for power in range(low, high + 1):
        drawn += [tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=up(10.0**power), y2=up(10.0**power)),
                  tag("text", f"{10.0**power:,g}", x=LEFT - 8, y=up(10.0**power) + 4, text_anchor="end")]
    drawn += [tag("text", fill, x=_across(fill), y=BOTTOM + 18, text_anchor="middle") for fill in fills]
    drawn.append(tag("text", "fill: events of 100 cells", x=(LEFT + RIGHT) / 2, y=BOTTOM + 40, text_anchor="middle"))
    for at, (each, line) in enumerate(lines.items()):
        label, colour = LINES[each]
        path = " ".join(f"{_across(fill):.1f},{up(value):.1f}" for fill, value in line)
        drawn += [tag("polyline", class_="line", points=path, stroke=colour),
                  tag("text", label, x=LEFT + 100 * at, y=36, style=f"fill: {colour}")]
    return drawn + _marks(found, longest, metric, up)


def _marks(found: Found, longest: int, metric: str, up: Callable[[float], float]) -> list[Html]:
    """Rings on our line wherever a ratio of the paper is reached, a guide at the fullest of them."""
    drawn: list[Html] = []
    for at, claim in enumerate(claim for claim in CLAIMS if claim[1] == metric):
        reached = passes(found, longest, claim)
        label, colour = LINES[claim[0]]
        for fill in reached:
            value = found.value(on_curve(longest, fill).name, "triton", metric)
            assert value is not None
            drawn.append(tag("circle", class_="passed", cx=_across(fill), cy=up(value), r=4 + 3 * at, stroke=colour,
                             style="" if at == 0 else "fill: none"))
        if reached:
            x = _across(reached[-1])
            text = f"paper's {claim[3]} over {label}: up to {reached[-1]} %"
            y = TOP - 28 + 14 * at
            drawn += [tag("line", class_="mark", x1=x, x2=x, y1=y + 4, y2=BOTTOM, style=f"stroke: {colour}"),
                      tag("text", text, x=RIGHT, y=y, text_anchor="end", style=f"fill: {colour}")]
    return drawn


def _across(fill: float) -> float:
    return LEFT + fill / 100 * (RIGHT - LEFT)
