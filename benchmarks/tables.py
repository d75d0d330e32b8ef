"""Fills docs/results.md, its charts, and the tables of attention's README from the ledgers beside this file.

    python benchmarks/tables.py            # write
    python benchmarks/tables.py --check    # exit 1 when the pages and the ledgers disagree
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import curves

from serrate.ops.attention import tables as attention
from serrate.ops.figures import TIMES, Found, origin, read, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
ATTENTION = HERE / "attention-h200.json"


def rows(pattern: str) -> list[dict]:
    """Return the rows of all ledgers whose name matches."""
    return [entry for path in sorted(HERE.glob(pattern)) for entry in read(path)]


def quality() -> str:
    """A table a log: recipe (mean over seeds) and baselines, then the paired differences."""
    parts = []
    by_subject: dict[str, list[dict]] = defaultdict(list)
    for entry in rows("quality*.json"):
        by_subject[entry["subject"]].append(entry)
    for subject, found in by_subject.items():
        groups: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
        for entry in found:
            if entry["unit"] != "difference" and not entry["workload"].endswith("validation"):
                groups[entry["implementation"], entry["device"]][entry["metric"]].append(entry)
        body = []
        for (name, device), metrics in groups.items():
            seeds = metrics["hr@10"]
            seconds = [entry["value"] for entry in metrics.get("run_s", [])]
            hit_rate, ndcg = (mean(e["value"] for e in metrics[metric]) for metric in ("hr@10", "ndcg@10"))
            body.append([name, f"**{hit_rate:.4f}**", f"{ndcg:.4f}",
                         " / ".join(f"{entry['value']:.4f}" for entry in seeds) if len(seeds) > 1 else "",
                         f"{mean(seconds):.0f}" if seconds else "", device])
        differences = [f"{e['implementation']}: {e['metric']} {e['value']:+.4f} [{e['low']:+.4f}, {e['high']:+.4f}]"
                       for e in found if e["unit"] == "difference" and e["seed"] == min(
                           row["seed"] for row in found if row["unit"] == "difference" and row["device"] == e["device"]
                           and row["implementation"] == e["implementation"])]
        split = found[0]["workload"].partition(",")[0]
        parts.append(f"### {subject.removeprefix('quality ')}, {split}\n\n" + table(
            ["", "test HR@10", "test NDCG@10", "HR@10 by seed", "seconds a run", "device"], body)
            + "\n\nPaired differences of the first seed, bootstrap by user, 95 %:\n\n"
            + "\n".join(f"- {line}" for line in dict.fromkeys(differences)) + "\n\n" + origin(found))
    return "\n\n".join(parts)


def prepare() -> str:
    """Time, rate and memory of preparing a log."""
    found = rows("prepare*.json")
    cells: dict[tuple, dict[str, float]] = defaultdict(dict)
    for entry in found:
        cells[entry["workload"], entry["implementation"]][entry["metric"]] = entry["value"]
    body = [[workload, name, f"{values['prepare_s']:.1f}", f"{values['events_per_second'] / 1e6:.2f}",
             f"{values['peak_mib']:,.0f}"] for (workload, name), values in cells.items()]
    head = ["workload", "", "seconds", "million events/s", "peak MiB of the process tree"]
    return table(head, body) + "\n\n" + origin(found)


def throughput() -> str:
    """Events a second of training, and the ratio to jagged."""
    found = rows("throughput*.json")
    ours = {(e["workload"], e["device"]): e["value"] for e in found if e["implementation"] == "jagged"}
    body = [[e["workload"], e["implementation"], f"{e['value']:,.0f}",
             f"{ours[e['workload'], e['device']] / e['value']:.2f}×", e["device"]] for e in found]
    return table(["log", "batches", "events/s", "jagged is", "device"], body) + "\n\n" + origin(found)


def hstu() -> str:
    """The HSTU layer beside plain PyTorch, training steps beside Transformers over lengths, cached histories."""
    measured = rows("hstu*.json")
    of = {subject: [entry for entry in measured if entry["subject"] == f"hstu {subject}"]
          for subject in ("layer", "training", "candidates", "growth")}
    parts = [make(of[subject]) for subject, make in (
        ("layer", hstu_layer), ("training", hstu_training), ("candidates", hstu_candidates), ("growth", hstu_growth))
        if of[subject]]
    return "\n\n".join([*parts, origin(measured)]) if parts else "Not measured yet."


def workloads(found: list[dict]) -> list[str]:
    """Return the workloads of these rows, in their order."""
    return list(dict.fromkeys(entry["workload"] for entry in found))


def hstu_layer(found: list[dict]) -> str:
    """Time and memory of forward and backward of one layer."""
    of = Found(found)
    names = ("serrate", "serrate, recompute", "eager", "compiled")
    body = [[workload, of.cell(workload, "batch", ["events"]),
             *(of.cell(workload, name, TIMES) for name in names),
             *(of.cell(workload, name, ["peak_mib"]) for name in names)] for workload in workloads(found)]
    return "### The layer: ms forward / forward and backward, peak MiB\n\n" + table(
        ["", "events", *names, *(f"{name}, MiB" for name in names)], body)


def hstu_training(found: list[dict]) -> str:
    """Time of a step, and how many times as long a Transformer takes: over whole and over thinned histories."""
    of = Found(found)
    series = ("hstu", "hstu biased", "hstu, alpha 1.6", "hstu biased, alpha 1.6")
    transformers = ("transformer varlen", "transformer padded")
    head = ["", "events", "at alpha 1.6", *(f"{name}, ms" for name in (*series, *transformers)),
            *(f"{peer.removeprefix('transformer ')} / {name}" for peer in transformers for name in series)]
    body = []
    for workload in workloads(found):
        times = {name: of.value(workload, name, "step_ms") for name in (*series, *transformers)}
        ratios = [(times[peer], times[name]) for peer in transformers for name in series]
        body.append([workload, *(of.cell(workload, name, ["events"]) for name in ("batch", "batch, alpha 1.6")),
                     *(of.cell(workload, name, ["step_ms"]) for name in times),
                     *("–" if theirs is None or not own else f"{theirs / own:.1f}×" for theirs, own in ratios)])
    return "### Training steps beside Transformers of the same width, heads and depth\n\n" + table(head, body)


def hstu_candidates(found: list[dict]) -> str:
    """Candidates a second after one history, and how many times as many as one by one."""
    of, metric = Found(found), "candidates_per_second"
    body = []
    for workload in workloads(found):
        alone = of.value(workload, "hstu one by one", metric)
        for name in of.peers:
            rate = of.value(workload, name, metric)
            body.append([workload, name, of.cell(workload, name, [metric]),
                         "–" if rate is None or not alone else f"{rate / alone:.1f}×"])
    return "### Candidates a second after one history\n\n" + table(["", "", "candidates/s", "of one by one"], body)


def hstu_growth(found: list[dict]) -> str:
    """Time of new events behind a cached history, and with the whole history computed anew."""
    of = Found(found)
    body = [[workload, *(of.cell(workload, f"hstu {way}", ["growth_ms"]) for way in ("anew", "extended"))]
            for workload in workloads(found)]
    return "### New events of one history: ms\n\n" + table(["", "anew", "behind cached keys"], body)


def stochastic_length() -> str:
    """Sparsity over alpha and the longest history, ours / the paper's, and the share of the events that is removed."""
    found = rows("stochastic-length.json")
    cells = {(e["workload"], e["implementation"], e["metric"]): e["value"] for e in found}
    longest, alphas = (list(dict.fromkeys(e["workload"].split(", ")[part].split()[1] for e in found))
                       for part in (0, 1))

    def cell(n: str, alpha: str) -> str:
        ours, paper, removed = (cells[f"longest {n}, alpha {alpha}", name, metric] for name, metric in (
            ("serrate", "sparsity"), ("paper, quoted", "sparsity"), ("serrate", "events_removed")))
        return f"{ours:.1f} / {paper:.1f} ({removed:.1f})"

    body = [[alpha, *(cell(n, alpha) for n in longest)] for alpha in alphas]
    return table(["alpha", *longest], body) + "\n\n" + origin(found)


