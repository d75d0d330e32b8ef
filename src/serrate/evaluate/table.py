"""Evaluations as plain rows, for `metrics.json`, the command line and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from .evaluation import Evaluation, compare


def table(evaluations: Mapping[str, Evaluation], split: str = "test") -> list[dict[str, Any]]:
    """Return one row a model: `{"model", "split", "metrics": {name: {"value", "low", "high"}}}`."""
    return [{"model": model, "split": split,
             "metrics": {name: estimate.plain() for name, estimate in evaluation.metrics().items()}}
            for model, evaluation in evaluations.items()]


def comparisons(evaluations: Mapping[str, Evaluation], model: str,
                metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return the paired difference of `model` to each other one, a row a metric.

    A row is `{"model", "baseline", "metric", "value", "low", "high"}`; a value above 0 speaks for `model`.
    """
    return [{"model": model, "baseline": baseline, "metric": metric,
             **compare(evaluations[model], evaluations[baseline], metric).plain()}
            for baseline in evaluations if baseline != model for metric in metrics]
