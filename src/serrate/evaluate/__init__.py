"""From scores to honest figures: full ranking, metrics with intervals, baselines in the same table."""

from .baselines import BASELINES, evaluate_baselines
from .bootstrap import Estimate, bootstrap_by_user
from .config import EvaluateConfig, PredictionsConfig
from .evaluation import Evaluation
from .item_knn import ItemKNN
from .markov import Markov
from .popularity import Popularity
from .predictions import LOWER_IS_BETTER, METRICS, Predictions, mean_difference
from .probabilities import (
    CalibrationBin,
    auc,
    calibration,
    calibration_curve,
    grouped_auc,
    log_losses,
    normalised_entropy,
)
from .ranking import Scorer, evaluate
from .rates import fit_rates
from .table import comparisons, table
from .task_predictions import TaskPredictions
from .training_events import item_counts

__all__ = ["BASELINES", "LOWER_IS_BETTER", "METRICS", "CalibrationBin", "Estimate", "EvaluateConfig", "Evaluation",
           "ItemKNN", "Markov", "Popularity", "Predictions", "PredictionsConfig", "Scorer", "TaskPredictions", "auc",
           "bootstrap_by_user", "calibration", "calibration_curve", "comparisons", "evaluate", "evaluate_baselines",
           "fit_rates", "grouped_auc", "item_counts", "log_losses", "mean_difference", "normalised_entropy", "table"]
