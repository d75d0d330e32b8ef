import json
import os
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from serrate.errors import InvalidRun
from serrate.report import write_report
from serrate.run_folder import RunFolder

MakeRun = Callable[..., Path]
VOID = {"meta", "br"}
SCRIPT = "<script>alert('x')</script>"


class Page(HTMLParser):
    """A page read strictly: every element is closed, in order, and ids are unique."""

    def __init__(self, content: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(content)
        self.close()
        assert self.open == []
        ids = [value for name, value in self.attributes if name == "id"]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def report(run: Path) -> tuple[str, Page]:
    content = write_report(run).read_text(encoding="utf-8")
    return content, Page(content)


def test_the_report_is_one_whole_file_in_the_run(make_run: MakeRun):
    run = make_run()
    path = write_report(run)
    assert path == run / "report.html"
    assert sorted(file.name for file in run.iterdir()) == ["config.json", "log.jsonl", "metrics.json", "report.html"]
    assert path.read_text(encoding="utf-8").startswith('<!DOCTYPE html>\n<html lang="en">')
    assert path.stat().st_size < 80_000


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun):
    run = make_run()
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_nothing_is_loaded_and_nothing_runs(make_run: MakeRun):
    content, page = report(make_run())
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(page.tags)
    assert not {"src", "href", "style", "action"} & {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name, _ in page.attributes)
    for outside in ("http:", "https:", "//", "url(", "@import", "@font-face", "xmlns"):
        assert outside not in content
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_it_says_what_the_run_found(make_run: MakeRun, sample):
    _, page = report(make_run())
    lines = page.text.split("\n")
    for value in [
        "transformer on ml-1m",
        "0.1.0",
        "892,288",
        "0.2871",
        "0.2761 to 0.2981",
        "0.1625",
        "best baseline 0.1780 (Markov)",
        "Test: read once, at the end · 6,040 examples",
        "Validation: used to choose the epoch · 6,040 examples",
        "+0.1091",
        "+0.0981 to +0.1201",
        "against Markov",
        "better",
        "unclear",
        "31 %",
        "1,000,209",
        "mean 165.6",
        "Validation NDCG@10",
        "chosen",
        "✓ hit at place 10",
        "train.learning_rate",
        *sample.metrics["warnings"],
    ]:
        assert value in lines, value
    assert "95 % intervals, by bootstrap over users (1,000 resamples)" in page.text
    assert page.tags.count("details") == 12  # ten samples, the terms, the settings
    assert page.tags.index("aside") < page.tags.index("table")  # warnings come before results


def test_the_date_is_when_the_metrics_were_written(make_run: MakeRun):
    run = make_run()
    os.utime(run / "metrics.json", (86400.0, 86400.0))
    assert '<time datetime="1970-01-02">1970-01-02</time>' in report(run)[0]


def test_the_best_of_each_line_is_bold_once(make_run: MakeRun):
    content, _ = report(make_run())
    assert content.count('<td class="best">') == 10  # five metrics, two splits


def test_the_curve_that_chose_comes_first_and_families_once(make_run: MakeRun, sample):
    sample.config["train"]["monitor"] = "hr@50"
    _, page = report(make_run(config=sample.config))
    shown = dict.fromkeys(line for line in page.text.split("\n") if line.startswith("Validation "))
    assert list(shown) == ["Validation HR@50", "Validation NDCG@10", "Validation MRR"]
    assert "also in log.jsonl: HR@10" in page.text


def test_a_hit_is_marked_and_a_miss_is_said(make_run: MakeRun, sample):
    item = {"id": "a", "title": "Arrival", "score": 1.5}
    other = {"id": "b", "title": None, "score": None}
    sample.metrics["samples"] = [
        {"user": 1, "history": [item], "recommended": [other, item], "truth": [item]},
        {"user": 2, "history": [item], "recommended": [other], "truth": [item]},
        {"user": 3, "history": [], "recommended": [], "truth": []},
    ]
    content, page = report(make_run(metrics=sample.metrics))
    assert (
        '<li class="hit"><bdi>Arrival</bdi><span class="came">✓ came</span><span class="score">1.50</span></li>'
        in content
    )
    assert "<li><bdi>b</bdi></li>" in content  # the id, where there is no title
    assert "✓ hit at place 2" in page.text
    assert "not among the first 1" in page.text
    assert content.count('class="verdict') == 2