def streaming() -> str:
    """Hit rates of the models on the stream, mean over seeds, beside what can be hit."""
    found = rows("streaming*.json")
    if not found:
        return "Not measured yet."
    groups: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in found:
        groups[entry["workload"], entry["implementation"], entry["device"]][entry["metric"]].append(entry["value"])
    body = [[workload, name, *(f"{mean(values[metric]):.4f}" for metric in ("hr@10", "hr@50")),
             str(len(values["hr@10"])), f"{mean(values['run_s']):.0f}" if "run_s" in values else "", device]
            for (workload, name, device), values in groups.items()]
    return table(["stream", "", "HR@10", "HR@50", "seeds", "seconds a run", "device"], body) + "\n\n" + origin(found)


def ranking() -> str:
    """What a rating will be told before it is given, by the last one of each user."""
    return probabilities("ranking*.json", {"auc": "AUC"})


def clicks() -> str:
    """What becomes of what people are shown, by ranking models."""
    return probabilities("clicks*.json", {"auc": "AUC", "grouped_auc": "AUC by user"})


def probabilities(pattern: str, ordered: dict[str, str]) -> str:
    """Metrics of probabilities, means over seeds, then the paired differences; `ordered`: those of order, to name."""
    found = rows(pattern)
    if not found:
        return "Not measured yet."
    columns = {**ordered, "log_loss": "log loss", "ne": "normalised entropy", "calibration": "calibration"}
    groups: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in found:
        if entry["unit"] != "difference":
            key = entry["subject"].partition(" ")[2], entry["implementation"], entry["device"]
            groups[key][entry["metric"]].append(entry["value"])
    timed = any("run_s" in values for values in groups.values())
    body = [[*key[:2], *(f"{mean(values[metric]):.4f}" for metric in columns), str(len(values["auc"])),
             *([f"{mean(values['run_s']):.0f}" if "run_s" in values else ""] if timed else []), key[2]]
            for key, values in groups.items()]
    seeds = {id(e): "" if e["implementation"].endswith(" seeds") else f", seed {e['seed']}" for e in found}
    differences = [f"- {e['subject'].partition(' ')[2]}, {e['implementation']}{seeds[id(e)]}, "
                   f"{columns[e['metric']]}: {e['value']:+.4f} [{e['low']:+.4f}, {e['high']:+.4f}]"
                   for e in found if e["unit"] == "difference"]
    head = ["log", "", *columns.values(), "seeds", *(["seconds a run"] if timed else []), "device"]
    return table(head, body) + "\n\nPaired differences, bootstrap by user, 95 %:\n\n" + \
        "\n".join(differences) + "\n\n" + origin(found)


