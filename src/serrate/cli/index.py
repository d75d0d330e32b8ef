"""`serrate index`: a saved run's items made ready for search, searched, and measured."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from ..config import override
from ..data import Histories, data_of, history_batch, split
from ..errors import InvalidArgument, InvalidData
from ..files import write_aside
from ..index import KINDS
from ..index.measure import Measured, measure
from ..nn.similarity import Sides
from ..ops.figures import written
from ..report import write_report
from ..run_folder import RunFolder
from ..serve import Predictor, build_index
from ..train import next_item_run, read_run_config
from .groups import group
from .recommend import show_recommended
from .run import Run
from .show import err, facts, out, say

app = group("Indexes of a run's items: build, search, measure.")

Place = Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a saved index", show_default=False)]
K = Annotated[int, typer.Option("-k", metavar="NUMBER", help="how many items")]


@app.command()
def build(
    run: Run,
    place: Annotated[Path, typer.Option("--out", metavar="DIR", help="where the index goes", show_default=False)],
    kind: Annotated[str, typer.Option(metavar="KIND", help=f"one of {', '.join(KINDS)}")] = "exact",
    changes: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="a setting of the kind, such as each=50")] = None,
) -> None:
    """Build an index over the items of a run.

    \b
    Kinds, and their settings:
      exact       every item is scored
      component   the best `each` items of each component logit, and the best `mean` by their mean, are scored
      two-pass    exact; skips items whose component logits cannot reach the answer; threshold=kth or smallest
      h-indexer   about `keep` items that pass an INT8 product are scored; sample_rank, margin, seed
      faiss       the `keep` neighbours that FAISS finds are scored; factory, probes, effort (extra `ann`)

    \b
    Examples:
      serrate index build runs/first --out first-index
      serrate index build runs/mol --kind component --set each=50 --set mean=500 --out mol-index
      serrate index build runs/mol --kind h-indexer --set keep=2000 --out mol-index
    """
    predictor = Predictor.open(run)
    index = build_index(predictor.model, kind, override({}, changes or []))
    index.save(place, model=predictor.model)
    say(f"{len(index):,} items, {index.num_bytes / 2**20:,.1f} MiB, of kind {kind} → {place}", err)


@app.command()
def search(
    place: Place,
    run: Run,
    history: Annotated[str, typer.Option(
        metavar="ID,ID,…", help="raw item ids, oldest first; ID@TIME for a model that reads times",
        show_default=False)],
    k: K = 10,
    exclude_seen: Annotated[bool, typer.Option(help="leave out the items of the history itself")] = True,
) -> None:
    """Search an index for one history; `serrate recommend --index DIR` does so for many.

    \b
    Example:
      serrate index search first-index runs/first --history 1193,661,914
    """
    show_recommended(Predictor.open(run, index=place), history, k, exclude_seen)


@app.command()
def bench(
    place: Place,
    run: Run,
    log: Annotated[Path | None, typer.Option(
        "--data", metavar="DATA", help="the prepared data set; by default where it was")] = None,
    k: K = 10,
    users: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="test histories that ask, at most")] = 128,
    seconds: Annotated[float, typer.Option(metavar="NUMBER", min=0.0, help="for each figure, on a CPU")] = 1.0,
    result: Annotated[Path | None, typer.Option(
        "--json", metavar="FILE", help="write the figures here too", show_default=False)] = None,
) -> None:
    """Measure an index on test histories: milliseconds by batch size, and recall of the exact answer.

    Figures are also kept in RUN/index.json, by the name of DIR, and drawn in the report.

    \b
    Example:
      serrate index bench first-index runs/first -k 100
    """
    predictor = Predictor.open(run, index=place)
    index = predictor.index
    assert index is not None
    measured = measure(index, _queries(predictor, run, log, users), k, seconds=seconds)
    rows = [{"index": place.resolve().name, "kind": index.kind, "k": k, **asdict(row)} for row in measured]
    out.print(facts(place.resolve().name, {"kind": index.kind, **index.config.plain(), "items": len(index),
                                 "MiB": f"{index.num_bytes / 2**20:,.1f}", "k": k}))
    out.print(_table(measured))
    if result is not None:
        with write_aside(result) as partial:
            partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    folder = RunFolder(run)
    new = {(row["index"], row["k"], row["batch"]) for row in rows}
    kept = [row for row in folder.read_index_rows() if (row.get("index"), row.get("k"), row.get("batch")) not in new]
    folder.write_index_rows([*kept, *rows])
    write_report(run)


def _queries(predictor: Predictor, run: Path, log: Path | None, users: int) -> Sides:
    """Return the query sides of test histories, drawn with a fixed seed."""
    config = next_item_run(read_run_config(predictor.config))
    histories = Histories.open(log) if log else data_of(run)
    if predictor.reads_time and not histories.has_time:
        raise InvalidData(f"{histories.path}: the model reads times, and this data set has none (columns.time)")
    if len(histories.items) != len(predictor.items):
        raise InvalidData(f"{histories.path}: its items are not those that {run} was trained on")
    examples = split(histories, config.split).test
    if not len(examples):
        raise InvalidArgument("--data", "a data set with test histories", str(histories.path))
    drawn = np.sort(np.random.default_rng(0).permutation(len(examples))[:users])
    batch = history_batch(histories, examples, drawn, config.model.max_length)
    with torch.no_grad():
        return predictor.model.query_sides(batch.to(next(predictor.model.parameters()).device))


def _table(measured: list[Measured]) -> Table:
    table = Table()
    for heading in ("queries", "milliseconds", "recall", "scored", "certified"):
        table.add_column(heading, justify="right")
    for row in measured:
        shares: list[Any] = [f"{value:.2%}" for value in (row.recall, row.share, row.certified)]
        table.add_row(f"{row.batch:,}", written(row.milliseconds), *shares)
    return table
