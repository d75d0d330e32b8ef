"""`serrate data`: look at a log, prepare it, make one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import override
from ..data import DataConfig, SplitConfig, inspect, prepare, split, synthesize
from .show import columns_table, err, facts, out, say

app = typer.Typer(help="Event logs: inspect, prepare, synthesize.", no_args_is_help=True, rich_markup_mode="markdown")

Log = Annotated[str, typer.Argument(help="a file, folder or glob: Parquet, CSV, RecBole .inter, MovieLens",
                                    show_default=False)]
User = Annotated[str | None, typer.Option(help="the user column")]
Item = Annotated[str | None, typer.Option(help="the item column")]
Time = Annotated[str | None, typer.Option(help="the time column")]
Position = Annotated[str | None, typer.Option(help="a column that only gives the order")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="any other key of `data`, as key.path=value")]


@app.command("inspect")
def inspect_log(log: Log, user: User = None, item: Item = None, time: Time = None, position: Position = None,
                changes: Changes = None) -> None:
    """Show what is in a log: columns, users, items, history lengths, and what a split would leak.

    Examples:

        serrate data inspect ratings.dat

        serrate data inspect events.parquet --user user_id --item item_id --time timestamp
    """
    values = _values(None, user, item, time, position, changes)
    found = inspect(log, DataConfig.parse(values).format)
    out.print(columns_table(log, found))
    mapping = found.mapping | values["columns"]
    if not {"user", "item"} <= set(mapping):
        say("say which columns are the user and the item: --user NAME --item NAME", err)
        return
    histories = prepare(log, DataConfig.parse({**values, "columns": mapping}))
    out.print(facts("histories", _flat(histories.summary())))
    for warning in split(histories, SplitConfig()).warnings:
        say(f"note: {warning}")
    options = " ".join(f"--{role} {name}" for role, name in mapping.items() if isinstance(name, str))
    say(f"next: serrate data prepare {log} --out prepared {options}")


@app.command("prepare")
def prepare_log(
    log: Log,
    result: Annotated[Path, typer.Option("--out", help="the folder to write", show_default=False)],
    user: User = None, item: Item = None, time: Time = None, position: Position = None,
    condition: Annotated[str | None, typer.Option("--filter", help="keep events where, such as: rating >= 4")] = None,
    changes: Changes = None,
) -> None:
    """Sort and group a log into jagged histories, out of core, ready to train on.

    Examples:

        serrate data prepare ratings.dat --out ml-1m.prepared

        serrate data prepare events/ --out prepared --user user_id --item sku --time ts
            --filter "kind = 'buy'" --set min_item_events=5
    """
    config = DataConfig.parse(_values(condition, user, item, time, position, changes))
    histories = prepare(log, config, result)
    out.print(facts(str(result), _flat(histories.summary())))


@app.command("synthesize")
def synthesize_log(
    result: Annotated[Path, typer.Option("--out", help="the folder to write", show_default=False)],
    events: Annotated[int, typer.Option(help="how many events, about")] = 1_000_000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Make a log with a sequential signal and long-tailed histories; the same for the same seed.

    Example:

        serrate data synthesize --events 100000000 --out synthetic
    """
    log = synthesize(result / "events.parquet", events, seed=seed, titles=result / "items.parquet")
    say(f"wrote {log} and the titles beside it", err)


def _values(condition: str | None, user: str | None, item: str | None, time: str | None, position: str | None,
            changes: list[str] | None) -> dict[str, Any]:
    columns = {"user": user, "item": item, "time": time, "position": position}
    values: dict[str, Any] = {"columns": {name: column for name, column in columns.items() if column is not None}}
    if condition is not None:
        values["filter"] = condition
    return override(values, changes or [])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        flat |= _flat(value, f"{label}: ") if isinstance(value, dict) else {label: value}
    return flat
