"""The side table about items: other raw ids (such as ASINs) and titles, joined to the items of the log."""

from ..errors import InvalidData
from .config import ItemTable
from .engine import INTEGERS, Engine, family, first_row, number, quoted
from .events import check_column, id_column
from .sources import Source, Wanted, open_source


def join_item_table(engine: Engine, table: ItemTable) -> None:
    """Create `named_items` (id, count, title, key) from `items` (id, count) and the side table.

    An item without a title gets null. With `table.unseen` the items of the table without an event follow, of count 0.
    Raises `InvalidData` for a missing or wrong column, a key twice, an item without its new id, or a new id that stands
    for two items.
    """
    named = [(role, name) for role, name in (("key", table.key), ("id", table.id), ("title", table.title))
             if name is not None]
    ids = tuple(name for role, name in named if role != "title")
    columns = tuple(dict.fromkeys(name for _, name in named))
    side = open_source(engine, table.path, "auto", Wanted("side", ids, columns))
    for role, name in named:
        check_column(side, f"items.{role}", name)
    (kind,) = engine.sql("SELECT column_type FROM (DESCRIBE items) WHERE column_name = 'id'").fetchall()[0]
    cast = "TRY_CAST({} AS BIGINT)" if family(kind) in INTEGERS else "{}::VARCHAR"
    id_column(side, "items.key", table.key)
    new_id = id_column(side, "items.id", table.id) if table.id else "items.id"
    title = f", side.{quoted(table.title)}::VARCHAR AS title" if table.title else ""
    _check_keys(engine, side, cast.format(quoted(table.key)), table.unseen)
    engine.execute(f"CREATE TABLE named_items AS SELECT {new_id} AS id, items.count, items.id AS key{title} "
                   f"FROM items LEFT JOIN side ON items.id = {cast.format('side.' + quoted(table.key))}")
    if table.unseen:  # a row whose key could not stand in the log is no item
        key = cast.format(quoted(table.key))
        engine.execute(f"INSERT INTO named_items SELECT {new_id if table.id else key} AS id, 0, {key} AS key{title} "
                       f"FROM side WHERE {key} IS NOT NULL AND {key} NOT IN (SELECT id FROM items)")
    if table.id:
        _check_ids(engine, side)


def _check_keys(engine: Engine, side: Source, key: str, every: bool) -> None:
    condition = f"{key} IS NOT NULL" if every else f"{key} IN (SELECT id FROM items)"
    twice = first_row(engine, f"SELECT {key} AS key, count(*) FROM side WHERE {condition} "
                              f"GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1")
    if twice:
        raise InvalidData(f"{side.name}: expected one row an item, got {twice[1]} for key {twice[0]!r}")


def _check_ids(engine: Engine, side: Source) -> None:
    missing = first_row(engine, "SELECT count(*), min(key) FROM named_items WHERE id IS NULL")
    if missing and missing[0]:
        total = number(engine, "SELECT count(*) FROM named_items")
        raise InvalidData(f"{side.name}: {missing[0]} of the {total} items of the log have no id there, "
                          f"the first is {missing[1]!r}")
    twice = first_row(engine, "SELECT id, count(*) FROM named_items GROUP BY id HAVING count(*) > 1 "
                              "ORDER BY id LIMIT 1")
    if twice:
        raise InvalidData(f"{side.name}: id {twice[0]!r} stands for {twice[1]} items of the log")
