"""From a configuration and a prepared log to a saved run."""

from .config import RunConfig, TrainConfig
from .recipes import describe_recipe, read_recipe, recipe_names, recipe_path
from .run import DATA, read_run_config, resume, train

__all__ = ["DATA", "RunConfig", "TrainConfig", "describe_recipe", "read_recipe", "read_run_config", "recipe_names",
           "recipe_path", "resume", "train"]
