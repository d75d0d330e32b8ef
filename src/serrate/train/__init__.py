"""From a configuration and a prepared log to a saved run."""

from .config import RunConfig, TrainConfig
from .recipes import describe_recipe, read_recipe, recipe_names, recipe_path
from .run import DATA, data_of, read_run_config, resume, train, train_log

__all__ = ["DATA", "RunConfig", "TrainConfig", "data_of", "describe_recipe", "read_recipe", "read_run_config",
           "recipe_names", "recipe_path", "resume", "train", "train_log"]