def production() -> str:
    """The production ranking model beside padded ones, candidates that share a history, the kinds of kernels."""
    found = rows("production*.json")
    if not found:
        return "Not measured yet."
    by_subject: dict[str, list[dict]] = defaultdict(list)
    for entry in found:
        by_subject[entry["subject"]].append(entry)
    shown = {
        "ranking model": {"training_qps": "training, requests/s", "training_ms": "ms a step",
                          "training_peak_mib": "MiB", "inference_qps": "inference, requests/s",
                          "inference_ms": "ms", "inference_peak_mib": "MiB "},
        "ranking candidates": {"inference_ms": "ms", "graph_inference_ms": "ms, graph replayed"},
        "ranking parts": {metric: metric.removesuffix("_ms") for metric in dict.fromkeys(
            entry["metric"] for entry in by_subject["ranking parts"])}}
    parts = []
    for subject, columns in shown.items():
        figures, body = Found(by_subject[subject]), []
        for workload, name in dict.fromkeys((entry["workload"], entry["implementation"])
                                            for entry in by_subject[subject]):
            if name != "batch":
                body.append([workload, name, *(figures.cell(workload, name, [metric]) for metric in columns)])
        parts.append(table(["", "", *columns.values()], body))
    return "\n\n".join([*parts, origin(found)])


def indexes() -> str:
    """Milliseconds of a search and recall of the exact answer, an index a line."""
    found = rows("index*.json")
    if not found:
        return "Not measured yet."
    every = {"build_s": "build, s", "batch_1_ms": "1 query, ms",
             **{f"batch_{n}_ms": f"{n} queries, ms" for n in (8, 32, 128)},
             "recall": "recall", "scored": "share scored", "certified": "share certified",
             "index_gib": "index, GiB", "peak_gib": "peak of a search, GiB"}
    parts = []
    for workload, device in dict.fromkeys((entry["workload"], entry["device"]) for entry in found):
        own = [entry for entry in found if (entry["workload"], entry["device"]) == (workload, device)]
        figures, measured = Found(own), {entry["metric"] for entry in own}
        names = dict.fromkeys(entry["implementation"] for entry in own)
        shown = {metric: head for metric, head in every.items() if metric in measured}
        body = [[name, *(figures.cell(workload, name, [metric]) for metric in shown)] for name in names]
        parts.append(f"{workload}; {device}:\n\n" + table(["", *shown.values()], body))
    return "\n\n".join([*parts, origin(found)])


def fill_rates() -> str:
    """Attention over fill rates."""
    return curves.section(rows(ATTENTION.name))


def pages() -> dict[Path, str]:
    """Return every file that is made here, with its text."""
    text = PAGE.read_text()
    for name, make in (("quality", quality), ("prepare", prepare), ("throughput", throughput),
                       ("curves", fill_rates), ("hstu", hstu),
                       ("stochastic-length", stochastic_length), ("streaming", streaming), ("ranking", ranking),
                       ("clicks", clicks), ("production", production), ("indexes", indexes)):
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, make=make: f"{found[1]}\n{make()}\n\n{found[2]}", text)
    charts = curves.charts(rows(ATTENTION.name))
    return {PAGE: text, attention.README: attention.filled(attention.README.read_text(), ATTENTION),
            **{PAGE.with_name(name): chart for name, chart in charts.items()}}


def main() -> None:
    """Write the pages, or compare."""
    made = pages()
    other = [path.relative_to(HERE.parent) for path, text in made.items()
             if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"{', '.join(map(str, other))}: run python benchmarks/tables.py" if other else 0)
    for path in other:
        (HERE.parent / path).write_text(made[HERE.parent / path])


if __name__ == "__main__":
    main()
