"""`serrate data`: look at a log, prepare it, make one."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..config import override
from ..data import (
    DataConfig,
    Histories,
    SplitConfig,
    inspect,
    is_prepared,
    prepare,
    split,
    synthesize,
    synthesize_ads,
    synthesize_stream,
)
from ..errors import InvalidArgument, InvalidData
from ..files import write_folder_aside
from .groups import group
from .show import columns_table, err, facts, out, say

app = group("Event logs: inspect, prepare, synthesize.")

Log = Annotated[str, typer.Argument(
    metavar="LOG", help="a file, folder or glob: Parquet, CSV, JSON lines, RecBole .inter, MovieLens",
    show_default=False)]
Folder = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="the folder to write", show_default=False)]
User = Annotated[str | None, typer.Option(metavar="COLUMN", help="who")]
Item = Annotated[str | None, typer.Option(metavar="COLUMN", help="what")]
Time = Annotated[str | None, typer.Option(metavar="COLUMN", help="when; a user's events are put in this order")]
Position = Annotated[str | None, typer.Option(metavar="COLUMN", help="the order, where the log has no times")]
_RECORD = 128  # events of a record of a stream, as the paper of HSTU has them
_SHOWN = 4  # ads of a request

Changes = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="any other key under `data` of `serrate config show default`")]


@app.command("inspect")
def inspect_log(log: Log, user: User = None, item: Item = None, time: Time = None, position: Position = None,
                changes: Changes = None) -> None:
    """Show what is in a log, or in a prepared data set.

    Columns, users, items, lengths of histories, and what a split would leak. Columns with usual names are taken
    for what they say; name the others.

    \b
    Examples:
      serrate data inspect ratings.dat
      serrate data inspect events.parquet --user user_id --item item_id --time timestamp
      serrate data inspect 'logs/2025-*.csv' --set filter='rating >= 4'
    """
    if is_prepared(log):
        _describe(Histories.open(log))
        return
    values = _values(None, user, item, time, position, changes)
    found = inspect(log, DataConfig.parse(values).format)
    out.print(columns_table(log, found))
    mapping = found.mapping | values["columns"]
    if not {"user", "item"} <= set(mapping):
        say("say which columns are the user and the item: --user COLUMN --item COLUMN", err)
        return
    _describe(prepare(log, DataConfig.parse({**values, "columns": mapping})))
    roles = [part for role, column in mapping.items() if isinstance(column, str) for part in (f"--{role}", column)]
    changed = [part for change in changes or [] for part in ("--set", change)]
    say("next: " + shlex.join(["serrate", "data", "prepare", log, "--out", "prepared", *roles, *changed]))


@app.command("prepare")
def prepare_log(
    log: Log, folder: Folder, user: User = None, item: Item = None, time: Time = None, position: Position = None,
    condition: Annotated[str | None, typer.Option(
        "--filter", metavar="CONDITION", help="keep the events that satisfy it, such as: rating >= 4")] = None,
    changes: Changes = None,
) -> None:
    """Sort and group a log into histories to train on.

    The work is done out of core, so the log may be larger than memory. Without --user and --item the columns are
    `user` and `item`; without --time and --position the order of the file counts.

    \b
    Examples:
      serrate data prepare ratings.dat --out ml-1m.prepared --time time
      serrate data prepare events/ --out prepared --user user_id --item sku --time ts
      serrate data prepare events.csv --out bought --filter "kind = 'buy'" --set min_item_events=5
    """
    histories = prepare(log, DataConfig.parse(_values(condition, user, item, time, position, changes)), folder)
    out.print(facts(str(folder), _flat(histories.summary())))


@app.command("synthesize")
def synthesize_log(
    folder: Folder,
    events: Annotated[int, typer.Option(metavar="NUMBER", help="how many events")] = 1_000_000,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="the same seed gives the same log")] = 0,
    kind: Annotated[Literal["histories", "stream", "ads"], typer.Option(
        help="long-tailed histories, a stream of records of 128 events whose catalogue grows, or ads that are shown, "
             "clicked and bought")] = "histories",
) -> None:
    """Make a log that has something to learn, of any size.

    Histories follow a sequential signal and have long-tailed lengths; what comes next in a record of a stream repeats
    what came before, and items that nobody has seen keep coming; whether an ad is clicked follows a law of the user,
    the ad and the history, whose probabilities are in the log. Writes events.parquet (user, item, time) and
    items.parquet (id, title); of ads, with action, slot and probability, more about items, and users.parquet.

    \b
    Examples:
      serrate data synthesize --out synthetic
      serrate data synthesize --out large --events 100000000 --seed 1
      serrate data synthesize --out stream --kind stream --events 6400000
      serrate data synthesize --out ads --kind ads --events 10000000
    """
    if kind == "stream" and events < _RECORD:
        raise InvalidArgument("--events", f"at least {_RECORD}, a record of the stream", events)
    if kind == "ads" and events < 3 * _SHOWN:
        raise InvalidArgument("--events", f"at least {3 * _SHOWN}, three requests of {_SHOWN} ads", events)
    with write_folder_aside(folder) as partial:
        log, titles = partial / "events.parquet", partial / "items.parquet"
        if kind == "stream":
            synthesize_stream(log, events // _RECORD, length=_RECORD, seed=seed, titles=titles)
        elif kind == "ads":
            synthesize_ads(partial, events // _SHOWN, shown=_SHOWN, seed=seed)
        else:
            synthesize(log, events, seed=seed, titles=titles)
    beside = "tables of items and users" if kind == "ads" else "titles"
    say(f"wrote {folder / 'events.parquet'} and the {beside} beside it", err)


def _describe(histories: Histories) -> None:
    out.print(facts("histories", _flat(histories.summary())))
    try:
        warnings = split(histories, SplitConfig()).warnings
    except InvalidData as error:  # too little to train on is no reason not to look
        warnings = (str(error),)
    for warning in warnings:
        say(f"note: {warning}")


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
