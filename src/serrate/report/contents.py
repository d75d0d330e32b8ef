"""What a saved run says about itself, read and checked once: its settings, metrics and log."""

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InvalidRun
from ..run_folder import RunFolder

_LARGEST = 1e300  # differences of such numbers are still finite


class _Part(BaseModel):
    """A part of metrics.json: keys the report does not know are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Estimate(_Part):
    """A value with the bounds of its confidence interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Row(_Part):
    """The metrics of one scorer on one split."""

    model: str
    split: str = "test"
    metrics: dict[str, Estimate] = {}


class Comparison(Estimate):
    """The paired difference, model less baseline, of one metric."""

    model: str
    baseline: str
    metric: str
    split: str = "test"


class Bin(_Part):
    """How many users have a history of a length within these bounds."""

    low: int = Field(alias="from")
    high: int = Field(alias="to")
    users: int


class Lengths(_Part):
    """The lengths of the histories, and the share of a padded batch's cells that would have been padding."""

    histogram: list[Bin] = []
    mean: float | None = None
    longest: int | None = None
    padding_avoided: float | None = None


class CalibrationBin(_Part):
    """Samples whose probabilities are alike: how many, their mean probability, how often yes came true."""

    count: int
    predicted: float
    observed: float


class Calibration(_Part):
    """The calibration of one task, in bins of ascending probability."""

    task: str
    bins: list[CalibrationBin] = []


class IndexFigures(_Part):
    """An index at one batch size: the time of a search, and how much of the exact answer it finds."""

    index: str
    kind: str
    k: int
    batch: int
    milliseconds: float = Field(gt=0)
    recall: float
    share: float
    certified: float


class Item(_Part):
    """One item of a sample."""

    id: int | str
    title: str | None = None
    score: float | None = None


class Sample(_Part):
    """One history (newest last) with what was recommended after it, and what came."""

    user: int | str | None = None
    history: list[Item] = []
    recommended: list[Item] = []
    truth: list[Item] = []


class Metrics(_Part):
    """All of metrics.json."""

    examples: Any = None
    warnings: list[str] = []
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    calibration: list[Calibration] = []
    lengths: Lengths = Lengths()
    samples: list[Sample] = []


@dataclass
class Curve:
    """A measured quantity over training: `x` ascending, `y` finite, both float64."""

    x: array = field(default_factory=lambda: array("d"))
    y: array = field(default_factory=lambda: array("d"))

    def add(self, x: float, y: float) -> None:
        """Add a point; a run that resumed measures again, so points at or after `x` give way."""
        if self.x and x <= self.x[-1]:
            start = bisect_left(self.x, x)
            del self.x[start:], self.y[start:]
        self.x.append(x)
        self.y.append(y)


@dataclass
class Log:
    """What log.jsonl says: curves, the chosen epoch, the first and the last record."""

    loss: Curve = field(default_factory=Curve)
    speed: Curve = field(default_factory=Curve)
    validation: dict[str, Curve] = field(default_factory=dict)
    chosen_epoch: float | None = None
    chosen_step: float | None = None
    not_finite: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """A saved run as the report sees it."""

    path: Path
    config: dict[str, Any]
    metrics: Metrics
    log: Log
    indexes: list[IndexFigures]
    written: float  # seconds since 1970

    @property
    def model(self) -> str:
        """The name of the run's own model, as it stands in the metric table."""
        metrics, settings = self.metrics, section(self.config, "model")
        if metrics.comparisons:
            return metrics.comparisons[0].model
        return metrics.rows[0].model if metrics.rows else text(settings, "kind", "name") or "model"

    @property
    def data(self) -> str | None:
        """The name of the log it was trained on, if the settings say so."""
        for part in (section(self.config, "data"), section(self.config, "dataset")):
            if named := text(part, "name", "source", "path"):
                return Path(named).name or named
        return None


def read_contents(path: Path) -> Contents:
    """Read a saved run. Metrics and log may be missing; raise `InvalidRun` for anything damaged."""
    folder = RunFolder(path)
    config = folder.read_config()
    metrics = Metrics()
    written = folder.config_path
    if folder.metrics_path.exists():
        written = folder.metrics_path
        try:
            metrics = Metrics.model_validate(folder.read_metrics())
        except ValidationError as error:
            raise _damaged(folder.metrics_path, error) from None
    try:
        indexes = [IndexFigures.model_validate(row) for row in folder.read_index_rows()]
    except ValidationError as error:
        raise _damaged(folder.index_path, error) from None
    return Contents(path, config, metrics, _read_log(folder), indexes, written.stat().st_mtime)


def section(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the mapping at `key`, empty when there is none."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def text(values: dict[str, Any], *keys: str) -> str | None:
    """Return the first of the keys that holds some text."""
    return next((values[key] for key in keys if isinstance(values.get(key), str) and values[key]), None)


def number(value: object) -> float | None:
    """Return a number as float, None for anything else: texts, NaN, and what is too large to be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None


def _damaged(path: Path, error: ValidationError) -> InvalidRun:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return InvalidRun(f"run: {path}: {where}: {first['msg']}")


def _read_log(folder: RunFolder) -> Log:
    log = Log()
    for record in folder.read_log():
        event = record.get("event")
        if event == "step":
            _add_step(log, record)
        elif event == "validation":
            _add_validation(log, record)
        elif event == "start":
            log.start = log.start or record
        elif event == "end":
            log.end = record
    return log


def _add_step(log: Log, record: dict[str, Any]) -> None:
    step, loss, speed = (number(record.get(key)) for key in ("step", "loss", "events_per_second"))
    if step is None:
        return
    if loss is None:
        log.not_finite += 1
    else:
        log.loss.add(step, loss)
    if speed is not None:
        log.speed.add(step, speed)


def _add_validation(log: Log, record: dict[str, Any]) -> None:
    epoch = number(record.get("epoch"))
    if epoch is None:
        return
    for name, value in section(record, "metrics").items():
        if isinstance(value, dict):  # an estimate: {"value", "low", "high"}
            value = value.get("value")
        if (measured := number(value)) is not None:
            log.validation.setdefault(name, Curve()).add(epoch, measured)
    if record.get("best") is True:
        log.chosen_epoch, log.chosen_step = epoch, number(record.get("step"))
