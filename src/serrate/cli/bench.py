"""`serrate bench`: kernels beside their peers, on batches as long as one's own histories are."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import torch
import typer
from rich.table import Table

from ..data import DataConfig, is_prepared
from ..data.lengths import history_lengths
from ..errors import InvalidArgument, NotUsable, suggest
from ..files import write_aside
from ..ops import figures
from ..ops.attention import Call, Mask
from ..ops.attention.bench import Comparison, compare
from ..ops.attention.peers import OF_EVENTS, ON_CPU, make
from ..ops.attention.workloads import Spread, Workload
from ..ops.figures import written
from ..ops.select import Choice, choose
from .groups import flat, group
from .show import err, facts, out, say

app = group("Kernels beside their peers, on your histories.")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROWS = 1024
_MOST = 9_999_999  # rows, heads and so on: a number that torch can multiply, or says that it cannot
_CPU_EVENTS = 16384  # of a batch, unless the number of rows is given: some seconds in all
_SPREADS = get_args(Spread)
_TOO_LARGE = ("allocate memory", "overflow")  # what torch says on a CPU, and of sizes that nothing could hold


@dataclass(frozen=True)
class AttentionOptions:
    """What `serrate bench attention` is asked."""

    lengths: Annotated[str, typer.Argument(
        metavar="LENGTHS", help="a log, a prepared data set, or a distribution such as uniform:512",
        show_default=False)]
    rows: Annotated[int | None, typer.Option(
        metavar="NUMBER", min=1, max=_MOST,
        help="rows of the batch; by default 1,024, on a CPU about 16,384 events")] = None
    heads: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=_MOST, help="heads")] = 4
    width: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=_MOST, help="width of a head")] = 64
    dtype: Annotated[str | None, typer.Option(
        metavar="DTYPE", help="bfloat16 (default on a GPU), float16 or float32 (default on a CPU)")] = None
    causal: Annotated[bool, typer.Option(help="let events see what came before them only")] = True
    device: Annotated[str | None, typer.Option(
        metavar="DEVICE", help="cuda (default where there is one) or cpu")] = None
    max_length: Annotated[int | None, typer.Option(
        metavar="NUMBER", min=1, max=_MOST, help="keep this many events of a history at most")] = None
    user: Annotated[str, typer.Option(metavar="COLUMN", help="who, in a log")] = "user"
    item: Annotated[str, typer.Option(metavar="COLUMN", help="what, in a log")] = "item"
    condition: Annotated[str | None, typer.Option(
        "--filter", metavar="CONDITION", help="count the events that satisfy it, such as: rating >= 4")] = None
    seconds: Annotated[float, typer.Option(
        metavar="NUMBER", min=0.0, help="the most that one implementation may take on a CPU")] = 10.0
    report: Annotated[Path | None, typer.Option(
        "--json", metavar="FILE", help="write the figures here too", show_default=False)] = None


@app.command("attention")
@flat(AttentionOptions)
def attention(options: AttentionOptions) -> None:
    """Measure attention on a batch of your lengths.

    Ours beside its peers: milliseconds of the forward pass and of forward and backward, on a GPU also memory.
    Says which implementation the automatic choice takes, and why not the ones before it. Nothing is told before
    ours agrees with a float64 computation.

    LENGTHS is a log (the columns user and item, or --user and --item), a prepared data set, of which a batch of
    histories is drawn, or a distribution up to a longest length: uniform:512, lognormal:2048, equal:4096.

    \b
    Examples:
      serrate bench attention events.parquet --user user_id --item sku
      serrate bench attention prepared --max-length 200 --heads 2 --width 32
      serrate bench attention lognormal:2048 --rows 512 --dtype float16 --json figures.json
      serrate bench attention uniform:64 --device cpu --no-causal
    """
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    workload = _workload(options, device)
    _describe(workload)
    call = Call(torch.device(device), dtype, options.width, options.width, Mask(causal=options.causal))
    choice = choose("attention", call)
    name = choice.implementation.name
    peers = OF_EVENTS if device == "cuda" else ON_CPU
    how = Comparison(peers, implementation=name, seconds=options.seconds, tell=lambda text: say(text, err))
    try:
        rows = compare(make(workload, device, dtype), how)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in _TOO_LARGE):
            raise
        raise NotUsable(f"{workload.rows} rows up to {workload.longest} events do not fit in the memory of the "
                        f"device; try fewer with --rows, or shorter ones with --max-length") from None
    out.print(_table(rows, name, f"attention, {options.heads} heads of {options.width}, "
                     f"{str(dtype).removeprefix('torch.')}, {'causal' if options.causal else 'not causal'}, {device}"))
    for line in _reasons(choice):
        say(line)
    if options.report is not None:
        with write_aside(options.report) as partial:
            partial.write_text(figures.text(rows), encoding="utf-8")


def _device(asked: str | None) -> str:
    there = torch.cuda.is_available()
    if asked not in (None, "cpu", "cuda"):
        raise InvalidArgument("--device", "cpu or cuda", repr(asked))
    if asked == "cuda" and not there:
        raise InvalidArgument("--device", "cpu: there is no CUDA device here", "cuda")
    return asked or ("cuda" if there else "cpu")


def _dtype(asked: str | None, device: str) -> torch.dtype:
    name = asked or ("bfloat16" if device == "cuda" else "float32")
    if name not in _DTYPES:
        raise InvalidArgument("--dtype", f"one of {', '.join(_DTYPES)}{suggest(name, _DTYPES)}", repr(name))
    return _DTYPES[name]


def _workload(options: AttentionOptions, device: str) -> Workload:
    """Return the batch that the options describe, its lengths written out."""
    spread, colon, longest = options.lengths.partition(":")
    rows = options.rows or _ROWS
    drawn = bool(colon) and not Path(options.lengths).exists() and bool(re.fullmatch(r"[a-z]+", spread))
    if options.condition is not None and (drawn or is_prepared(options.lengths)):
        raise InvalidArgument("--filter", "a log, whose events it counts", repr(options.lengths))
    if drawn:
        if spread not in _SPREADS or not re.fullmatch(r"[1-9]\d{0,6}", longest):
            expected = f"{', '.join(f'{name}:N' for name in _SPREADS)} with N from 1 to 9,999,999, or a log"
            raise InvalidArgument("LENGTHS", expected + suggest(spread, _SPREADS), repr(options.lengths))
        lengths = Workload("", cast(Spread, spread), rows, int(longest), 1, 1, True).lengths().numpy()
    else:
        config = DataConfig.parse({"columns": {"user": options.user, "item": options.item},
                                   "filter": options.condition})
        lengths = history_lengths(options.lengths, config)
        say(f"{options.lengths}: {len(lengths):,} histories, {lengths.mean():,.1f} events on average, half of them "
            f"up to {np.median(lengths):,.0f}, the longest {lengths.max():,}", err)
        draw = np.random.default_rng(0)
        lengths = draw.choice(np.sort(lengths), rows, replace=len(lengths) < rows)
    if options.max_length is not None:
        lengths = lengths.clip(max=options.max_length)
    if options.rows is None and device == "cpu":
        lengths = lengths[: max(1, int((lengths.cumsum() <= _CPU_EVENTS).sum()))]
    return Workload(Path(options.lengths).name, "equal", len(lengths), int(lengths.max()), options.heads, options.width,
                    options.causal, given=tuple(lengths.tolist()))


def _describe(workload: Workload) -> None:
    lengths = workload.lengths()
    events, cells = int(lengths.sum()), workload.rows * workload.longest
    out.print(facts("the batch", {"rows": workload.rows, "events": events, "longest": workload.longest,
                                  "mean length": f"{events / workload.rows:,.1f}",
                                  "median length": int(lengths.median()),
                                  "cells if padded": f"{cells:,}, {1 - events / cells:.0%} of them padding"}))


def _table(rows: list[dict[str, Any]], name: str, title: str) -> Table:
    """Return the figures, a row an implementation; how many times the time of ours both passes take."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["implementation"], {})[row["metric"]] = row["value"]
    # of two lines, so that 80 characters hold the names on one
    shown = {"forward_ms": "forward ms", "forward_backward_ms": "forward and\nbackward ms", "peak_mib": "peak MiB"}
    shown = {metric: heading for metric, heading in shown.items() if metric in found[name]}
    own = found[name]["forward_backward_ms"]
    table = Table(title=title)
    table.add_column("")
    for heading in (*shown.values(), f"times {name}"):
        table.add_column(heading, justify="right")
    for each, values in found.items():
        if "forward_backward_ms" in values:
            table.add_row(each + (", ours" if each == name else ""), *(written(values[metric]) for metric in shown),
                          f"{values['forward_backward_ms'] / own:.2f}")
        if "graph_forward_ms" in values:
            replayed = [values.get(f"graph_{metric}") for metric in shown]
            table.add_row(f"{each}, graph replayed", *("" if value is None else written(value) for value in replayed),
                          f"{values['graph_forward_backward_ms'] / own:.2f}")
    return table


def _reasons(choice: Choice) -> list[str]:
    """Return which implementation is chosen, and why each one ranked before it was passed over."""
    return [f"chosen: {choice.implementation.name}",
            *(f"passed over: {name}: {reason}" for name, reason in choice.passed_over)]
