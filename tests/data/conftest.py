"""What the tests of the data floor share: logs written as rows, and the folder of real logs."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from serrate.data import ColumnMapping, DataConfig, Histories, prepare


@pytest.fixture(scope="session")
def log_of():
    """A function: rows (user, item, time, …) → an Arrow table of these columns."""

    def make(rows, names=("user", "item", "time")):
        columns = list(zip(*rows, strict=True)) if rows else [[] for _ in names]
        return pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})

    return make


@pytest.fixture(scope="session")
def prepared(log_of):
    """A function: rows (user, item, time) → `Histories`; keywords go to `DataConfig`, `columns` to the mapping."""

    def make(rows, names=("user", "item", "time"), columns=None, **config):
        mapping = ColumnMapping(**({"time": "time"} if columns is None else columns))
        return prepare(log_of(rows, names), DataConfig(columns=mapping, **config))

    return make


@pytest.fixture(scope="session")
def histories_of():
    """A function: rows of dense items, and of other fields by name → `Histories` without a folder."""

    def make(rows, time_unit="integer", **fields):
        offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
        flat = {name: torch.tensor([value for row in values for value in row])
                for name, values in {"item": rows, **fields}.items()}
        flat["item"] = flat["item"].int()
        num_items = max((item for row in rows for item in row), default=-1) + 1
        return Histories(Path("nowhere"), offsets, flat, {"num_items": num_items, "time_unit": time_unit})

    return make


@pytest.fixture(scope="session")
def raw_rows():
    """A function: `Histories` → {raw user: [raw items in order]}."""

    def read(histories):
        items = histories.items.decode(histories.fields["item"].numpy())
        users, offsets = histories.users.decode(range(histories.num_users)), histories.offsets.tolist()
        return {user: items[first:last] for user, first, last in zip(users, offsets[:-1], offsets[1:], strict=True)}

    return read


@pytest.fixture(scope="session")
def real_logs():
    """The folder of real logs; skips where there is none."""
    folder = os.environ.get("SERRATE_DATA")
    if not folder:
        pytest.skip("SERRATE_DATA is not set: no real logs here")
    return Path(folder)
