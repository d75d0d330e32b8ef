"""From the columns of a log to the view `events`: user, item, moment, row, weight and features, checked and typed."""

from dataclasses import dataclass

import duckdb

from ..errors import InvalidData, suggest
from .config import ColumnMapping, DataConfig
from .sources import ROW, Source, quoted, reading, reason

_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT",
             "UHUGEINT"}


@dataclass(frozen=True)
class EventView:
    """What the view `events` holds besides user, item and row."""

    moment: bool  # a column `moment` gives the order
    time_unit: str | None  # "integer", "microseconds", or None where the moments are not times
    weight: bool
    features: dict[str, str]  # field name → SQL type; column `feature_<i>` in this order


def select_events(engine: duckdb.DuckDBPyConnection, source: Source, config: DataConfig) -> EventView:
    """Create the view `events` over the view `log`; raise `InvalidData` for columns that are missing or wrong."""
    columns = config.columns
    log = engine.table("log")
    if config.filter is not None:
        log = log.filter(config.filter)
    order = columns.time or columns.position
    parts = [f"{quoted(columns.user)} AS user", f"{quoted(columns.item)} AS item", f"{ROW} AS row"]
    if order:
        parts.append(f"{quoted(order)}::BIGINT AS moment")
    log.project(", ".join(parts)).create_view("events")
    return EventView(order is not None, "integer" if columns.time else None, False, {})
