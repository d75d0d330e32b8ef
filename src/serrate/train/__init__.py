"""From a configuration and a prepared log to a saved run."""

from .config import RunConfig, TrainConfig
from .run import read_run_config, resume, train

__all__ = ["RunConfig", "TrainConfig", "read_run_config", "resume", "train"]
