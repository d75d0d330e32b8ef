"""The saved run on disk: the names of its files in one place, its format version, and how each is read.

The saved run is the only contract between training and use. It is a folder that can be read without Serrate:
JSON, JSON lines, safetensors and Parquet. Whatever is wrong with it is told as one line (`InvalidRun`).
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InvalidRun, NotWritable
from .files import write_json

FORMAT_VERSION = 1

# Version → a function from the values of config.json in that version to those of the next version.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class RunFolder:
    """A saved run at `path`. Nothing is touched until a file is read or written."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        """The settings of the run, complete, with the format version: `config.json`."""
        return self.path / "config.json"

    @property
    def model_path(self) -> Path:
        """The weights of the chosen epoch: `model.safetensors`."""
        return self.path / "model.safetensors"

    @property
    def items_path(self) -> Path:
        """The vocabulary, raw id and title by dense id: `items.parquet`."""
        return self.path / "items.parquet"

    @property
    def users_path(self) -> Path:
        """The users that a model knows, where it reads them, by raw id: `users.parquet`."""
        return self.path / "users.parquet"

    @property
    def features_path(self) -> Path:
        """What a ranking model reads of items, users and events, a folder: `features/`."""
        return self.path / "features"

    @property
    def metrics_path(self) -> Path:
        """Metrics with intervals, baselines, warnings and samples: `metrics.json`."""
        return self.path / "metrics.json"

    @property
    def index_path(self) -> Path:
        """How fast and how right indexes over its items were found to be: `index.json`."""
        return self.path / "index.json"

    @property
    def log_path(self) -> Path:
        """What happened while it trained, one JSON object a line: `log.jsonl`."""
        return self.path / "log.jsonl"

    @property
    def report_path(self) -> Path:
        """The page for people: `report.html`."""
        return self.path / "report.html"

    @property
    def checkpoints_path(self) -> Path:
        """The folder of checkpoints while the run trains: `checkpoints/`."""
        return self.path / "checkpoints"

    def read_config(self) -> dict[str, Any]:
        """Return config.json in today's format. Raise `InvalidRun` when it cannot be read."""
        if not self.path.is_dir():
            got = "a file" if self.path.exists() else "nothing there"
            raise InvalidRun(f"run: expected the folder of a saved run at {self.path}, got {got}")
        if not self.config_path.exists():
            raise InvalidRun(f"run: {self.path} is not a saved run (it has no {self.config_path.name})")
        return self._in_todays_format(_read_json(self.config_path))

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write config.json, whole or not at all, with the format version; the folder is made if need be."""
        write_json(self.config_path, {**_strict(values), "format_version": FORMAT_VERSION})

    def read_metrics(self) -> dict[str, Any]:
        """Return metrics.json. Raise `InvalidRun` when it is missing or damaged."""
        return _read_json(self.metrics_path)

    def write_metrics(self, values: Mapping[str, Any]) -> None:
        """Write metrics.json, whole or not at all. NaN and infinity become null."""
        write_json(self.metrics_path, _strict(values))

    def read_index_rows(self) -> list[dict[str, Any]]:
        """Return the figures of index.json, none when it is missing; raise `InvalidRun` when it is damaged."""
        if not self.index_path.exists():
            return []
        rows = _read_json(self.index_path).get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidRun(f"run: {self.index_path} is damaged (no list of rows)")
        return rows

    def write_index_rows(self, rows: list[dict[str, Any]]) -> None:
        """Write index.json, whole or not at all. NaN and infinity become null."""
        write_json(self.index_path, _strict({"rows": rows}))

    def read_log(self) -> Iterator[dict[str, Any]]:
        """Yield the records of log.jsonl in order, none when it is missing.

        A last line without its line end was torn by a killed process and is left out. Raise `InvalidRun`
        naming the line when any other one is damaged.
        """
        if not self.log_path.exists():
            return
        try:
            with self.log_path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.endswith(b"\n") and line.strip():
                        yield _parse(line, f"{self.log_path} line {number}")
        except OSError as error:
            raise InvalidRun(f"run: cannot read {self.log_path} ({error.strerror})") from None

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Add one record to log.jsonl; a torn last line is removed first. NaN and infinity become null.

        Raise `NotWritable` when the disk is full or forbids it.
        """
        line = json.dumps(_strict(record), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("ab+") as file:
                _cut_torn_line(file)
                file.write(line.encode())
        except OSError as error:
            raise NotWritable(f"run: cannot write {self.log_path} ({error.strerror})") from None

    def _in_todays_format(self, values: dict[str, Any]) -> dict[str, Any]:
        version = values.get("format_version")
        if type(version) is not int:
            raise InvalidRun(
                f"run: {self.config_path}: expected a whole number as format_version, got {version!r}"
            )
        if version > FORMAT_VERSION:
            raise InvalidRun(
                f"run: {self.path} is in format version {version}, this Serrate reads up to version "
                f"{FORMAT_VERSION}; a newer Serrate is needed"
            )
        for step in range(version, FORMAT_VERSION):
            if step not in MIGRATIONS:
                raise InvalidRun(
                    f"run: {self.path} is in format version {version}, which this Serrate (version "
                    f"{FORMAT_VERSION}) can no longer migrate"
                )
            values = {**MIGRATIONS[step](values), "format_version": step + 1}
        return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidRun(f"run: cannot read {path} ({error.strerror})") from None
    return _parse(content, str(path))


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):  # ValueError: not JSON, not UTF-8, or a number beyond all bounds
        raise InvalidRun(f"run: {where} is damaged (not valid JSON)") from None
    if not isinstance(values, dict):
        raise InvalidRun(f"run: {where}: expected a JSON object, got {type(values).__name__}")
    return values


def _strict(value: Any) -> Any:
    """Return `value` with every number JSON cannot say (NaN, infinity) replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return value


def _cut_torn_line(file: Any) -> None:
    """Cut what follows the last line end of a file open for appending (nothing, as a rule)."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    file.seek(0, os.SEEK_END)
