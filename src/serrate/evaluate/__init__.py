"""From scores to honest figures: full ranking, metrics with intervals, baselines in the same table."""

from .baselines import BASELINES, evaluate_baselines
from .bootstrap import Estimate, bootstrap_by_user
from .config import EvaluateConfig
from .evaluation import Evaluation, compare
from .item_knn import ItemKNN
from .markov import Markov
from .popularity import Popularity
from .probabilities import auc, calibration, log_losses, normalised_entropy
from .ranking import Scorer, evaluate
from .table import comparisons, table
from .training_events import item_counts

__all__ = ["BASELINES", "Estimate", "EvaluateConfig", "Evaluation", "ItemKNN", "Markov", "Popularity", "Scorer",
           "auc", "bootstrap_by_user", "calibration", "compare", "comparisons", "evaluate", "evaluate_baselines",
           "item_counts", "log_losses", "normalised_entropy", "table"]