def test_ids_of_two_types_are_not_the_same_item(make_run: MakeRun, sample):
    sample.metrics["samples"] = [{"user": 1, "recommended": [{"id": "7"}], "truth": [{"id": 7}]}]
    assert 'class="hit"' not in report(make_run(metrics=sample.metrics))[0]


def test_every_text_of_the_run_is_escaped(make_run: MakeRun, sample):
    metrics, item = sample.metrics, {"id": SCRIPT, "title": SCRIPT, "score": 1.0}
    metrics["warnings"] = [SCRIPT]
    metrics["samples"] = [{"user": SCRIPT, "history": [item], "recommended": [item], "truth": [item]}]
    for row in metrics["rows"]:
        row["model"] = row["model"] + SCRIPT
        row["split"] = SCRIPT
        row["metrics"] = {SCRIPT: row["metrics"]["mrr"]}
    for each in metrics["comparisons"]:
        each.update(model=SCRIPT, baseline=SCRIPT, metric=SCRIPT)
    config = {**sample.config, "serrate_version": SCRIPT, SCRIPT: SCRIPT, "seed": SCRIPT}
    config["dataset"] = {SCRIPT: 1, "source": SCRIPT}
    log = [
        {"event": "start", "device": SCRIPT},
        {"event": "step", "step": 1, "loss": 1.0},
        {"event": "validation", "epoch": 1, "metrics": {SCRIPT: 0.5}, "best": True},
    ]
    content, page = report(make_run(config=config, metrics=metrics, log=log))
    assert "script" not in page.tags
    assert "<script" not in content.lower()
    assert page.text.count(SCRIPT) > 20


def test_odd_texts_come_through(make_run: MakeRun, sample):
    titles = [
        "千と千尋の神隠し",
        "شهرزاد",
        "a\N{RIGHT-TO-LEFT OVERRIDE}b",
        "x" * 100_000,
        "🎬",
        "line\nbreak",
        "\ud800",
        "",
    ]
    sample.metrics["samples"] = [
        {"user": "é", "history": [{"id": at, "title": title} for at, title in enumerate(titles)]}
    ]
    run = make_run(metrics=sample.metrics)
    content, _ = report(run)
    for title in titles[:6]:
        assert f"<bdi>{title}</bdi>" in content
    assert "<bdi>?</bdi>" in content  # half a surrogate pair has no UTF-8
    assert "<bdi>7</bdi>" in content  # an empty title is none


def test_a_run_that_only_has_settings_has_a_report(make_run: MakeRun):
    _, page = report(make_run(config={}, metrics=..., log=...))
    for said in ("No metrics yet", "no steps and no validation", "no figures about its data", "no example histories"):
        assert said in page.text
    assert "svg" not in page.tags


@pytest.mark.parametrize("part", ["rows", "comparisons", "lengths", "samples", "warnings", "examples"])
def test_each_part_of_the_metrics_may_be_missing(make_run: MakeRun, sample, part: str):
    del sample.metrics[part]
    report(make_run(metrics=sample.metrics))


def test_no_baselines(make_run: MakeRun, sample):
    sample.metrics["rows"] = [row for row in sample.metrics["rows"] if row["model"] == "transformer"]
    sample.metrics["comparisons"] = []
    content, page = report(make_run(metrics=sample.metrics))
    assert "best baseline" not in page.text
    assert 'class="best"' not in content  # alone is not best
    assert "0.2871" in page.text


def test_metrics_that_are_null_or_missing_for_one_model(make_run: MakeRun, sample):
    sample.metrics["rows"] = [
        {"model": "transformer", "metrics": {"hr@10": {"value": 0.5, "low": None, "high": None}}},
        {"model": "popularity", "metrics": {"mrr": {"value": None}}},
    ]
    sample.metrics["comparisons"] = [{"model": "transformer", "baseline": "popularity", "metric": "hr@10"}]
    content, _ = report(make_run(metrics=sample.metrics))
    assert '<tr><th scope="row">HR@10</th><td class="best">0.5000</td><td>–</td></tr>' in content


