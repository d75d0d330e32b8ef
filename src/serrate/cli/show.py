"""What the commands print: tables on stdout, progress on stderr."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..data import Inspection

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(text: str, console: Console = out) -> None:
    """Print a line as it is: no markup, not wrapped where the terminal ends."""
    console.print(text, markup=False, soft_wrap=True)


def metric_table(metrics: Mapping[str, Any]) -> Table:
    """Return the metric table of a saved run: a row a metric, a column a model, with confidence intervals."""
    split = metrics["rows"][0]["split"]
    rows = [row for row in metrics["rows"] if row["split"] == split]
    table = Table(title=f"{split} split, {metrics['examples'][split]:,} examples")
    table.add_column("")
    for row in rows:
        table.add_column(row["model"], justify="right")
    for name in rows[0]["metrics"]:
        if not name.startswith("recall") or _differs(rows, name):
            table.add_row(name, *(_estimate(row["metrics"].get(name)) for row in rows))
    return table


def comparison_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence a paired difference."""
    return [f"{row['model']} − {row['baseline']}: {row['metric']} {row['value']:+.4f} "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]" + ("" if row["low"] > 0 or row["high"] < 0 else "  (not clear)")
            for row in comparisons if row["low"] is not None]


def facts(title: str, values: Mapping[str, Any]) -> Table:
    """Return a two-column table of plain values."""
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    return table


def columns_table(title: str, found: Inspection) -> Table:
    """Return what a log's columns hold."""
    table = Table(title=f"{title}: {found.rows:,} events")
    for heading in ("column", "type", "distinct, about", "nulls", "smallest", "largest", "taken as"):
        table.add_column(heading, overflow="fold")
    roles = {column: role for role, column in found.mapping.items()}
    for column in found.columns:
        table.add_row(column.name, column.kind, f"{column.distinct:,}", f"{column.nulls:,}", column.smallest or "",
                      column.largest or "", roles.get(column.name, ""))
    return table


class TrainingProgress:
    """Shows a run's log records as they come: a bar a run, a line a validation. Use as a context manager."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), console=err)
        self._task = self._progress.add_task("training", total=None, loss="", speed="")
        self._batches = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._batches:  # a bar that never started leaves no line
            self._progress.stop()

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show one log record."""
        show = getattr(self, f"_{record['event']}", None)
        if show is not None:
            show(record)

    def _start(self, record: Mapping[str, Any]) -> None:
        self._batches = record["batches"]
        self._progress.start()
        say(f"{record['parameters']:,} parameters on {record['device']}, {record['processes']} process(es); "
                  f"{record['events']:,} events an epoch in {record['batches']:,} batches, "
                  f"{record['padding_avoided']:.0%} padding avoided", err)
        self._progress.update(self._task, total=record["epochs"] * self._batches)

    def _step(self, record: Mapping[str, Any]) -> None:
        self._progress.update(self._task, completed=record["step"], description=f"epoch {record['epoch']}",
                              loss=f"loss {record['loss']:.3f}", speed=f"{record['events_per_second']:,.0f} events/s")

    def _validation(self, record: Mapping[str, Any]) -> None:
        names = dict.fromkeys(["hr@10", "ndcg@10", "auc", record["monitor"]])
        shown = ", ".join(f"{name} {record['metrics'][name]:.4f}" for name in names if name in record["metrics"])
        say(f"epoch {record['epoch']}: validation {shown}{'  *' if record['best'] else ''}", err)

    def _end(self, record: Mapping[str, Any]) -> None:
        self._progress.update(self._task, completed=record["step"], total=record["step"], description="done")
        why = ", stopped early" if record["stopped_early"] else ""
        say(f"epoch {record['best_epoch']} of {record['epoch']} chosen on validation{why}", err)


def _estimate(estimate: Mapping[str, float | None] | None) -> str:
    if estimate is None:  # not defined of this one
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:.4f}"
    return f"{estimate['value']:.4f} [dim]{estimate['low']:.3f}–{estimate['high']:.3f}[/dim]"


def _differs(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether recall says anything that the hit rate does not (it is the same with one event to predict)."""
    return any(row["metrics"][name] != row["metrics"][name.replace("recall", "hr")] for row in rows)
