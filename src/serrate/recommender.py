"""`Recommender`: the whole library as one estimator."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from .errors import InvalidArgument
from .files import write_folder_aside
from .report import write_report
from .run_folder import RunFolder
from .serve import Predictor, Recommended
from .train import RunConfig, next_item_run, read_run_config, train_log

Part = TypeVar("Part")


class Recommender:
    """Fit on a log of events, recommend to any history.

    ```python
    recommender = Recommender({"data": {"columns": {"user": "user_id", "item": "item_id", "time": "timestamp"}}})
    recommender.fit("events.parquet")
    recommender.recommend([["item 7", "item 9"]], k=10)
    recommender.save("runs/first")
    Recommender.from_pretrained("runs/first")
    ```

    Args:
        config: a `RunConfig`, or a nested mapping of what differs from its defaults.

    Raises:
        InvalidConfig: an unknown key or a wrong value.
    """

    def __init__(self, config: RunConfig | Mapping[str, Any] | None = None):
        self.config = config if isinstance(config, RunConfig) else RunConfig.parse(dict(config or {}))
        self._folder: RunFolder | None = None
        self._predictor: Predictor | None = None
        self._holder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def from_pretrained(cls, path: Path | str, *, device: str = "auto") -> Self:
        """Load a saved run; `device` is `auto`, `cpu` or `cuda`. Raises `InvalidRun` when it cannot be used."""
        predictor = Predictor.open(path, device=device)
        loaded = cls(next_item_run(read_run_config(predictor.config)))
        loaded._folder, loaded._predictor = RunFolder(path), predictor
        return loaded

    def fit(self, log: Any, out: Path | str | None = None) -> Self:
        """Prepare the log, train, choose the epoch on validation, test once, write the report.

        Args:
            log: whatever `data.prepare` reads (a path, or an Arrow, pandas or polars table), or a data set that is
                prepared already (`Histories`, or the path of its folder).
            out: where the saved run goes; a temporary folder when None (`save` copies it).

        Raises:
            InvalidData: the log cannot be used.
            InvalidArgument: `out` is not empty.
        """
        holder = None
        if out is None:
            holder = tempfile.TemporaryDirectory(prefix="serrate-")
            out = Path(holder.name) / "run"
        folder = train_log(self.config, log, out)
        write_report(folder.path)
        self._folder, self._predictor, self._holder = folder, Predictor.open(out), holder
        return self

    def recommend(self, histories: Iterable[Sequence[Any]], k: int = 10, *, exclude_seen: bool = True,
                  allow: Iterable[Any] | None = None, deny: Iterable[Any] = (),
                  times: Iterable[Sequence[Any]] | None = None, asked: Any = None,
                  users: Iterable[Any] | None = None) -> list[Recommended]:
        """Return the best `k` items after each history of raw item ids; see `serve.Predictor.recommend`."""
        return self._fitted(self._predictor).recommend(
            histories, k, exclude_seen=exclude_seen, allow=allow, deny=deny, times=times, asked=asked,
            users=users)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: test metrics with intervals, baselines, warnings."""
        return self._fitted(self._folder).read_metrics()

    def save(self, path: Path | str) -> None:
        """Copy the saved run to `path`, which must not exist or be an empty folder, whole or not at all."""
        source = self._fitted(self._folder).path
        with write_folder_aside(Path(path)) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)

    @staticmethod
    def _fitted(part: Part | None) -> Part:
        if part is None:
            raise InvalidArgument("recommender", "a fitted one (fit or from_pretrained)", "one not fitted")
        return part