def estimates(**values: float) -> dict:
    return {name: {"value": value, "low": value - 0.01, "high": value + 0.01} for name, value in values.items()}


def test_a_ranking_run_knows_that_less_of_some_is_better(make_run: MakeRun, sample):
    sample.metrics |= {
        "rows": [{"model": "ranking", "metrics": estimates(auc=0.75, log_loss=0.55, calibration=1.02)},
                 {"model": "base rate", "metrics": estimates(auc=0.5, log_loss=0.69, calibration=1.1)},
                 {"model": "user + item", "metrics": estimates(auc=0.7, log_loss=0.6, calibration=0.95)}],
        "comparisons": [
            {"model": "ranking", "baseline": "base rate", "metric": "auc", "value": 0.25, "low": 0.2, "high": 0.3},
            {"model": "ranking", "baseline": "base rate", "metric": "log_loss", "value": -0.14, "low": -0.2,
             "high": -0.1}],
        "calibration": [{"task": "like", "bins": [{"count": 5, "predicted": 0.2, "observed": 0.1},
                                                  {"count": 5, "predicted": 0.7, "observed": 0.8}]}],
        "samples": []}  # fmt: skip
    content, page = report(make_run(metrics=sample.metrics))
    for name, best in (("AUC", "0.7500"), ("Log loss", "0.5500"), ("Calibration", "1.0200")):
        assert f'<tr><th scope="row">{name}</th><td class="best">{best}' in content
    assert content.count('<td class="text better">better</td>') == 2
    assert "best baseline 0.7000 (user + item)" in page.text
    assert "best baseline 0.6000 (user + item)" in page.text
    assert "Probabilities of samples." in page.text
    assert "Calibration of like, test" in page.text
    assert "Of all pairs of a yes and a no" in page.text
    assert "Every item is ranked" not in page.text
    assert "held-out" not in page.text  # terms of what is not measured
    assert "example histories" not in page.text


def test_metrics_of_several_tasks_name_theirs(make_run: MakeRun, sample):
    sample.metrics["rows"] = [{"model": "ranking", "metrics": estimates(**{"click.auc": 0.7, "buy.ne_training": 0.9})}]
    sample.metrics["comparisons"] = [{"model": "ranking", "baseline": "base rate", "metric": "buy.log_loss",
                                      "value": 0.1, "low": 0.05, "high": 0.2}]
    content, _ = report(make_run(metrics=sample.metrics))
    assert '<th scope="row">click: AUC</th>' in content
    assert '<th scope="row">buy: NE training</th>' in content
    assert '<td class="text worse">worse</td>' in content


def test_a_curve_of_one_point_and_no_validation(make_run: MakeRun):
    content, page = report(make_run(log=[{"event": "step", "step": 1, "loss": 2.5}, {"event": "end"}]))
    assert '<circle class="dot"' in content
    assert "Validation NDCG@10" not in page.text


def test_training_that_did_not_end_and_a_loss_that_is_no_number_are_warned_of(make_run: MakeRun):
    log = [{"event": "step", "step": 1, "loss": 2.5}, {"event": "step", "step": 2, "loss": None}]
    _, page = report(make_run(log=log))
    assert "The log has no end" in page.text
    assert "not a finite number in 1 logged" in page.text


def test_a_log_of_100_000_lines_makes_a_small_page_soon(make_run: MakeRun, sample):
    run = make_run(log=[])
    with (run / "log.jsonl").open("w") as file:
        for step in range(1, 100_001):
            record = {"event": "step", "epoch": 1, "step": step, "loss": 1 / step, "events_per_second": 1e4}
            file.write(json.dumps(record) + "\n")
    start = time.monotonic()
    content, page = report(run)
    assert len(content) < 100_000
    assert "100,000 steps" in page.text
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("file", ["config.json", "metrics.json"])
def test_a_damaged_run_leaves_the_old_report(make_run: MakeRun, file: str):
    run = make_run()
    before = write_report(run).read_bytes()
    (run / file).write_text("{")
    with pytest.raises(InvalidRun, match=file):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".*partial"))


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(InvalidRun, match="nothing there"):
        write_report(tmp_path / "run")


