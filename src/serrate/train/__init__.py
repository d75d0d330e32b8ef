"""From a configuration and a prepared log to a saved run."""

from ..data import DATA, data_of
from .config import AnyRunConfig, RankingRunConfig, RunConfig, TrainConfig, next_item_run, parse_run
from .recipes import describe_recipe, read_recipe, recipe_names, recipe_path
from .run import read_run_config, resume, train, train_log

__all__ = ["DATA", "AnyRunConfig", "RankingRunConfig", "RunConfig", "TrainConfig", "data_of", "describe_recipe",
           "next_item_run", "parse_run", "read_recipe", "read_run_config", "recipe_names", "recipe_path", "resume",
           "train", "train_log"]
