"""The page of a saved run, from top to bottom."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ..evaluate import LOWER_IS_BETTER
from ..files import write_aside
from ..run_folder import RunFolder
from .charts import calibration_chart, frontier_chart, histogram, interval, line_chart, share_bar
from .contents import (
    Comparison,
    Contents,
    Estimate,
    IndexFigures,
    Item,
    Row,
    Sample,
    number,
    read_contents,
    section,
    text,
)
from .markup import Html, count, decimal, join, percent, table, tag
from .style import STYLE

_SPLITS = {"test": "Test: read once, at the end", "validation": "Validation: used to choose the epoch"}
_TERMS = {
    "HR@k": "Hit rate: the share of examples whose held-out item is among the first k.",
    "NDCG@k": "Like the hit rate, but a hit counts less the lower it stands: 1 at the top, 0.63 at place 2.",
    "MRR": "The mean of 1 / place of the held-out item.",
    "Recall@k": "The share of the held-out items that are among the first k.",
    "Coverage@k": "The share of all items that are among the first k of at least one example.",
    "AUC": "Of all pairs of a yes and a no, the share in which the yes has the larger probability.",
    "Grouped AUC": "The mean of the AUC of each user who has both, by the number of their samples.",
    "Log loss": "The mean of −ln of the probability given to what came true. Less is better.",
    "NE": "Log loss over the entropy of how often yes comes true in these samples; 1 says no more than that rate.",
    "NE training": "The same, over the entropy of how often yes came true in training.",
    "Calibration": "The sum of the probabilities over how often yes came true: 1 is right on the whole.",
    "Verdict": "Better or worse when the interval of the difference excludes zero, otherwise unclear.",
}
_SHORT = {"hr", "ndcg", "mrr", "map", "auc", "ne"}  # words that are written large
_OPEN_SAMPLES = 2
_SHOWN_CURVES = 3
_HEADLINES = ("ndcg", "hr", "mrr", "auc", "ne", "log_loss")
_MOST_TILES = 3  # of metrics


def write_report(run: Path) -> Path:
    """Write report.html into the saved run at `run`, whole or not at all, and return its path.

    Metrics and log may be missing, in part or whole: the page says so. Raises `InvalidRun` when the folder is
    no saved run or a file in it is damaged.
    """
    contents = read_contents(Path(run))
    path = RunFolder(run).report_path
    page = _page(contents)
    with write_aside(path) as partial:
        # A title may hold half a surrogate pair, which JSON can say and UTF-8 cannot.
        partial.write_text(page, encoding="utf-8", errors="replace")
    return path


def _page(contents: Contents) -> str:
    title = f"{contents.model} on {contents.data}" if contents.data else contents.model
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Nothing is loaded and nothing runs, whatever a title or an id may hold.
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        tag("title", f"{title} · Serrate"),
        tag("style", Html(STYLE)),
    )
    body = tag(
        "main",
        _header(contents, title),
        _warnings(contents),
        _tiles(contents),
        _results(contents),
        _training(contents),
        _data(contents),
        _samples(contents),
        _indexes(contents),
        _settings(contents),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _header(contents: Contents, title: str) -> Html:
    config, start = contents.config, contents.log.start
    date = datetime.fromtimestamp(contents.written, UTC).date().isoformat()
    facts = {
        "Date": tag("time", date, datetime=date),
        "Serrate": config.get("serrate_version"),
        "torch": text(start, "torch") or text(section(config, "versions"), "torch"),
        "Device": text(start, "device"),
        "Parameters": count(parameters) if (parameters := number(start.get("parameters"))) else None,
        "Seed": config.get("seed"),
    }
    return tag("header", tag("p", "Serrate run", class_="kicker"), tag("h1", tag("bdi", title)), _facts(facts))


def _warnings(contents: Contents) -> Html | None:
    warnings = list(contents.metrics.warnings)
    log = contents.log
    if log.not_finite:
        warnings.append(f"The loss was not a finite number in {count(log.not_finite)} logged steps.")
    if log.loss.x and not log.end:
        warnings.append("The log has no end: training was stopped, or is still going.")
    if not warnings:
        return None
    return tag(
        "aside",
        tag("h2", "Warning" if len(warnings) == 1 else "Warnings"),
        tag("ul", [tag("li", warning) for warning in warnings]),
        class_="warning",
        aria_label="Warnings",
    )


def _tiles(contents: Contents) -> Html | None:
    tiles: list[Html] = []
    split = next(iter(_splits(contents)), None)
    own = next((row for row in contents.metrics.rows if row.split == split and row.model == contents.model), None)
    for family in _HEADLINES:
        name = next((name for name in own.metrics if _family(name) == family), None) if own else None
        if own is None or name is None or len(tiles) == _MOST_TILES:
            continue
        estimate = own.metrics[name]
        rivals = [
            (value, row.model)
            for row in contents.metrics.rows
            if row.split == split and row is not own and (value := _value(row, name)) is not None
        ]
        best = min(rivals, key=lambda rival, name=name: _badness(name, rival[0]), default=None)
        tiles.append(
            _tile(
                f"{_metric(name)}, {split}",
                decimal(estimate.value),
                _bounds(estimate.low, estimate.high),
                f"best baseline {decimal(best[0])} ({best[1]})" if best else None,
            )
        )
    if contents.metrics.lengths.padding_avoided is not None:
        tiles.append(_tile("Padding avoided", percent(contents.metrics.lengths.padding_avoided), "of a padded batch"))
    if contents.log.speed.y:
        tiles.append(_tile("Training speed", count(median(contents.log.speed.y)), "events a second (median)"))
    return tag("dl", tiles, class_="tiles") if tiles else None


def _results(contents: Contents) -> Html:
    if not contents.metrics.rows:
        return _section("Results", "No metrics yet: this run has not been evaluated.")
    settings = section(contents.config, "evaluate")
    confidence, resamples = settings.get("confidence"), settings.get("resamples")
    intervals = f"{percent(confidence)} intervals" if isinstance(confidence, float) else "confidence intervals"
    drawn = f" ({count(resamples)} resamples)" if isinstance(resamples, int) else ""
    return _section(
        "Results",
        f"{'Probabilities of samples' if contents.metrics.calibration else 'Every item is ranked'}. "
        f"The small figures are {intervals}, by bootstrap over users{drawn}. "
        "The best of a line is bold.",
        [_metric_table(contents, split) for split in _splits(contents)],
        [_comparison_table(contents, split) for split in dict.fromkeys(c.split for c in contents.metrics.comparisons)],
        tag(
            "details",
            tag("summary", "How to read these figures"),
            tag("div", _terms(contents), class_="inside"),
        ),
        _calibration(contents),
    )


def _calibration(contents: Contents) -> Html | None:
    figures = [
        _figure(title, calibration_chart(f"calibration-{at}", each.bins, title=title))
        for at, each in enumerate(contents.metrics.calibration)
        for title in (f"Calibration of {each.task}, test",)
        if each.bins
    ]
    return tag("div", figures, class_="charts") if figures else None


def _metric_table(contents: Contents, split: str) -> Html:
    rows = [row for row in contents.metrics.rows if row.split == split]
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    body = []
    for name in names:
        held = [value for row in rows if (value := _value(row, name)) is not None]
        best = min(held, key=lambda value, name=name: _badness(name, value), default=None)
        first = best if len(rows) > 1 else None  # alone is not best
        cells = [_cell(row.metrics.get(name, Estimate()), best=first) for row in rows]
        body.append([_metric(name), *cells])
    examples = contents.metrics.examples
    examples = examples.get(split) if isinstance(examples, dict) else examples
    total = f" · {count(examples)} examples" if isinstance(examples, int) else ""
    return table(["Metric", *(row.model for row in rows)], body, _SPLITS.get(split, split.capitalize()) + total)


def _comparison_table(contents: Contents, split: str) -> Html:
    comparisons = [each for each in contents.metrics.comparisons if each.split == split]
    body = []
    for metric in dict.fromkeys(each.metric for each in comparisons):
        group = [each for each in comparisons if each.metric == metric]
        bounds = [bound for each in group for bound in (each.value, each.low, each.high) if bound is not None]
        low, high = min(bounds, default=0.0), max(bounds, default=1.0)
        for each in group:
            word, kind = _verdict(each)
            body.append(
                [
                    [_metric(metric), tag("small", f"against {each.baseline}")],
                    _cell(each, sign=True),
                    tag("td", word, class_=f"text {kind}"),
                    tag("td", interval(each, low, high), class_=f"plot {kind}"),
                ]
            )
    caption = f"{contents.model} less each baseline, the same examples in pairs · {split}"
    left = [tag("th", name, scope="col", class_="text") for name in ("Verdict", "Interval (dashed: zero)")]
    return table(["Metric", "Difference", *left], body, caption)


def _training(contents: Contents) -> Html:
    log = contents.log
    if not log.loss.x and not log.validation:
        return _section("Training", "The log holds no steps and no validation.")
    figures: list[Html] = []
    if log.loss.x:
        chart = line_chart(
            "loss",
            log.loss,
            x_label="step",
            y_label="Training loss",
            mark=log.chosen_step,
            mark_label="chosen",
        )
        figures.append(_figure("Training loss", chart))
    shown = _validation_shown(contents)
    for at, name in enumerate(shown):
        chart = line_chart(
            f"validation-{at}",
            log.validation[name],
            x_label="epoch",
            y_label=f"Validation {_metric(name)}",
            mark=log.chosen_epoch,
            mark_label="chosen",
        )
        figures.append(_figure(f"Validation {_metric(name)}", chart))
    steps = number(log.end.get("step")) or (log.loss.x[-1] if log.loss.x else None)
    said = [f"{count(steps)} steps" if steps else None]
    if log.chosen_epoch is not None:
        said.append(f"epoch {count(log.chosen_epoch)} chosen on validation {_metric(shown[0]) if shown else ''}")
    said.append("stopped early, as validation no longer improved" if log.end.get("stopped_early") else None)
    if more := [_metric(name) for name in log.validation if name not in shown]:
        said.append(f"also in log.jsonl: {', '.join(more)}")
    return _section("Training", " · ".join(filter(None, said)), tag("div", figures, class_="charts"))


def _validation_shown(contents: Contents) -> list[str]:
    """Return the metric that chose the epoch, then the first of each other family of `_HEADLINES`; or whatever is."""
    measured = contents.log.validation
    monitor = text(section(contents.config, "train"), "monitor")
    shown = [monitor] if monitor in measured else []
    for family in _HEADLINES:
        if not any(_family(name) == family for name in shown):
            shown += [name for name in measured if _family(name) == family][:1]
    return (shown or list(measured))[:_SHOWN_CURVES]


def _data(contents: Contents) -> Html:
    lengths = contents.metrics.lengths
    panels: list[Html] = []
    if lengths.histogram:
        chart = histogram("lengths", lengths.histogram, lengths.mean, title="Users by length of their history")
        panels.append(_figure("Users by length of their history", chart))
    beside: list[object] = []
    if lengths.padding_avoided is not None:
        share = lengths.padding_avoided
        beside += [
            tag("h3", "Padding avoided"),
            tag("p", percent(share), class_="big"),
            share_bar("padding", share, title="Events and padding in a padded batch"),
            tag(
                "p",
                "The share of a batch that would hold nothing if its histories were padded to the longest. "
                "Here no such cell exists.",
            ),
        ]
    facts = {
        key.removeprefix("num_").replace("_", " ").capitalize(): f"{value:,.{0 if value % 1 == 0 else 2}f}"
        for key, held in section(contents.config, "dataset").items()
        if key != "format_version" and (value := number(held))  # zeros say nothing
    }
    if lengths.mean is not None:
        facts["Mean length"] = decimal(lengths.mean, digits=1)
    if lengths.longest is not None:
        facts["Longest"] = count(lengths.longest)
    if facts:
        beside.append(_facts(facts))
    if beside:
        panels.append(tag("div", beside, class_="panel"))
    if not panels:
        return _section("Data", "This run holds no figures about its data.")
    return _section("Data", None, tag("div", panels, class_="charts"))


def _samples(contents: Contents) -> Html | None:
    samples = contents.metrics.samples
    if not samples and contents.metrics.calibration:
        return None
    if not samples:
        return _section("Examples", "This run holds no example histories.")
    return _section(
        "Examples",
        "Histories, what was recommended after them, and what came.",
        [_sample(sample, opened=at < _OPEN_SAMPLES) for at, sample in enumerate(samples)],
    )


def _indexes(contents: Contents) -> Html | None:
    if not contents.indexes:
        return None
    panels: list[Html] = []
    for k in sorted({row.k for row in contents.indexes}):
        by_name: dict[str, list[IndexFigures]] = {}
        for row in sorted(contents.indexes, key=lambda row: row.batch):
            if row.k == k:
                by_name.setdefault(row.index, []).append(row)
        title = f"Recall and milliseconds, the best {count(k)}"
        panels.append(_figure(title, frontier_chart(f"indexes-{k}", by_name, title=title)))
        lines = [[name, row.kind, count(row.batch), f"{row.milliseconds:.3g}", percent(row.recall), percent(row.share),
                  percent(row.certified)] for name, rows in by_name.items() for row in rows]
        head = ["Index", "Kind", "Queries", "Milliseconds", "Recall", "Scored", "Certified"]
        panels.append(table(head, lines, f"Indexes, the best {count(k)}"))
    said = ("Recall: the share of the exact answer that an index finds. Scored: the share of the items that the "
            "similarity scored for it. Certified: the share of the answers known to be exact.")
    return _section("Indexes", said, tag("div", panels, class_="charts"))


def _sample(sample: Sample, *, opened: bool) -> Html:
    truth = {item.id for item in sample.truth}
    places = [place for place, item in enumerate(sample.recommended, start=1) if item.id in truth]
    verdict = None
    if places:
        verdict = tag("span", f"✓ hit at place {places[0]}", class_="verdict better")
    elif truth and sample.recommended:
        verdict = tag("span", f"not among the first {len(sample.recommended)}", class_="verdict unclear")
    recommended = [
        tag(
            "li",
            tag("bdi", _title(item)),
            tag("span", "✓ came", class_="came") if item.id in truth else None,
            tag("span", decimal(item.score, digits=2), class_="score") if item.score is not None else None,
            class_="hit" if item.id in truth else None,
        )
        for item in sample.recommended
    ]
    came = [tag("li", tag("bdi", _title(item))) for item in sample.truth]
    history = [tag("li", tag("bdi", _title(item))) for item in sample.history]
    return tag(
        "details",
        tag("summary", tag("b", "User ", tag("bdi", "–" if sample.user is None else sample.user)), verdict),
        tag(
            "div",
            tag(
                "div",
                tag("h3", "History, newest last"),
                tag("ol", history, class_="history") if history else tag("p", "empty"),
                tag("div", tag("h3", "What came"), tag("ul", came, class_="history"), class_="truth") if came else None,
            ),
            tag(
                "div",
                tag("h3", "Recommended"),
                tag("ol", recommended, class_="recommended") if recommended else tag("p", "nothing"),
            ),
            class_="inside sample",
        ),
        open="" if opened else None,
    )


def _settings(contents: Contents) -> Html:
    rows = [[name, value] for name, value in _flat(contents.config)]
    return _section(
        "Settings",
        None,
        tag(
            "details",
            tag("summary", "All settings of this run"),
            tag("div", table(["Setting", "Value"], rows, "As in config.json"), class_="inside settings"),
        ),
    )


def _section(title: str, lead: str | None, *children: object) -> Html:
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, children)


def _figure(title: str, chart: Html) -> Html:
    return tag("figure", tag("figcaption", title), chart, class_="panel")


def _facts(facts: dict[str, Any]) -> Html:
    held = ((name, value) for name, value in facts.items() if value is not None)
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in held], class_="facts")


def _tile(name: str, figure: str, *notes: str | None) -> Html:
    return tag(
        "div",
        tag("dt", name),
        tag("dd", figure, class_="figure"),
        [tag("dd", note) for note in notes if note],
    )


def _terms(contents: Contents) -> Html:
    there = {_metric(_family(name)).lower() for row in contents.metrics.rows for name in row.metrics} | {"verdict"}
    told = {term: said for term, said in _TERMS.items() if term.partition("@")[0].lower() in there}
    return tag("dl", join([(tag("dt", term), tag("dd", said)) for term, said in told.items()]), class_="terms")


def _cell(estimate: Estimate, *, best: float | None = None, sign: bool = False) -> Html:
    """Return the cell of a value over its interval, bold when it is the best."""
    bounds = _bounds(estimate.low, estimate.high, sign=sign)
    return tag(
        "td",
        decimal(estimate.value, sign=sign),
        tag("small", bounds) if bounds else None,
        class_="best" if best is not None and estimate.value == best else None,
    )


def _splits(contents: Contents) -> list[str]:
    """Return the splits that have metrics, test first."""
    found = dict.fromkeys(row.split for row in contents.metrics.rows)
    return sorted(found, key=lambda split: split != "test")


def _value(row: Row, metric: str) -> float | None:
    return row.metrics[metric].value if metric in row.metrics else None


def _verdict(comparison: Comparison) -> tuple[str, str]:
    """Return what the interval says, in words and as a class of the style sheet."""
    if comparison.low is None or comparison.high is None:
        return "–", "unclear"
    if comparison.low <= 0 <= comparison.high:
        return "unclear", "unclear"
    word = "better" if (comparison.low > 0) != (_family(comparison.metric) in LOWER_IS_BETTER) else "worse"
    return word, word


def _badness(metric: str, value: float) -> float:
    """Return a number that is the smaller, the better a value of a metric is."""
    if _family(metric) == "calibration":
        return abs(value - 1)
    return value if _family(metric) in LOWER_IS_BETTER else -value


def _family(metric: str) -> str:
    """Return the metric without its cutoff and without the task that it is of."""
    return metric.partition("@")[0].rpartition(".")[2]


def _metric(name: str) -> str:
    before, at, cutoff = name.partition("@")
    task, dot, family = before.rpartition(".")
    words = [word.upper() if word in _SHORT else word for word in family.split("_")]
    title = " ".join(words)
    return task + (dot and ": ") + title[:1].upper() + title[1:] + at + cutoff


def _bounds(low: float | None, high: float | None, *, sign: bool = False) -> str | None:
    if low is None or high is None:
        return None
    return f"{decimal(low, sign=sign)} to {decimal(high, sign=sign)}"


def _title(item: Item) -> str:
    return item.title or str(item.id)


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
