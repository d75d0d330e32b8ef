"""The baselines that every model has to beat, evaluated in the same way."""

from typing import Any

from ..data import Examples, Histories
from ..errors import NotUsable
from .config import EvaluateConfig
from .evaluation import Evaluation
from .item_knn import ItemKNN
from .markov import Markov
from .popularity import Popularity
from .ranking import evaluate

BASELINES: dict[str, Any] = {"popularity": Popularity, "item-kNN": ItemKNN, "Markov": Markov}


def evaluate_baselines(histories: Histories, train: Examples, examples: Examples,
                       config: EvaluateConfig) -> tuple[dict[str, Evaluation], list[str]]:
    """Fit every baseline on `train` and rank `examples`.

    Returns:
        name → evaluation, and a sentence for each baseline that a log of this size is too large for.
    """
    evaluations: dict[str, Evaluation] = {}
    refusals: list[str] = []
    for name, baseline in BASELINES.items():
        try:
            scorer = baseline().fit(histories, train)
        except NotUsable as error:
            refusals.append(str(error))
            continue
        evaluations[name] = evaluate(scorer, histories, examples, config)
    return evaluations, refusals