def odd(sample) -> None:
    """Make the sample as wide as it gets: long ids and names, many models and metrics."""
    long = {"id": "i" * 500, "title": None, "score": -1234.5}
    sample.metrics["samples"] = [
        {"user": "u" * 500, "history": [long] * 20, "recommended": [long] * 10, "truth": [long]}
    ]
    sample.metrics["warnings"] = ["w" * 500, "a warning of many words " * 30]
    sample.metrics["rows"] = [
        {"model": f"model-with-a-long-name-{at}", "metrics": {f"hr@{k}": {"value": 0.1} for k in range(20)}}
        for at in range(12)
    ]
    sample.config["dataset"] = {"source": "s" * 300, "n" * 200: 5}
    sample.config["train"]["k" * 200] = "v" * 2000


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["sample", "odd", "bare"])
def test_it_renders_without_complaint_at_every_width(make_run: MakeRun, sample, browser, kind: str):
    if kind == "odd":
        odd(sample)
    bare = {"config": {}, "metrics": ..., "log": ...}
    page = write_report(make_run(**bare if kind == "bare" else vars(sample)))
    for width in (320, 390, 768, 1280):
        browser.open(page, width=width)
        browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert browser.value("innerWidth") == width
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelector('h1').getBoundingClientRect().height") > 20
        charts = browser.value(
            "Array.from(document.querySelectorAll('svg.chart'), c => c.getBoundingClientRect().height)"
        )
        assert len(charts) == (0 if kind == "bare" else 5)
        assert all(height > 100 for height in charts)
        assert browser.complaints() == []
        assert browser.requests() == [page.resolve().as_uri()]


CONTRAST = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
  };
  const low = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = Array.from(element.childNodes).some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ['title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.tagName === 'text' ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(element))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.push([element.tagName, element.className, element.textContent.slice(0, 40), ratio]);
  }
  return low;
})()
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_light_and_dark(make_run: MakeRun, browser, scheme: str):
    browser.open(write_report(make_run()), scheme=scheme)
    browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(250, 250, 248)", "dark": "rgb(19, 21, 25)"}[scheme]
    assert browser.value(CONTRAST) == []


@pytest.mark.browser
def test_a_script_in_a_title_does_not_run(make_run: MakeRun, sample, browser):
    bad = '</title></style></script><img src=x onerror="window.ran=1"><script>window.ran = 1</script>'
    sample.metrics["samples"][0]["user"] = bad
    sample.metrics["samples"][0]["history"][0]["title"] = bad
    sample.config["dataset"]["source"] = bad
    page = write_report(make_run(config=sample.config, metrics=sample.metrics))
    browser.open(page)
    assert browser.value("typeof window.ran") == "undefined"
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]


@pytest.mark.browser
def test_the_browser_does_notice_what_is_wrong(tmp_path: Path, browser):
    """The checks above can fail: a page that complains, loads and overflows is caught."""
    page = tmp_path / "wrong.html"
    page.write_text(
        "<meta name=viewport content='width=device-width'><body style='margin:0'>"
        "<div style='width:900px'>wide</div><img src='missing.png'><script>console.error('x'); throw 1</script>"
    )
    browser.open(page, width=390)
    assert browser.value("document.documentElement.scrollWidth") == 900
    kinds = {each["method"] for each in browser.complaints()}
    assert {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed"} <= kinds
    assert len(browser.requests()) == 2


def test_indexes_that_were_measured_are_drawn_by_how_many_items_they_give(make_run: MakeRun):
    run = make_run()
    rows = [{"index": name, "kind": "component", "k": k, "batch": batch, "milliseconds": batch * 1.5, "recall": 0.97,
             "share": 0.125, "certified": 0.0} for name, k, batch in (("a", 10, 8), ("a", 10, 1), ("b", 100, 1))]
    RunFolder(run).write_index_rows(rows)
    content, page = report(run)
    assert "Recall and milliseconds, the best 10" in page.text
    assert "Recall and milliseconds, the best 100" in page.text
    assert content.index("<td>1.5</td>") < content.index("<td>12</td>")  # by batch
    RunFolder(run).write_index_rows([{"index": "a"}])
    with pytest.raises(InvalidRun, match=r"index\.json: kind: Field required"):
        write_report(run)


def test_a_run_without_indexes_says_nothing_of_them(make_run: MakeRun):
    assert "Indexes" not in report(make_run())[1].text
