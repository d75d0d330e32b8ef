"""Events that satisfy a condition, kept as places in the histories, and any history's part of them found by search."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..errors import InvalidData
from .engine import NUMBERS, family, open_engine, reason
from .histories import Histories


class Selection:
    """The events of all histories that satisfy a condition: a history of the same users, of which nothing is copied.

    Args:
        histories: whose events.
        places: `(S,)` int64, ascending, the chosen events as places in the flat fields; None: all.
    """

    def __init__(self, histories: Histories, places: Tensor | None = None):
        self.places = places
        self._offsets = histories.offsets
        self._starts = histories.offsets if places is None else torch.searchsorted(places, histories.offsets)

    def before(self, rows: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the chosen events begin that are among the first `ends` of each row, and how many they are.

        Both `(U,)` int64; the beginning counts chosen events, as `at` takes them. Found by search, in O(log S).
        """
        firsts, lasts = self._starts[rows], self._offsets[rows] + ends
        if self.places is not None:
            lasts = torch.searchsorted(self.places, lasts)
        return firsts, lasts - firsts

    def at(self, chosen: Tensor) -> Tensor:
        """Return the places in the flat fields of chosen events `(T,)`, counted over all rows."""
        return chosen if self.places is None else self.places[chosen]


def select(histories: Histories, conditions: Mapping[str, str | None]) -> dict[str, Selection]:
    """Return name → the events that satisfy an SQL condition over time and features, such as `rating >= 4`; None: all.

    Raises:
        InvalidData: a condition that cannot be applied, or that no event satisfies.
    """
    values = event_values(histories, {name: text for name, text in conditions.items() if text is not None})
    for name, chosen in values.items():
        if not chosen.any():
            raise InvalidData(f"history {name!r}: no event of {len(chosen)} satisfies {conditions[name]!r}")
    return {name: Selection(histories, None if text is None else torch.from_numpy(np.flatnonzero(values[name])))
            for name, text in conditions.items()}


def event_values(histories: Histories, expressions: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return name → an SQL expression of the time and the features of each event, `(T,)` float32; yes is 1, no is 0.

    Null counts as 0.

    Raises:
        InvalidData: an expression that cannot be applied to these fields, or does not give each event a finite number.
    """
    if not expressions:
        return {}
    names = [name for name in histories.fields if name != "item"]
    fields = {name: pa.array(histories.fields[name].numpy()) for name in names}
    fields["__place"] = pa.array(np.arange(histories.num_events))  # a log without fields has events too
    found = {}
    with tempfile.TemporaryDirectory(prefix="serrate-") as folder, open_engine(Path(folder), "2GB", None) as engine:
        engine.register("events", pa.table(fields))
        for name, text in expressions.items():
            try:
                relation = engine.table("events").project(f"({text}) AS value")
                numbers = family(str(relation.types[0])) in NUMBERS
                values = relation.project("coalesce(value::FLOAT, 0) AS value").fetchnumpy()["value"] if numbers else []
            except duckdb.Error as error:
                there = ", ".join(names) or "no field"
                raise InvalidData(f"{name}: cannot apply {text!r} to {there} ({reason(error)})") from None
            found[name] = np.asarray(values, dtype=np.float32)
            if len(found[name]) != histories.num_events or not np.isfinite(found[name]).all():
                raise InvalidData(f"{name}: expected an expression that gives each event a finite number, or yes or no,"
                                  f" got {text!r}")
    return found
