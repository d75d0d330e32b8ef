"""A run's log in TensorBoard, when TensorBoard is installed (`pip install serrate[track]`)."""

import importlib.util
from pathlib import Path
from typing import Any


class TensorBoard:
    """A listener that writes the numbers of each log record into `folder`, for `tensorboard --logdir`.

    Does nothing where TensorBoard is not installed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: Any = None

    @staticmethod
    def installed() -> bool:
        """Whether TensorBoard can be used here."""
        return importlib.util.find_spec("tensorboard") is not None

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record: the numbers of a step, the metrics of a validation."""
        if not self.installed() or record["event"] not in ("step", "validation"):
            return
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        if record["event"] == "step":
            values = {f"train/{name}": record[name] for name in ("loss", "learning_rate", "events_per_second")}
        else:
            values = {f"validation/{name}": value for name, value in record["metrics"].items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()
